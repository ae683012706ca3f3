"""Intervals by resampling: single systems and pairs, groups and passes, Student's t, and how many seeds they take."""

import numpy as np
import pytest
import sacrebleu

from leaf.errors import DataError
from leaf.evaluation import bootstrap as bootstrap_module
from leaf.evaluation.bootstrap import (
    Scored,
    _draw_weights,
    _resample,
    mean_interval,
    mean_of_scored,
    percentage,
    seeds_for,
    student_quantile,
)
from leaf.evaluation.metrics import METRICS
from leaf.evaluation.registry import bootstrap, metric, paired_bootstrap, score, statistics
from tests.helpers.answers import OURS, THEIRS


def _index(row):
    return [i for i, count in enumerate(row.astype(int)) for _ in range(count)]


@pytest.mark.parametrize("name", list(METRICS))
def test_a_resample_is_scored_as_the_metric_scores_it(name):
    items = metric(name).items(OURS, THEIRS)
    rows = np.concatenate(list(_draw_weights(len(OURS), 20, seed=1)))
    assert rows.sum(1).tolist() == [len(OURS)] * 20
    assert len(np.unique(rows, axis=0)) > 10
    for row, value in zip(rows, _resample(metric(name).total, items, 20, seed=1), strict=True):
        ours, theirs = [[side[i] for i in _index(row)] for side in (OURS, THEIRS)]
        assert value == pytest.approx(score(ours, theirs, [name])[name].value, abs=1e-9)
        if name == "bleu":
            assert value == pytest.approx(sacrebleu.corpus_bleu(ours, [theirs]).score, abs=1e-9)


def test_draws_are_uniform_and_do_not_depend_on_the_memory_allowed(monkeypatch):
    whole = np.concatenate(list(_draw_weights(7, 4000, seed=3)))
    np.testing.assert_allclose(whole.mean(0), 1.0, atol=0.08)  # 5 standard errors: sqrt(6/7 / 4000) = 0.0146
    np.testing.assert_allclose(whole.var(0), 6 / 7, atol=0.12)  # binomial(7, 1/7)
    monkeypatch.setattr(bootstrap_module, "_WEIGHTS_AT_ONCE", 50)
    chunks = list(_draw_weights(7, 4000, seed=3))
    assert max(len(chunk) for chunk in chunks) == 7
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_bootstrap_point_and_interval():
    for name in METRICS:
        value, low, high = bootstrap(OURS, THEIRS, name, groups=["x", "x", "y", "y", "y"])
        assert value == score(OURS, THEIRS, [name])[name].value
        assert low is not None
        assert high is not None
        assert low <= high
    value, low, high = bootstrap(OURS, THEIRS, "bleu", seed=5)
    assert low is not None
    assert high is not None
    assert low <= value <= high
    assert bootstrap(OURS, THEIRS, "bleu", seed=5) == (value, low, high)
    half = bootstrap(OURS, THEIRS, "bleu", seed=5, level=0.5)[1]
    assert half is not None
    assert half > low


def test_the_interval_of_a_share_is_the_binomial_one():
    # 100 items, 30 right: the bootstrap draws binomial(100, 0.3), whose 2.5 and 97.5 % points are 21 and 39.
    _, low, high = bootstrap(["a"] * 30 + ["b"] * 70, ["a"] * 100, "exact_match", samples=4000)
    assert (low, high) == (pytest.approx(21, abs=1), pytest.approx(39, abs=1))


