"""Choices by hash: they depend on a text alone, so every machine and every process makes the same ones."""

import hashlib
from collections.abc import Sequence
from typing import TypeVar

from leaf.text import composed

T = TypeVar("T")


def stable_fraction(key: str) -> float:
    """Hash a text to a number in [0, 1), the same one in every Unicode form: macOS writes file names decomposed."""
    return int.from_bytes(hashlib.sha256(composed(key).encode()).digest()[:8], "big") / 2**64


def stable_choice(options: Sequence[T], key: str) -> T:
    """Choose one of the options by the hash of a text."""
    return options[int(stable_fraction(key) * len(options))]
