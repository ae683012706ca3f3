"""Normalisers of texts for error rates: what is folded on both sides before words or characters are counted."""

from collections.abc import Callable
from functools import cache

from leaf.errors import ConfigError, did_you_mean, shown
from leaf.text import fold_whitespace, normalise

NORMALISERS = ("none", "basic", "whisper")


@cache
def normaliser(name: str) -> Callable[[str], str]:
    """Find a normaliser.

    `none` leaves a text as it is, `basic` lowers case and drops punctuation except in numbers, as exact match does, and
    `whisper` is Whisper's for English: it also spells numbers and contractions in one way, and drops fillers and what
    is in brackets.

    Raises:
        ConfigError: there is none of that name, or this transformers has no such normaliser.
    """
    if name not in NORMALISERS:
        allowed = ", ".join(NORMALISERS)
        raise ConfigError(f"normalise is {shown(name)}; allowed are {allowed}.{did_you_mean(name, NORMALISERS)}")
    return {"none": fold_whitespace, "basic": normalise, "whisper": _whisper}[name]


def _whisper(text: str) -> str:
    return fold_whitespace(_english()(text))


@cache
def _english() -> Callable[[str], str]:
    try:
        from transformers.models.whisper.english_normalizer import EnglishTextNormalizer
    except ImportError as error:
        raise ConfigError(
            f"The normaliser whisper comes with transformers, and the installed one has none ({error}). Take "
            "normalise=basic."
        ) from error
    # The table of British spellings is part of Whisper's checkpoints, not of the package: they stay as they are.
    return EnglishTextNormalizer({})
