"""Compute scores from statistics per item, and their intervals by resampling.

A metric is written as statistics per item, which are added up over the corpus, and a function of the sums. So a
bootstrap resample is a weighted sum of rows, where the weight of an item is how often it was drawn: all resamples are
one matrix product, and no text is scored twice.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from leaf.errors import ConfigError, DataError

# How many weights are in memory at once while resampling: 32 MB, however many samples and items there are.
_WEIGHTS_AT_ONCE = 4_000_000
FEW_RECORDINGS = 20  # below this many an interval is too narrow (docs/evaluating.md has how often it holds the truth)


class Difference(NamedTuple):
    """A difference of two scores, its interval and two-sided p; None where a single recording is no sample."""

    value: float
    low: float | None
    high: float | None
    p: float | None


@dataclass(frozen=True)
class Metric:
    """A corpus metric.

    Attributes:
        items: (predictions, references), and the sources where they are needed → (items, statistics) array.
        total: sum of the statistics over the corpus → value.
        signature: whether case was folded first, on both sides → name, settings and versions.
        needs_source: whether it reads what was said, besides prediction and reference.
        is_kept: whether its statistics are written beside the predictions, because they take data or a model to make.
            Such a metric is a mean: its total is `percentage`.
        less_is_better: whether it counts errors.
        item_total: as `total`, for the statistics of a single item, where that is computed in another way.
        fit: references and the language of each → the metric as it is computed for them; None where it is always the
            same.
        multi_items: as `items`, with a list of references per item, where the metric has a way of its own; else the
            best of them counts.
    """

    items: Callable[..., np.ndarray]
    total: Callable[[np.ndarray], float]
    signature: Callable[[bool], str]
    needs_source: bool = False
    is_kept: bool = False
    less_is_better: bool = False
    item_total: Callable[[np.ndarray], float] | None = None
    fit: Callable[[Sequence[str], Sequence[str | None]], "Metric"] | None = None
    multi_items: Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray] | None = None


@dataclass(frozen=True)
class Scored:
    """One system's scores by one metric or judge.

    The value is the mean over the passes. A resample draws items, or `groups` of items as wholes (one key per item),
    and takes them in every pass: further passes over a recording do not make more recordings. Of a single one there is
    no interval: every resample would be the same.

    Attributes:
        total: sum of the statistics over the items → value.
        passes: (items, statistics) of each pass over the same items.
        less_is_better: whether it counts errors.
        item_total: as `total`, for a single item, where that differs.
    """

    total: Callable[[np.ndarray], float]
    passes: Sequence[np.ndarray]
    less_is_better: bool = False
    item_total: Callable[[np.ndarray], float] | None = None

    def item_values(self) -> np.ndarray:
        """Compute the value of each item, the mean over the passes."""
        total = self.item_total or self.total
        return _mean_of_known(np.array([[total(row) for row in items] for items in self.passes], dtype=np.float64))

    def values(self) -> list[float]:
        """Compute the value of each pass; a pass of which nothing was scored has none."""
        values = [self.total(items.sum(0)) for items in self.passes]
        return [value for value in values if not math.isnan(value)] or [math.nan]

    def value(self) -> float:
        """Compute the mean over the passes."""
        return float(np.mean(self.values()))

    def interval(
        self,
        *,
        groups: Sequence[Hashable] | None = None,
        samples: int = 1000,
        seed: int = 0,
        level: float = 0.95,
    ) -> tuple[float, float] | None:
        """Compute the percentile bootstrap interval of the value; None where a single recording has a score."""
        interval = _percentile_interval(_known(self._resampled_values(groups, samples, seed)), level)
        return None if self._recordings(groups) == 1 else interval

    def against(
        self,
        other: "Scored",
        *,
        groups: Sequence[Hashable] | None = None,
        samples: int = 1000,
        seed: int = 0,
        level: float = 0.95,
    ) -> Difference | None:
        """Compute the difference to another system, self − other, its interval and two-sided p (`paired_bootstrap`).

        Where predictions have no score, it is over the items that both systems have scored, each with the mean over its
        scored passes; None if there are none.
        """
        how: dict[str, Any] = {"groups": groups, "samples": samples, "seed": seed, "level": level}
        if all(known == every for known, every in (self.counts(), other.counts())):
            return self._paired(other, **how)
        both = self.is_scored & other.is_scored
        return self._means_of(both)._paired(other._means_of(both), **how) if both.any() else None

    def counts(self) -> tuple[int, int]:
        """Count the predictions that have a score, and all of them."""
        return sum(int(_has_score(self.total, items).sum()) for items in self.passes), sum(map(len, self.passes))

    @property
    def is_scored(self) -> np.ndarray:
        """Tell (items,) which items have a score in some pass."""
        return np.any([_has_score(self.total, items) for items in self.passes], axis=0)

    def _means_of(self, chosen: np.ndarray) -> "Scored":
        """Take the mean over its scored passes of each chosen item, as the scores of a single pass."""
        values = np.where(chosen, self.item_values(), 0.0)
        return Scored(self.total, [np.stack([values, chosen], 1)])

    def _paired(
        self, other: "Scored", *, groups: Sequence[Hashable] | None, samples: int, seed: int, level: float
    ) -> Difference:
        # Paired: the same seed and the same number of units draw the same resamples for both.
        ours, theirs = (one._resampled_values(groups, samples, seed) for one in (self, other))
        differences = _known(ours - theirs)
        low, high = _percentile_interval(differences, level)
        value = self.value() - other.value()
        if self._recordings(groups) == 1:
            return Difference(value, None, None, None)
        tail = min((differences <= 0).sum(), (differences >= 0).sum())
        return Difference(value, low, high, float(min(1.0, 2 * (tail + 1) / (len(differences) + 1))))

    def _recordings(self, groups: Sequence[Hashable] | None) -> int:
        """Count the units of a resample that have anything to be drawn: a recording without a score adds nothing."""
        return int(np.any([_sum_by_group(items, groups).any(1) for items in self.passes], axis=0).sum())

    def _resampled_values(self, groups: Sequence[Hashable] | None, samples: int, seed: int) -> np.ndarray:
        of_passes = [_resample(self.total, _sum_by_group(p, groups), samples, seed) for p in self.passes]
        return _mean_of_known(np.array(of_passes))


def percentage(sums: np.ndarray) -> float:
    """Compute 100 times the first sum over the second: the total of a mean or a rate.

    A normaliser may leave no word in any reference of a resample: whatever was said is then counted against one.
    """
    return float(100.0 * sums[0] / (sums[1] or 1.0))


def mean_of_scored(sums: np.ndarray) -> float:
    """Compute the mean over the items that have a score, from sum and number; NaN where none has."""
    return float(sums[0] / sums[1]) if sums[1] else math.nan


def _has_score(total: Callable[[np.ndarray], float], items: np.ndarray) -> np.ndarray:
    """Tell (items,) which items have a score: all, but in a mean of what was scored those with a number."""
    return items[:, 1] > 0 if total is mean_of_scored else np.ones(len(items), dtype=bool)


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Compute mean and half-width of Student's t interval, for a handful of seeds; at least two finite values."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2 or not np.isfinite(array).all():
        raise DataError(f"An interval of a mean needs at least 2 finite values; got {array.tolist()}.")
    half = student_quantile(_checked_level(level), len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean()), float(half)


def seeds_for(differences: Sequence[float], half: float = 0.5) -> int:
    """Compute how many paired seeds give a 95 % Student interval of at most ± `half`, at the deviation of these."""
    deviation, n = np.std(differences, ddof=1), 2
    while student_quantile(0.95, n - 1) * deviation / math.sqrt(n) > half:
        n += 1
    return n


def student_quantile(level: float, freedom: int) -> float:
    """Compute t with P(|T| < t) = level, by bisection on the finite series (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
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


def _sum_by_group(items: np.ndarray, groups: Sequence[Hashable] | None) -> np.ndarray:
    """Add up the items of each group, a row per group; without groups the items stay as they are."""
    if groups is None:
        return items
    if len(groups) != len(items):
        raise DataError(f"{len(groups)} group keys came for {len(items)} items; give one per item.")
    index = {key: i for i, key in enumerate(dict.fromkeys(groups))}
    summed = np.zeros((len(index), items.shape[1]))
    np.add.at(summed, [index[key] for key in groups], items)
    return summed


def _draw_weights(units: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw `samples` resamples of so many units: yield (some samples, units) of how often each unit was drawn."""
    if samples < 1:
        raise ConfigError(f"The number of bootstrap samples is {samples}; allowed is 1 or more.")
    generator = np.random.default_rng(seed)
    most = max(1, _WEIGHTS_AT_ONCE // units)
    for start in range(0, samples, most):
        rows = min(most, samples - start)
        # One bincount for all rows: the draws of each row are shifted into a range of their own.
        drawn = generator.integers(units, size=(rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)


def _resample(total: Callable[[np.ndarray], float], items: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Compute (samples,) the value of every resample."""
    draws = _draw_weights(len(items), samples, seed)
    return np.array([total(sums) for weights in draws for sums in weights @ items])


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """Compute the mean over the first axis, without NaN; NaN where there is nothing else."""
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).sum(0) / np.where(known.any(0), known.sum(0), np.nan)


def _known(values: np.ndarray) -> np.ndarray:
    """Leave out the resamples that drew no item with a score: they have no value.

    Raises:
        DataError: none is left.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        raise DataError(f"None of {len(values)} resamples drew an item with a score. Take more, or score more items.")
    return known


def _percentile_interval(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [0.5 - _checked_level(level) / 2, 0.5 + level / 2])
    return float(low), float(high)


def _checked_level(level: float) -> float:
    if 0.0 < level < 1.0:
        return level
    raise ConfigError(f"The level of an interval is {level}; allowed is a number between 0 and 1, such as 0.95.")