def test_groups_are_drawn_as_wholes():
    # Two groups of 50 equal items: only 0, 50 and 100 can come; items alone would stay near 50.
    ours, theirs, groups = ["a"] * 50 + ["b"] * 50, ["a"] * 100, [("r", i // 50) for i in range(100)]
    assert bootstrap(ours, theirs, "exact_match", groups=groups) == (50.0, 0.0, 100.0)
    low = bootstrap(ours, theirs, "exact_match")[1]
    assert low is not None
    assert low > 35
    # A group key per item is no grouping.
    assert bootstrap(OURS, THEIRS, "wer", groups=range(5)) == bootstrap(OURS, THEIRS, "wer")


def test_paired_bootstrap_sees_a_clear_difference_and_none():
    better = THEIRS * 8
    difference, low, high, p = paired_bootstrap(OURS * 8, better, THEIRS * 8, "chrf")
    assert difference == pytest.approx(100 - score(OURS * 8, better, ["chrf"])["chrf"].value)
    assert low is not None
    assert high is not None
    assert 0 < low <= difference <= high
    assert p == pytest.approx(2 / 1001)
    assert paired_bootstrap(OURS, OURS, THEIRS, "bleu") == (0.0, 0.0, 0.0, 1.0)


def test_paired_bootstrap_turns_round_and_keeps_pairs_together():
    references = ["a", "b", "c", "d"] * 10
    one = ["a", "x", "c", "d"] * 10
    other = ["x", "b", "c", "x"] * 10
    difference, low, high, p = paired_bootstrap(one, other, references, "exact_match", samples=500)
    assert difference == -25.0
    assert low is not None
    assert high is not None
    assert paired_bootstrap(other, one, references, "exact_match", samples=500) == (25.0, -high, -low, p)
    # Whole groups of four: each has the same difference, so every resample has.
    groups = [i // 4 for i in range(40)]
    assert paired_bootstrap(one, other, references, "exact_match", groups=groups)[:3] == (-25.0, -25.0, -25.0)


def test_p_is_uniform_enough_where_systems_do_not_differ():
    generator = np.random.default_rng(0)
    references, small = ["a"] * 60, 0
    for seed in range(60):
        sides = [["a" if right else "b" for right in generator.random(60) < 0.5] for _ in range(2)]
        p = paired_bootstrap(sides[0], sides[1], references, "exact_match", samples=200, seed=seed).p
        assert p is not None
        small += p < 0.05
    assert small <= 9  # 3 expected; 10 or more has probability 0.001


# Two-sided points of Student's t from the usual table.
@pytest.mark.parametrize(
    ("level", "freedom", "point"),
    [
        (0.95, 1, 12.7062),
        (0.95, 2, 4.30265),
        (0.95, 3, 3.18245),
        (0.95, 4, 2.77645),
        (0.95, 9, 2.26216),
        (0.95, 30, 2.04227),
        (0.99, 1, 63.6567),
        (0.99, 5, 4.03214),
        (0.90, 7, 1.89458),
        (0.999, 1, 636.619),
        (0.999, 10, 4.58689),
        (0.95, 100_000, 1.95999),
        (0.50, 1, 1.0),
    ],
)
def test_student_points_against_the_table(level, freedom, point):
    assert student_quantile(level, freedom) == pytest.approx(point, rel=5e-6)


def test_mean_interval():
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert (mean, half) == (2.0, pytest.approx(4.30265 / np.sqrt(3), rel=1e-5))
    assert mean_interval([7.0, 7.0, 7.0]) == (7.0, 0.0)
    for bad in ([1.0], [], [1.0, float("nan")]):
        with pytest.raises(DataError, match="at least 2 finite"):
            mean_interval(bad)


# -- several passes ----------------------------------------------------------------------------------------------------
def _scored(name, passes, references):
    return Scored(metric(name).total, [statistics(metric(name), texts, references) for texts in passes])


def test_passes_are_averaged_and_drawn_together():
    references = ["a", "b", "c", "d"]
    one, two = ["a", "b", "x", "x"], ["a", "b", "c", "x"]
    scored = _scored("exact_match", [one, two], references)
    assert (scored.values(), scored.value()) == ([50.0, 75.0], 62.5)
    # Every pass right or wrong on the same items: two passes are as sure as one, not surer.
    assert (
        _scored("exact_match", [one, one], references).interval()
        == _scored("exact_match", [one], references).interval()
    )
    other = _scored("exact_match", [one], references)
    found = scored.against(other)
    assert found is not None
    difference, low, high, p = found
    assert difference == 12.5
    assert low is not None
    assert high is not None
    assert low <= difference <= high
    assert p is not None
    assert p <= 1.0
    assert other.against(other) == (0.0, 0.0, 0.0, 1.0)


# -- seeds, and resamples without a score ------------------------------------------------------------------------------
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
    found = one.against(worse)
    assert found is not None
    assert found[:3] == (0.5, 0.5, 0.5)
    assert found.p is not None
    assert found.p < 0.01
    # Nothing of a second pass was scored: it does not pull the mean to 0.
    two = Scored(mean_of_scored, [items, np.zeros((4, 2))])
    assert (two.value(), two.values(), two.interval()) == (1.0, [1.0], (1.0, 1.0))
    assert np.isnan(two.item_values()).tolist() == [False, False, True, True]
    with pytest.raises(DataError, match="None of 9 resamples drew an item with a score"):
        Scored(mean_of_scored, [np.zeros((4, 2))]).interval(samples=9)


def test_a_difference_is_over_the_items_that_both_have_scored():
    # Both give 1 to the first two items and 0.2 to the others; the second one's function scores the first two alone.
    whole = Scored(mean_of_scored, [np.array([[1.0, 1.0], [1.0, 1.0], [0.2, 1.0], [0.2, 1.0]])])
    some = Scored(mean_of_scored, [np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])])
    assert (whole.value(), some.value()) == (pytest.approx(0.6), 1.0)
    assert some.against(whole) == (0.0, 0.0, 0.0, 1.0)  # it was +0.4
    assert (whole.counts(), some.counts()) == ((4, 4), (2, 4))
    none = Scored(mean_of_scored, [np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [7.0, 1.0]])])
    assert none.against(some) is None


