"""Corpus metrics with the signature that reproduces them, and bootstrap intervals over items or whole utterances.

A metric is written as statistics per item, summed over the corpus, and a function of the sum. So a bootstrap resample
is a weighted sum of rows, not a second scoring.
"""

import math
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata

import jiwer
import numpy as np
from rouge_score import rouge_scorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from leaf.errors import ConfigError, DataError

# Counts held at once while resampling: 32 MB, however many samples and items.
_COUNTS_AT_ONCE = 4_000_000

_ROUGE = {name: rouge_scorer.RougeScorer([name], use_stemmer=False) for name in ("rouge1", "rouge2", "rougeL")}


@dataclass(frozen=True)
class Score:
    """Hold a metric's value and what reproduces it."""

    value: float
    signature: str


@dataclass(frozen=True)
class Metric:
    """Define a corpus metric.

    Attributes:
        items: (predictions, references) → (items, statistics) array.
        total: sum of the statistics over the corpus → value.
        signature: whether both sides were lower-cased first → name, settings and versions.
    """

    items: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    total: Callable[[np.ndarray], float]
    signature: Callable[[bool], str]


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


def _sacrebleu(name: str, kind: type[BLEU] | type[CHRF]) -> Metric:
    """Define corpus BLEU or chrF with sacreBLEU's defaults (BLEU without effective order, as corpus_bleu)."""
    scorer = kind()

    def items(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        # sacreBLEU's own per-sentence statistics: the sums corpus_score takes.
        return np.array(scorer._extract_corpus_statistics(list(predictions), [list(references)]), dtype=np.float64)

    def total(sums: np.ndarray) -> float:
        return float(scorer._aggregate_and_compute([np.rint(sums).astype(int).tolist()]).score)

    def signature(lowercase: bool) -> str:
        cased = kind(lowercase=lowercase)
        cased.corpus_score(["a"], [["a"]])  # sacreBLEU knows the number of references only after scoring
        return f"{name}|{cased.get_signature()}"

    return Metric(items, total, signature)


def _ratio(
    pair: Callable[[str, str], tuple[float, float]], signature: str, package: str, *, keeps_case: bool = False
) -> Metric:
    """Define 100 times the sum of the pairs' first numbers over the sum of their second ones."""

    def items(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        return np.array([pair(p, r) for p, r in zip(predictions, references, strict=True)], dtype=np.float64)

    def described(lowercase: bool) -> str:
        case = "mixed" if keeps_case and not lowercase else "lc"
        return f"{signature}|case:{case}|{package}:{metadata.version(package)}"

    return Metric(items, lambda sums: float(100.0 * sums[0] / sums[1]), described)


def _mean(function: Callable[[str, str], float], signature: str, package: str) -> Metric:
    """Define 100 times the mean of a value per item; such a function folds case itself."""
    return _ratio(lambda prediction, reference: (function(prediction, reference), 1.0), signature, package)


METRICS: dict[str, Metric] = {
    "bleu": _sacrebleu("bleu", BLEU),
    "chrf": _sacrebleu("chrf", CHRF),
    **{name: _mean(partial(rouge_f, name), f"{name}|f1|stemmer:no|tok:a-z0-9", "rouge-score") for name in _ROUGE},
    "exact_match": _mean(exact_match, "exact_match|punctuation:no", "leaf-speech"),
    "token_f1": _mean(token_f1, "token_f1|punctuation:no", "leaf-speech"),
    "wer": _ratio(edits, "wer|punctuation:yes", "jiwer", keeps_case=True),
    "cer": _ratio(partial(edits, characters=True), "cer|punctuation:yes", "jiwer", keeps_case=True),
}


def metric(name: str) -> Metric:
    """Return a metric by name; an unknown one is a ConfigError."""
    if name not in METRICS:
        raise ConfigError(f"The metric {name!r} is unknown; allowed are {', '.join(METRICS)}.")
    return METRICS[name]


def score(
    predictions: Sequence[str],
    references: Sequence[str],
    metrics: Sequence[str] = ("bleu", "chrf", "exact_match"),
    *,
    lowercase: bool = False,
) -> dict[str, Score]:
    """Return each metric over the corpus, 0 to 100; error rates may exceed 100, and less is better there.

    White space is folded first, and case with `lowercase`, on both sides.

    Raises:
        ConfigError: an unknown metric.
        DataError: a different number of predictions and references, none, a value that is not text, an empty reference.
    """
    totals = {name: _items(name, predictions, references, lowercase).sum(0) for name in metrics}
    return {name: Score(METRICS[name].total(sums), METRICS[name].signature(lowercase)) for name, sums in totals.items()}


def bootstrap(
    predictions: Sequence[str],
    references: Sequence[str],
    name: str,
    *,
    lowercase: bool = False,
    groups: Sequence[Hashable] | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Return value, low and high of a percentile bootstrap over items, or over `groups` (one key per item) as wholes.

    With several rows from one recording give its name as the group: rows of one recording are not independent.
    """
    items = _items(name, predictions, references, lowercase)
    low, high = _quantiles(_resampled(name, _grouped(items, groups), samples, seed), level)
    return metric(name).total(items.sum(0)), low, high


def paired_bootstrap(
    predictions_a: Sequence[str],
    predictions_b: Sequence[str],
    references: Sequence[str],
    name: str,
    *,
    lowercase: bool = False,
    groups: Sequence[Hashable] | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float, float]:
    """Return the difference B − A, its interval, and the two-sided p-value, both systems on the same resamples.

    p is twice the smaller share of resamples on one side of 0, where the corpus itself counts as one more resample: at
    least 2/(samples + 1), at most 1. Paired resampling is Koehn's (EMNLP 2004), who reports one side.
    """
    items_a, items_b = [_items(name, side, references, lowercase) for side in (predictions_a, predictions_b)]
    # The same seed and the same number of units draw the same resamples.
    values_a, values_b = [_resampled(name, _grouped(items, groups), samples, seed) for items in (items_a, items_b)]
    differences = values_b - values_a
    low, high = _quantiles(differences, level)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    total = metric(name).total
    return total(items_b.sum(0)) - total(items_a.sum(0)), low, high, float(min(1.0, 2 * (tail + 1) / (samples + 1)))


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return mean and half-width of Student's t interval, for a handful of seeds; needs two finite values or more."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2 or not np.isfinite(array).all():
        raise DataError(f"An interval of a mean needs at least 2 finite values; got {array.tolist()}.")
    half = _student_quantile(_checked(level), len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean()), float(half)


def _student_quantile(level: float, freedom: int) -> float:
    """Return t with P(|T| < t) = level, by bisection on the finite series (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    exponents = np.arange(freedom % 2, freedom - 1, 2)  # 1, 3, … or 0, 2, …, up to ν − 2
    coefficients = np.cumprod([(e - 1) / e if e > 1 else 1.0 for e in exponents.tolist()])
    low, high = 0.0, math.pi / 2  # of the angle θ with t = √ν tan θ
    for _ in range(100):
        angle = (low + high) / 2
        inside = math.sin(angle) * float(coefficients @ math.cos(angle) ** exponents)
        if freedom % 2:
            inside = 2 / math.pi * (angle + inside)
        low, high = (angle, high) if inside < level else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _items(name: str, predictions: Sequence[str], references: Sequence[str], lowercase: bool) -> np.ndarray:
    """Return the (items, statistics) array of a metric over checked texts."""
    if len(predictions) != len(references) or not len(references):
        counts = f"{len(predictions)} predictions came for {len(references)} references"
        raise DataError(f"{counts}; give the same number of both, at least 1.")
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(prediction, str) or not isinstance(reference, str):
            raise DataError(f"Item {i} has prediction {prediction!r} and reference {reference!r}; give two texts.")
        if not reference.strip():
            raise DataError(f"Reference {i} is empty; every item needs a text to be compared with.")
    fold = (lambda text: fold_whitespace(text).lower()) if lowercase else fold_whitespace
    return metric(name).items([fold(text) for text in predictions], [fold(text) for text in references])


def _grouped(items: np.ndarray, groups: Sequence[Hashable] | None) -> np.ndarray:
    """Return one row per group, the sum of its items; the items themselves without groups."""
    if groups is None:
        return items
    if len(groups) != len(items):
        raise DataError(f"{len(groups)} group keys came for {len(items)} items; give one per item.")
    index = {key: i for i, key in enumerate(dict.fromkeys(groups))}
    summed = np.zeros((len(index), items.shape[1]))
    np.add.at(summed, [index[key] for key in groups], items)
    return summed


def _draws(units: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield (some samples, units) counts of how often each unit is drawn, `samples` rows in all."""
    if samples < 1:
        raise ConfigError(f"The number of bootstrap samples is {samples}; allowed is 1 or more.")
    generator = np.random.default_rng(seed)
    most = max(1, _COUNTS_AT_ONCE // units)
    for start in range(0, samples, most):
        rows = min(most, samples - start)
        drawn = generator.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)


def _resampled(name: str, items: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Return (samples,) the metric of every resample."""
    draws = _draws(len(items), samples, seed)
    return np.array([METRICS[name].total(sums) for counts in draws for sums in counts @ items])


def _quantiles(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [0.5 - _checked(level) / 2, 0.5 + level / 2])
    return float(low), float(high)


def _checked(level: float) -> float:
    if 0.0 < level < 1.0:
        return level
    raise ConfigError(f"The level of an interval is {level}; allowed is a number between 0 and 1, such as 0.95.")
