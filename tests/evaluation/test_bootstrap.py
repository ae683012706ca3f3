"""How many seeds an interval takes."""

import numpy as np
import pytest

from leaf.evaluation.bootstrap import mean_interval, seeds_for


@pytest.mark.parametrize("gaps", [[-1 / 2**0.5, 1 / 2**0.5], [0.0, 2.0, 1.0, 3.0, -1.0, 1.0, 0.5, 1.5]])
def test_the_number_of_seeds_is_the_least_that_gives_the_half_width(gaps):
    def half_width(seeds):
        values = np.resize([-1.0, 1.0], seeds)
        return mean_interval(list(values / values.std(ddof=1) * np.std(gaps, ddof=1)))[1]

    seeds = seeds_for(gaps, half=0.5)
    assert half_width(seeds) <= 0.5 < half_width(seeds - 1)
