"""Intervals over seeds, over seeds and rows, and between unpaired runs; and how they are printed."""

import statistics

import numpy as np

from benchmarks.learning.chosen import METRICS
from leaf.evaluation.bootstrap import mean_interval, seeds_for, student_quantile


def crossed_interval(gaps):
    """Compute mean and 95 % half-width of gaps (S, N) where both seeds and rows are samples.

    Two-way random effects: Var = (MS_seeds + MS_rows - MS_rest) / (S N), at the least what seeds or rows alone give,
    and Student's t at Satterthwaite's degrees of freedom, rounded down.
    """
    seeds, rows = gaps.shape
    mean, of_seed, of_row = gaps.mean(), gaps.mean(1), gaps.mean(0)
    rest = gaps - of_seed[:, None] - of_row + mean
    free = np.array([seeds - 1, rows - 1, (seeds - 1) * (rows - 1)])
    squares = [rows * ((of_seed - mean) ** 2).sum(), seeds * ((of_row - mean) ** 2).sum(), (rest**2).sum()]
    parts = np.array(squares) / free / gaps.size
    variance = max(parts[0] + parts[1] - parts[2], parts[0], parts[1])
    if variance == 0.0:
        return float(mean), 0.0
    freedom = max(1, int(variance**2 / (parts**2 / free).sum()))
    return float(mean), student_quantile(0.95, freedom) * float(np.sqrt(variance))


def unpaired(ours, theirs):
    """Compute the difference of two means and its 95 % half-width (Welch; degrees of freedom rounded down)."""
    parts = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    difference, variance = statistics.fmean(ours) - statistics.fmean(theirs), sum(parts)
    if variance == 0.0:
        return difference, 0.0
    freedom = variance**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (ours, theirs), strict=True))
    # A whole number of degrees of freedom may come out as its neighbour below in the last bits.
    return difference, student_quantile(0.95, int(freedom + 1e-9)) * variance**0.5


def shown(values, *, signed=False, digits=2):
    """Format values as mean ± half-width, one value alone, and none as an empty cell."""
    if not values:
        return ""
    shape = f"{'+' if signed else ''}.{digits}f"
    if len(values) == 1:
        return f"{values[0]:{shape}}"
    mean, half = mean_interval(values)
    return f"{mean:{shape}} ± {half:.{digits}f}"


def cells(mine, base):
    """Format a rule's metrics, its differences to the base paired by seed, and the seeds that ±0.5 BLEU takes.

    `mine` and `base` are seed → metric → score.
    """
    both = sorted(mine.keys() & base.keys())
    pairs = {name: [mine[seed][name] - base[seed][name] for seed in both] for name in METRICS}
    made = [shown([scores[name] for scores in mine.values()]) for name in METRICS]
    made += [shown(pairs[name], signed=True) for name in METRICS]
    made.append(str(seeds_for(pairs["bleu"])) if len(both) > 1 else "")
    return made