def test_an_item_that_lacks_a_score_in_one_pass_counts_with_the_others():
    # Item means of the first: 1, 0.5; of the second: 0 (its first pass alone), 0.25. The difference is (1 + 0.25) / 2.
    first = Scored(mean_of_scored, [np.array([[1.0, 1.0], [0.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 1.0]])])
    second = Scored(mean_of_scored, [np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([[0.0, 0.0], [0.5, 1.0]])])
    found = first.against(second)
    assert found is not None
    assert found.value == pytest.approx(0.625)


def test_a_single_recording_has_no_interval_and_no_p():
    assert bootstrap(OURS, THEIRS, "chrf", groups=["a"] * 5) == (score(OURS, THEIRS)["chrf"].value, None, None)
    assert paired_bootstrap(["a", "x"], ["a", "b"], ["a", "b"], "exact_match", groups=["r"] * 2) == (
        50.0,
        None,
        None,
        None,
    )
    # Two recordings, of which one has a score.
    items = np.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
    assert Scored(mean_of_scored, [items]).interval(groups=["a", "a", "b"]) is None


@pytest.mark.parametrize(("recordings", "least", "most"), [(3, 0.7, 0.9), (20, 0.9, 1.0)])
def test_intervals_of_few_recordings_hold_the_truth_too_rarely(recordings, least, most):
    """The figures of docs/evaluating.md: 0.81 and 0.94 of 200 draws, standard errors 0.03 and 0.02."""
    generator, held = np.random.default_rng(0), 0
    groups = list(np.repeat(np.arange(recordings), 20))
    for seed in range(200):
        effects = generator.normal(0, 0.2, recordings)[:, None]  # a recording is harder for one of the two
        rights = [generator.random((recordings, 20)) < np.clip(0.5 + effect, 0, 1) for effect in (0, effects)]
        sides = [np.stack([right.ravel().astype(float), np.ones(right.size)], 1) for right in rights]
        found = Scored(percentage, [sides[1]]).against(
            Scored(percentage, [sides[0]]), groups=groups, samples=400, seed=seed
        )
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
    assert least <= held / 200 <= most
