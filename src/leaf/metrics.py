"""Corpus metrics with the signature that reproduces them, and bootstrap intervals over items or whole utterances.

A metric is written as statistics per item, summed over the corpus, and a function of the sum. So a bootstrap resample is
a weighted sum of rows, not a second scoring.
"""

import math
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

import jiwer
import numpy as np
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF

from leaf.errors import ConfigError, DataError

# Corpus BLEU without effective order, as sacrebleu.corpus_bleu; the sentence form has its own object (rewards.py).
_BLEU = BLEU()
_CHRF = CHRF()


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
        signature: name, settings and versions.
    """

    items: Callable[[Sequence[str], Sequence[str]], np.ndarray]
    total: Callable[[np.ndarray], float]
    signature: Callable[[], str]


def normalise(text: str) -> str:
    """Return lower-case text without punctuation, white space folded: the form exact match and token F1 compare."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def token_f1(prediction: str, reference: str) -> float:
    """Return the F1 of normalised words as multisets, in [0, 1]; two empty texts give 1."""
    ours, theirs = normalise(prediction).split(), normalise(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def edits(prediction: str, reference: str, *, characters: bool = False) -> tuple[int, int]:
    """Return edit operations and reference length, in words or characters."""
    if not reference.strip():
        raise DataError("An error rate needs a reference with at least one word; got an empty one.")
    process = jiwer.process_characters if characters else jiwer.process_words
    result = process(reference, prediction)
    length = result.hits + result.substitutions + result.deletions
    return result.substitutions + result.deletions + result.insertions, length


@cache
def rouge(name: str) -> rouge_scorer.RougeScorer:
    """Return the scorer of one ROUGE variant, stemmer off."""
    return rouge_scorer.RougeScorer([name], use_stemmer=False)


def rouge_f(name: str, prediction: str, reference: str) -> float:
    """Return ROUGE F1 in [0, 1]."""
    return float(rouge(name).score(reference, prediction)[name].fmeasure)


def _sacrebleu_items(metric: Any) -> Callable[[Sequence[str], Sequence[str]], np.ndarray]:
    def items(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        # sacreBLEU's own per-sentence statistics: the sums corpus_score takes.
        return np.array(metric._extract_corpus_statistics(list(predictions), [list(references)]), dtype=np.float64)

    return items


def _sacrebleu_total(metric: Any) -> Callable[[np.ndarray], float]:
    return lambda total: float(metric._aggregate_and_compute([np.rint(total).astype(int).tolist()]).score)


def _sacrebleu_signature(name: str, metric: Any) -> Callable[[], str]:
    def signature() -> str:
        metric.corpus_score(["a"], [["a"]])  # sacreBLEU knows the number of references only after scoring
        return f"{name}|{metric.get_signature()}"

    return signature


def _mean(function: Callable[[str, str], float], scale: float = 100.0) -> tuple[Any, Any]:
    def items(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        return np.array([[function(p, r), 1.0] for p, r in zip(predictions, references, strict=True)])

    return items, lambda total: float(scale * total[0] / total[1])


def _error_rate(characters: bool) -> tuple[Any, Any]:
    def items(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        pairs = zip(predictions, references, strict=True)
        return np.array([edits(p, r, characters=characters) for p, r in pairs], dtype=np.float64)

    return items, lambda total: float(100.0 * total[0] / total[1])


def _versioned(text: str, package: str) -> Callable[[], str]:
    return lambda: f"{text}|{package}:{metadata.version(package)}"


METRICS: dict[str, Metric] = {
    "bleu": Metric(_sacrebleu_items(_BLEU), _sacrebleu_total(_BLEU), _sacrebleu_signature("bleu", _BLEU)),
    "chrf": Metric(_sacrebleu_items(_CHRF), _sacrebleu_total(_CHRF), _sacrebleu_signature("chrf", _CHRF)),
    "exact_match": Metric(
        *_mean(lambda p, r: float(normalise(p) == normalise(r))), _versioned("exact_match|case,punctuation:off", "leaf-speech")
    ),
    "token_f1": Metric(*_mean(token_f1), _versioned("token_f1|case,punctuation:off", "leaf-speech")),
    "wer": Metric(*_error_rate(False), _versioned("wer|words", "jiwer")),
    "cer": Metric(*_error_rate(True), _versioned("cer|characters", "jiwer")),
} | {
    name: Metric(*_mean(lambda p, r, name=name: rouge_f(name, p, r)), _versioned(f"{name}|f1|stemmer:no", "rouge-score"))  # type: ignore[misc]
    for name in ("rouge1", "rouge2", "rougeL")
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
    """Return each metric over the corpus, 0 to 100 (error rates may exceed it); `lowercase` folds both sides first."""
    case = "|lowercase:yes" if lowercase else ""
    return {
        name: Score(metric(name).total(_items(name, predictions, references, lowercase).sum(0)), metric(name).signature() + case)
        for name in metrics
    }


def bootstrap(
    predictions: Sequence[str],
    references: Sequence[str],
    name: str,
    *,
    lowercase: bool = False,
    groups: Sequence[str] | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Return value, low and high of a percentile bootstrap over items, or over `groups` (one key per item) as wholes."""
    items = _grouped(_items(name, predictions, references, lowercase), groups)
    low, high = _quantiles(_resampled(name, items, _draws(len(items), samples, seed)), level)
    return metric(name).total(items.sum(0)), low, high


def paired_bootstrap(
    predictions_a: Sequence[str],
    predictions_b: Sequence[str],
    references: Sequence[str],
    name: str,
    *,
    lowercase: bool = False,
    groups: Sequence[str] | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float, float, float]:
    """Return the difference B − A, its interval, and the two-sided p-value, both systems on the same resamples.

    p is twice the smaller share of resamples on one side of 0, at least 1/(samples + 1) (Koehn 2004).
    """
    items_a = _grouped(_items(name, predictions_a, references, lowercase), groups)
    items_b = _grouped(_items(name, predictions_b, references, lowercase), groups)
    draws = _draws(len(items_a), samples, seed)
    differences = _resampled(name, items_b, draws) - _resampled(name, items_a, draws)
    low, high = _quantiles(differences, level)
    tail = min((differences <= 0).sum(), (differences >= 0).sum())
    total = metric(name).total
    return total(items_b.sum(0)) - total(items_a.sum(0)), low, high, min(1.0, 2 * (tail + 1) / (samples + 1))


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return mean and half-width of Student's t interval, for a handful of seeds; needs two values or more."""
    if len(values) < 2:
        raise DataError(f"An interval of a mean needs at least 2 values; got {len(values)}.")
    array = np.asarray(values, dtype=np.float64)
    half = _student_quantile(0.5 + level / 2, len(values) - 1) * array.std(ddof=1) / math.sqrt(len(values))
    return float(array.mean()), float(half)


def _student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t by bisection on its integrated density (Simpson's rule)."""
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)

    def below(t: float) -> float:
        angle = np.linspace(0.0, math.atan(t / math.sqrt(freedom)), 2001)  # t = √ν tan(angle) keeps the range finite
        density = math.exp(log_scale) * math.sqrt(freedom) * np.cos(angle) ** (freedom - 1)
        weights = np.ones(2001)
        weights[1:-1:2], weights[2:-1:2] = 4, 2
        return 0.5 + float((weights * density).sum() * (angle[1] - angle[0]) / 3)

    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < probability else (low, middle)
    return (low + high) / 2


def _items(name: str, predictions: Sequence[str], references: Sequence[str], lowercase: bool) -> np.ndarray:
    if len(predictions) != len(references) or not references:
        raise DataError(
            f"{len(predictions)} predictions came for {len(references)} references; give the same number of both, at "
            "least 1."
        )
    empty = next((i for i, reference in enumerate(references) if not reference.strip()), None)
    if empty is not None:
        raise DataError(f"Reference {empty} is empty; every item needs a text to be compared with.")
    if lowercase:
        predictions, references = [p.lower() for p in predictions], [r.lower() for r in references]
    return metric(name).items(predictions, references)


def _grouped(items: np.ndarray, groups: Sequence[str] | None) -> np.ndarray:
    if groups is None:
        return items
    if len(groups) != len(items):
        raise DataError(f"{len(groups)} group keys came for {len(items)} items; give one per item.")
    index = {key: i for i, key in enumerate(dict.fromkeys(groups))}
    summed = np.zeros((len(index), items.shape[1]))
    np.add.at(summed, [index[key] for key in groups], items)
    return summed


def _draws(size: int, samples: int, seed: int) -> np.ndarray:
    """Return (samples, size) counts of how often each unit is drawn."""
    return np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=samples).astype(np.float64)


def _resampled(name: str, items: np.ndarray, draws: np.ndarray) -> np.ndarray:
    total = metric(name).total
    return np.array([total(row) for row in draws @ items])


def _quantiles(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)
