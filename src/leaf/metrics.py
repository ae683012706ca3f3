"""Corpus metrics with the signature that reproduces them, and bootstrap intervals over items or whole utterances.

A metric is written as statistics per item, summed over the corpus, and a function of the sum. So a bootstrap resample
is a weighted sum of rows, not a second scoring. Those that need data or a model (METEOR, BERTScore, COMET) are in
leaf.model_metrics; `metric` finds them all.
"""

import math
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
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
        items: (predictions, references), and the sources where they are needed → (items, statistics) array.
        total: sum of the statistics over the corpus → value.
        signature: whether both sides were lower-cased first → name, settings and versions.
        needs_source: whether it reads what was said, besides prediction and reference.
        is_kept: whether its statistics are written beside the predictions, because they take data or a model to make.
        less_is_better: whether it counts errors.
    """

    items: Callable[..., np.ndarray]
    total: Callable[[np.ndarray], float]
    signature: Callable[[bool], str]
    needs_source: bool = False
    is_kept: bool = False
    less_is_better: bool = False


@dataclass(frozen=True)
class Scored:
    """Hold one system under one metric: (items, statistics) of each pass over the same items.

    Its value is the mean over the passes. A resample draws items, or `groups` of items as wholes (one key per item),
    and takes them in every pass: passes over one recording are no further recordings.
    """

    metric: Metric
    passes: Sequence[np.ndarray]

    def values(self) -> list[float]:
        """Return the value of each pass."""
        return [self.metric.total(items.sum(0)) for items in self.passes]

    def value(self) -> float:
        """Return the mean over the passes."""
        return float(np.mean(self.values()))

    def interval(
        self,
        *,
        groups: Sequence[Hashable] | None = None,
        samples: int = 1000,
        seed: int = 0,
        level: float = 0.95,
    ) -> tuple[float, float]:
        """Return the percentile bootstrap interval of the value."""
        return _quantiles(self._resampled(groups, samples, seed), level)

    def against(
        self,
        other: "Scored",
        *,
        groups: Sequence[Hashable] | None = None,
        samples: int = 1000,
        seed: int = 0,
        level: float = 0.95,
    ) -> tuple[float, float, float, float]:
        """Return the difference to another system, self − other, its interval and two-sided p; see paired_bootstrap."""
        # The same seed and the same number of units draw the same resamples.
        differences = self._resampled(groups, samples, seed) - other._resampled(groups, samples, seed)
        low, high = _quantiles(differences, level)
        tail = min((differences <= 0).sum(), (differences >= 0).sum())
        return self.value() - other.value(), low, high, float(min(1.0, 2 * (tail + 1) / (samples + 1)))

    def _resampled(self, groups: Sequence[Hashable] | None, samples: int, seed: int) -> np.ndarray:
        return np.mean([_resampled(self.metric, _grouped(p, groups), samples, seed) for p in self.passes], axis=0)


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


def _error_rate(characters: bool) -> Metric:
    """Define the word or character error rate over the corpus: all edits over all reference words or characters."""
    pair = partial(edits, characters=characters)
    name = "cer" if characters else "wer"
    return _ratio(pair, f"{name}|punctuation:yes", "jiwer", keeps_case=True, less_is_better=True)


def _ratio(
    pair: Callable[[str, str], tuple[float, float]],
    signature: str,
    package: str,
    *,
    keeps_case: bool = False,
    less_is_better: bool = False,
) -> Metric:
    """Define 100 times the sum of the pairs' first numbers over the sum of their second ones."""

    def items(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        return np.array([pair(p, r) for p, r in zip(predictions, references, strict=True)], dtype=np.float64)

    def described(lowercase: bool) -> str:
        case = "mixed" if keeps_case and not lowercase else "lc"
        return f"{signature}|case:{case}|{package}:{metadata.version(package)}"

    return Metric(items, percentage, described, less_is_better=less_is_better)


def percentage(sums: np.ndarray) -> float:
    """Return 100 times the first sum over the second: the total of a mean or a rate."""
    return float(100.0 * sums[0] / sums[1])


def _mean(function: Callable[[str, str], float], signature: str, package: str) -> Metric:
    """Define 100 times the mean of a value per item; such a function folds case itself."""
    return _ratio(lambda prediction, reference: (function(prediction, reference), 1.0), signature, package)


METRICS: dict[str, Metric] = {
    "bleu": _sacrebleu("bleu", BLEU),
    "chrf": _sacrebleu("chrf", CHRF),
    **{name: _mean(partial(rouge_f, name), f"{name}|f1|stemmer:no|tok:a-z0-9", "rouge-score") for name in _ROUGE},
    "exact_match": _mean(exact_match, "exact_match|punctuation:no", "leaf-speech"),
    "token_f1": _mean(token_f1, "token_f1|punctuation:no", "leaf-speech"),
    "wer": _error_rate(characters=False),
    "cer": _error_rate(characters=True),
}


def metric(name: str, paths: Mapping[str, str] | None = None) -> Metric:
    """Return a metric by name.

    Args:
        name: of `METRICS` or leaf.model_metrics.BUILDERS.
        paths: metric → where its data or model lies, for those that need some.

    Raises:
        ConfigError: an unknown name, or a metric whose package, data or model is missing: what, and how to get it.
    """
    from leaf.model_metrics import BUILDERS, COMET_PROGRAM, build

    paths = paths or {}
    for given in (name, *(key for key in paths if key != COMET_PROGRAM)):
        if given not in METRICS and given not in BUILDERS:
            allowed = ", ".join((*METRICS, *BUILDERS))
            raise ConfigError(f"The metric {given!r} is unknown; allowed are {allowed}.")
    return METRICS[name] if name in METRICS else build(name, paths)


def less_is_better(name: str) -> bool:
    """Return whether a metric by this name counts errors; token_error_rate is the validation of stage align."""
    return name == "token_error_rate" or (name in METRICS and METRICS[name].less_is_better)


def score(
    predictions: Sequence[str],
    references: Sequence[str],
    metrics: Sequence[str] = ("bleu", "chrf", "exact_match"),
    *,
    lowercase: bool = False,
    sources: Sequence[str] | None = None,
    paths: Mapping[str, str] | None = None,
) -> dict[str, Score]:
    """Return each metric over the corpus, 0 to 100; error rates may exceed 100, and less is better there.

    White space is folded first, and case with `lowercase`, on both sides.

    Args:
        predictions: one text per item.
        references: one text per item, not empty.
        metrics: names.
        lowercase: compare without case.
        sources: what was said, one text per item, where a metric reads it (comet).
        paths: metric → where its data or model lies (meteor, bertscore, comet).

    Raises:
        ConfigError: an unknown metric, or one that cannot run here.
        DataError: a different number of predictions and references, none, a value that is not text, an empty reference.
    """
    scores = {}
    for name in metrics:
        found = metric(name, paths)
        value = found.total(statistics(found, predictions, references, lowercase=lowercase, sources=sources).sum(0))
        scores[name] = Score(value, found.signature(lowercase))
    return scores


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
    found = metric(name)
    scored = Scored(found, [statistics(found, predictions, references, lowercase=lowercase)])
    return scored.value(), *scored.interval(groups=groups, samples=samples, seed=seed, level=level)


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
    found = metric(name)
    a, b = [
        Scored(found, [statistics(found, side, references, lowercase=lowercase)])
        for side in (predictions_a, predictions_b)
    ]
    return b.against(a, groups=groups, samples=samples, seed=seed, level=level)


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Return mean and half-width of Student's t interval, for a handful of seeds; needs two finite values or more."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2 or not np.isfinite(array).all():
        raise DataError(f"An interval of a mean needs at least 2 finite values; got {array.tolist()}.")
    half = student_quantile(_checked(level), len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean()), float(half)


def seeds_for(differences: Sequence[float], half: float = 0.5) -> int:
    """Return how many paired seeds give a 95 % Student interval of at most ± `half`, at the deviation of these."""
    deviation, n = np.std(differences, ddof=1), 2
    while student_quantile(0.95, n - 1) * deviation / math.sqrt(n) > half:
        n += 1
    return n


def student_quantile(level: float, freedom: int) -> float:
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


def statistics(
    metric: Metric,
    predictions: Sequence[str],
    references: Sequence[str],
    *,
    lowercase: bool = False,
    sources: Sequence[str] | None = None,
) -> np.ndarray:
    """Return the (items, statistics) array of a metric over checked texts; errors as `score`."""
    if len(predictions) != len(references) or not len(references):
        counts = f"{len(predictions)} predictions came for {len(references)} references"
        raise DataError(f"{counts}; give the same number of both, at least 1.")
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(prediction, str) or not isinstance(reference, str):
            raise DataError(f"Item {i} has prediction {prediction!r} and reference {reference!r}; give two texts.")
        if not reference.strip():
            raise DataError(f"Reference {i} is empty; every item needs a text to be compared with.")
    fold = (lambda text: fold_whitespace(text).lower()) if lowercase else fold_whitespace
    texts = [[fold(text) for text in side] for side in (predictions, references)]
    if metric.needs_source:
        if sources is None or len(sources) != len(references) or not all(sources):
            raise DataError(
                f"The metric {metric.signature(lowercase).split('|')[0]} reads what was said, besides prediction and "
                "reference; give every row a `text`, or leave the metric out."
            )
        texts.append([fold(text) for text in sources])
    return metric.items(*texts)


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


def _resampled(metric: Metric, items: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Return (samples,) the metric of every resample."""
    draws = _draws(len(items), samples, seed)
    return np.array([metric.total(sums) for counts in draws for sums in counts @ items])


def _quantiles(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [0.5 - _checked(level) / 2, 0.5 + level / 2])
    return float(low), float(high)


def _checked(level: float) -> float:
    if 0.0 < level < 1.0:
        return level
    raise ConfigError(f"The level of an interval is {level}; allowed is a number between 0 and 1, such as 0.95.")
