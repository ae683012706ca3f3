"""Compare texts: white space, case and punctuation, exact match, token F1, edits and ROUGE."""

import string
import unicodedata
from collections import Counter

import jiwer
from rouge_score import rouge_scorer

from leaf.errors import DataError

_ROUGE = {name: rouge_scorer.RougeScorer([name], use_stemmer=False) for name in ("rouge1", "rouge2", "rougeL")}


def fold_whitespace(text: str) -> str:
    """Return the text with every run of white space as one space, none at the ends: what every score compares."""
    return " ".join(text.split())


def normalise(text: str) -> str:
    """Return lower-case text without punctuation (Unicode), white space folded: what exact match and token F1 compare.

    A text of nothing but punctuation keeps it: it must differ from the empty text.
    """
    lower = text.lower()
    kept = (c for c in lower if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return fold_whitespace("".join(kept)) or fold_whitespace(lower)


def exact_match(prediction: str, reference: str) -> float:
    """Return 1.0 if both texts are the same after `normalise`, else 0.0."""
    return float(normalise(prediction) == normalise(reference))


def token_f1(prediction: str, reference: str) -> float:
    """Return the F1 of normalised words as multisets, in [0, 1]; two empty texts give 1."""
    ours, theirs = normalise(prediction).split(), normalise(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


def edits(prediction: str, reference: str, *, characters: bool = False) -> tuple[int, int]:
    """Return edit operations and reference length, in words or characters."""
    if not reference.strip():
        raise DataError("An error rate needs a reference with at least one word; got an empty one.")
    process = jiwer.process_characters if characters else jiwer.process_words
    result = process(reference, prediction)
    length = result.hits + result.substitutions + result.deletions
    return result.substitutions + result.deletions + result.insertions, length


def rouge_f(name: str, prediction: str, reference: str) -> float:
    """Return F1 of rouge1, rouge2 or rougeL, in [0, 1], stemmer off.

    rouge-score lower-cases and compares runs of a-z and 0-9 only: other letters separate words, and a text without any
    of these scores 0 even against itself. For other scripts take chrF.
    """
    return float(_ROUGE[name].score(reference, prediction)[name].fmeasure)
