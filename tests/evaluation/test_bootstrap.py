"""How many seeds an interval takes, and what a resample is worth of which nothing was scored."""

import numpy as np
import pytest

from leaf.errors import DataError
from leaf.evaluation.bootstrap import Scored, mean_interval, mean_of_scored, seeds_for


@pytest.mark.parametrize("gaps", [[-1 / 2**0.5, 1 / 2**0.5], [0.0, 2.0, 1.0, 3.0, -1.0, 1.0, 0.5, 1.5]])
def test_the_number_of_seeds_is_the_least_that_gives_the_half_width(gaps):
    def half_width(seeds):
        values = np.resize([-1.0, 1.0], seeds)
        return mean_interval(list(values / values.std(ddof=1) * np.std(gaps, ddof=1)))[1]

    seeds = seeds_for(gaps, half=0.5)
    assert half_width(seeds) <= 0.5 < half_width(seeds - 1)


def test_a_resample_without_a_score_has_no_value_and_is_no_zero():
    items = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])  # two of four rows are not scored
    one = Scored(mean_of_scored, [items])
    assert one.value() == 1.0
    assert one.interval() == (1.0, 1.0)
    worse = Scored(mean_of_scored, [items * [0.5, 1.0]])
    difference, low, high, p = one.against(worse)
    assert (difference, low, high) == (0.5, 0.5, 0.5)
    assert p < 0.01
    # Nothing of a second pass was scored: it does not pull the mean to 0.
    two = Scored(mean_of_scored, [items, np.zeros((4, 2))])
    assert (two.value(), two.values(), two.interval()) == (1.0, [1.0], (1.0, 1.0))
    assert np.isnan(two.item_values()).tolist() == [False, False, True, True]
    with pytest.raises(DataError, match="None of 9 resamples drew an item with a score"):
        Scored(mean_of_scored, [np.zeros((4, 2))]).interval(samples=9)
