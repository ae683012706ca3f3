"""Compute scores from statistics per item, and their intervals by resampling."""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from leaf.errors import ConfigError, DataError

# Counts held at once while resampling: 32 MB, however many samples and items.
_COUNTS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Metric:
    """Define a corpus metric.

    Attributes:
        items: (predictions, references), and the sources where they are needed → (items, statistics) array.
        total: sum of the statistics over the corpus → value.
        signature: whether both sides were lower-cased first → name, settings and versions.
        needs_source: whether it reads what was said, besides prediction and reference.
        is_kept: whether its statistics are written beside the predictions, because they take data or a model to make.
            Such a metric is a mean: its total is `percentage`.
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
    """Hold one system's scores by one metric or judge.

    The value is the mean over the passes. A resample draws items, or `groups` of items as wholes (one key per item),
    and takes them in every pass: passes over one recording are no further recordings.

    Attributes:
        total: sum of the statistics over the items → value.
        passes: (items, statistics) of each pass over the same items.
        less_is_better: whether it counts errors.
    """

    total: Callable[[np.ndarray], float]
    passes: Sequence[np.ndarray]
    less_is_better: bool = False

    def values(self) -> list[float]:
        """Return the value of each pass."""
        return [self.total(items.sum(0)) for items in self.passes]

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
        return np.mean([_resampled(self.total, _grouped(p, groups), samples, seed) for p in self.passes], axis=0)


def percentage(sums: np.ndarray) -> float:
    """Return 100 times the first sum over the second: the total of a mean or a rate."""
    return float(100.0 * sums[0] / sums[1])


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


def _resampled(total: Callable[[np.ndarray], float], items: np.ndarray, samples: int, seed: int) -> np.ndarray:
    """Return (samples,) the metric of every resample."""
    draws = _draws(len(items), samples, seed)
    return np.array([total(sums) for counts in draws for sums in counts @ items])


def _quantiles(values: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [0.5 - _checked(level) / 2, 0.5 + level / 2])
    return float(low), float(high)


def _checked(level: float) -> float:
    if 0.0 < level < 1.0:
        return level
    raise ConfigError(f"The level of an interval is {level}; allowed is a number between 0 and 1, such as 0.95.")
