"""Stable choices: what a text decides on every machine, in every process, for ever."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def stable_fraction(key: str) -> float:
    """Return a number in [0, 1) that depends on the text alone, on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def stable_choice(options: Sequence[T], key: str) -> T:
    """Return one of the options, chosen by the text alone."""
    return options[int(stable_fraction(key) * len(options))]
