"""Compare texts: Unicode form, white space, case and punctuation, exact match, token F1, edits and ROUGE.

Rewards and metrics both normalise and compare texts here, so that a reward is what is measured later. jiwer and
rouge-score are imported where they are used: they are slow to import, and most who fold white space need neither.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGES = ("rouge1", "rouge2", "rougeL")
NUMBERS_KEPT = "numbers:kept"  # part of the signature of every score that `normalise` makes

# Full-width and Arabic forms of the signs that belong to numbers.
_PLAIN_SIGNS = str.maketrans("－．，：／％٫٬٪", "-.,:/%.,%")
# A minus or point before a number, but no hyphen of a word or a range; a currency may be between minus and number.
_MINUS = re.compile(r"(?<![^\W_])[-−–]([$€£¥]?)(?=\.?\d)")
_POINT = re.compile(r"(?<![^\W_])(?<![.-])\.(?=\d)")
_PERCENT = re.compile(r"(?<=\d)\s+%")
_KEPT = re.compile(r"(?<!\S)(?:-\.?|\.)(?=\d)|(?<=\d)[.,:/](?=\d)|(?<=\d)%")


def composed(text: str) -> str:
    """Write a text in Unicode's composed form (NFC): é is one character, whether a keyboard or macOS wrote it."""
    return unicodedata.normalize("NFC", text)


def fold_whitespace(text: str, *, lowercase: bool = False) -> str:
    """Compose a text, with one space for every run of white space and none at the ends: what every score compares.

    Unicode's spaces count as white space, such as the no-break space and the ideographic one.

    Args:
        text: any text.
        lowercase: fold case too.
    """
    folded = " ".join(composed(text).split())
    return folded.lower() if lowercase else folded


def normalise(text: str) -> str:
    """Lower the case, drop punctuation (Unicode) and fold white space: what exact match and token F1 compare.

    Numbers keep what changes their value: . , : / between digits, a minus or a point in front, a percent sign behind.
    A comma stays whatever it means, because 1,000 is one in some languages and a thousand in others. A text of nothing
    but punctuation keeps it: it must differ from the empty text.
    """
    lower = composed(text).lower()
    plain = _PERCENT.sub("%", lower.translate(_PLAIN_SIGNS))
    # A space keeps the sign off the word or number before it: x=-5 is "x -5", as x = -5 is.
    plain = _POINT.sub(" .", _MINUS.sub(r"\1 -", plain))
    kept = {i for found in _KEPT.finditer(plain) for i in range(*found.span())}
    left = "".join(c for i, c in enumerate(plain) if i in kept or not _is_punctuation(c))
    return fold_whitespace(left) or fold_whitespace(lower)


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def exact_match(prediction: str, reference: str) -> float:
    """Compare two texts after `normalise`: 1.0 if they are the same, else 0.0."""
    return float(normalise(prediction) == normalise(reference))


def token_f1(prediction: str, reference: str) -> float:
    """Compute the F1 of normalised words as multisets, in [0, 1]; two empty texts give 1."""
    ours, theirs = normalise(prediction).split(), normalise(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * (Counter(ours) & Counter(theirs)).total() / (len(ours) + len(theirs))


def edits(prediction: str, reference: str, *, characters: bool = False) -> tuple[int, int]:
    """Count the edit operations and the length of the reference, in words or characters.

    A reference without any, which a normaliser may leave, has length 0: all of the prediction is insertions.
    """
    import jiwer

    if not reference.strip():
        return len(prediction if characters else prediction.split()), 0
    process = jiwer.process_characters if characters else jiwer.process_words
    result = process(composed(reference), composed(prediction))
    length = result.hits + result.substitutions + result.deletions
    return result.substitutions + result.deletions + result.insertions, length


def rouge_f(name: str, prediction: str, reference: str) -> float:
    """Compute the F1 of one of `ROUGES`, in [0, 1], stemmer off.

    rouge-score lower-cases and compares runs of a-z and 0-9 only: other letters separate words, and a text without any
    of these scores 0 even against itself. For other scripts take chrF.
    """
    return float(_rouge_scorer(name).score(composed(reference), composed(prediction))[name].fmeasure)


@cache
def _rouge_scorer(name: str) -> "RougeScorer":
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name], use_stemmer=False)


def unique_names(names: Sequence[str], paths: Sequence[Path] | None = None, *, form: str = "{} ({})") -> list[str]:
    """Tell equal names apart by their folders, and number those that are still equal: a, b, a becomes a, b, a (2).

    Args:
        names: names, of which some may be equal.
        paths: where each comes from. Equal names become the last parts of their paths, as many as tell them apart.
        form: how a name and its number are written.
    """
    names = list(names)
    if paths is not None:
        counts = Counter(names)
        equal = [i for i, name in enumerate(names) if counts[name] > 1]
        depth = 2  # the last part alone is mostly what the equal names say already
        while len({paths[i].parts[-depth:] for i in equal}) < len({paths[i] for i in equal}):
            depth += 1
        for i in equal:
            names[i] = "/".join(paths[i].parts[-depth:])
    given, taken = set(names), set()
    unique = []
    for name in names:
        number, one = 1, name
        while one in taken or (number > 1 and one in given):  # a name that somebody else has is no way out
            number += 1
            one = form.format(name, number)
        taken.add(one)
        unique.append(one)
    return unique
