"""Weights of distinct completions against enumeration of every set and every order of drawing."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf.credit import PrefixTree, credit_rule
from leaf.credit.sets import (
    ESTIMATORS,
    SetDraw,
    _log_set_probabilities,
    importance,
    nbest,
    rescaled_set,
    set_shares,
    unordered_set,
)
from leaf.errors import ConfigError, DataError


def probability_of_set(p, chosen):
    """Sum over all orders of drawing the set one by one without replacement."""
    total = 0.0
    for order in itertools.permutations(chosen):
        left, product = 1.0, 1.0
        for i in order:
            product *= p[i] / left
            left -= p[i]
        total += product
    return total


def draw_of(p, chosen):
    p = torch.tensor(p, dtype=torch.float64)
    rest = 1 - p[list(chosen)].sum()
    log_rest = rest.log() if len(chosen) < len(p) else torch.tensor(-math.inf, dtype=torch.float64)
    return SetDraw(p[list(chosen)].log(), log_rest, torch.tensor(-math.inf, dtype=torch.float64))


def advantages(name, draw, rewards):
    """Return r − b of a group of single tokens, as a trainer gets it."""
    count = rewards.numel()
    tree = PrefixTree.build(torch.arange(count)[:, None], torch.ones(count, dtype=torch.long))
    return credit_rule(name)(tree, rewards, surprisal=torch.ones(count, 1), draw=draw)[:, 0]


def policies(size):
    weights = st.lists(st.floats(-8, 3), min_size=size, max_size=size)
    return weights.map(lambda values: torch.tensor(values, dtype=torch.float64).softmax(0).tolist())


@settings(max_examples=30, deadline=None)
@given(policies(6), st.integers(2, 5))
def test_the_integral_is_the_sum_over_all_orders(p, size):
    for chosen in itertools.combinations(range(6), size):
        whole, without, without_two = _log_set_probabilities(draw_of(p, chosen).log_prob, draw_of(p, chosen).log_rest)
        assert float(whole.exp()) == pytest.approx(probability_of_set(p, chosen), rel=1e-9)
        for a, s in enumerate(chosen):
            domain = [q / (1 - p[s]) for i, q in enumerate(p) if i != s]
            inner = [i - (i > s) for i in chosen if i != s]
            assert float(without[a].exp()) == pytest.approx(probability_of_set(domain, inner), rel=1e-7)
        a, b = 0, 1
        s, o = chosen[a], chosen[b]
        domain = [q / (1 - p[s] - p[o]) for i, q in enumerate(p) if i not in (s, o)]
        inner = [i - (i > s) - (i > o) for i in chosen if i not in (s, o)]
        assert float(without_two[a, b].exp()) == pytest.approx(probability_of_set(domain, inner), rel=1e-6)


def expected_gradient(p, rewards, size, estimator):
    """Sum P(S) Σ_s c_s ∇ log p(s) over all sets; the gradient is in the logits of a softmax."""
    p_all, r_all = torch.tensor(p, dtype=torch.float64), torch.tensor(rewards, dtype=torch.float64)
    gradient = torch.zeros(len(p), dtype=torch.float64)
    for chosen in itertools.combinations(range(len(p)), size):
        weight, baseline = estimator(draw_of(p, chosen))
        share = weight * (r_all[list(chosen)] - baseline @ r_all[list(chosen)])
        score = torch.eye(len(p), dtype=torch.float64)[list(chosen)] - p_all
        gradient += probability_of_set(p, chosen) * (share @ score)
    return gradient


@settings(max_examples=30, deadline=None)
@given(policies(6), st.lists(st.floats(-2, 2), min_size=6, max_size=6), st.integers(2, 5))
def test_the_unordered_set_estimator_is_unbiased(p, rewards, size):
    p_all, r_all = torch.tensor(p, dtype=torch.float64), torch.tensor(rewards, dtype=torch.float64)
    truth = p_all * (r_all - p_all @ r_all)
    torch.testing.assert_close(expected_gradient(p, rewards, size, unordered_set), truth, rtol=1e-6, atol=1e-9)


def test_the_biased_estimators_are_biased_and_the_test_can_tell():
    p, rewards = [0.5, 0.2, 0.15, 0.1, 0.04, 0.01], [1.0, 0.0, 0.5, 0.2, 0.9, 0.1]
    p_all, r_all = torch.tensor(p, dtype=torch.float64), torch.tensor(rewards, dtype=torch.float64)
    truth = p_all * (r_all - p_all @ r_all)
    for estimator in (rescaled_set, nbest):
        assert float((expected_gradient(p, rewards, 3, estimator) - truth).norm() / truth.norm()) > 0.02


@pytest.mark.parametrize("size", [2, 3])
def test_the_weights_of_the_old_policy_stay_right_for_a_new_one_with_the_ratio_of_whole_completions(size):
    """Σ w_s ρ_s (r_s − b_s) ∇ log p_new(s), with sets and weights of the old policy, has the new policy's gradient."""
    old = torch.tensor([0.5, 0.2, 0.15, 0.1, 0.04, 0.01], dtype=torch.float64)
    new = torch.tensor([0.3, 0.3, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, 0.5, 0.2, 0.9, 0.1], dtype=torch.float64)
    gradient = torch.zeros(6, dtype=torch.float64)
    for chosen in map(list, itertools.combinations(range(6), size)):
        weight, baseline = unordered_set(draw_of(old.tolist(), chosen))
        share = weight * (new / old)[chosen] * (rewards[chosen] - baseline @ rewards[chosen])
        score = torch.eye(6, dtype=torch.float64)[chosen] - new
        gradient += probability_of_set(old.tolist(), chosen) * (share @ score)
    torch.testing.assert_close(gradient, new * (rewards - new @ rewards), rtol=1e-6, atol=1e-9)


def test_a_hand_worked_pair():
    """Of three outcomes 0.5, 0.3, 0.2 the first two: P = 0.5·0.3/0.5 + 0.3·0.5/0.7."""
    weight, baseline = unordered_set(draw_of([0.5, 0.3, 0.2], (0, 1)))
    whole = 0.3 + 0.15 / 0.7
    # Without the first, the second has 0.3/0.5; without the second, the first 0.5/0.7.
    expected = torch.tensor([0.5 * 0.6 / whole, 0.3 * (5 / 7) / whole], dtype=torch.float64)
    torch.testing.assert_close(weight, expected, rtol=1e-12, atol=0)
    # B[0, 1] = p(1) P^{D∖{0,1}}(∅) / P^{D∖0}({1}) = 0.3 / 0.6.
    expected = torch.tensor([[0.5, 0.5], [0.7, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(baseline, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("exponent", [-30.0, -80.0, -500.0, -800.0, -5000.0])
def test_improbable_completions_give_rloo_exactly(exponent):
    log_prob = exponent + torch.linspace(-1, 1, 8, dtype=torch.float64)
    weight, _ = unordered_set(SetDraw.of(log_prob))
    torch.testing.assert_close(weight, torch.full((8,), 1 / 8, dtype=torch.float64), rtol=1e-9, atol=0)
    rewards = torch.tensor([1.0, 0.0, 0.3, 0.2, 0.9, 0.5, 0.5, 0.1], dtype=torch.float64)
    rloo = (rewards - rewards.mean()) * 8 / 7
    given = advantages("unordered_set", SetDraw.of(log_prob), rewards)
    torch.testing.assert_close(given, rloo, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_completion_that_ran_away_has_next_to_no_weight(name):
    """200 tokens of 4 nats each, beside answers of a few."""
    log_prob = torch.tensor([-1.0, -2.0, -3.0, -800.0, -900.0], dtype=torch.float64)
    draw = SetDraw(log_prob, SetDraw.of(log_prob).log_rest, torch.tensor(-799.0).double())
    weight, baseline = ESTIMATORS[name](draw)
    assert weight.isfinite().all()
    assert baseline.isfinite().all()
    assert float(weight.sum()) == pytest.approx(1.0)


def test_a_set_of_nearly_all_mass_gives_the_exact_gradient():
    p = torch.tensor([0.7, 0.2, 0.1 - 2e-9, 1e-9], dtype=torch.float64)
    weight, baseline = unordered_set(SetDraw(p.log(), torch.tensor(1e-9).double().log(), torch.tensor(-math.inf)))
    torch.testing.assert_close(weight[:3], p[:3], rtol=1e-6, atol=0)
    torch.testing.assert_close(baseline[0, :3], p[:3], rtol=1e-6, atol=0)


def test_all_there_is_gives_the_exact_gradient():
    p = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    weight, baseline = unordered_set(SetDraw(p.log(), torch.tensor(-math.inf), torch.tensor(-math.inf)))
    torch.testing.assert_close(weight, p)
    torch.testing.assert_close(baseline, p.expand(3, 3))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("count", [2, 16, 64])
def test_weights_are_finite_and_a_constant_reward_changes_nothing(name, count):
    generator = torch.Generator().manual_seed(count)
    log_prob = torch.log_softmax(3 * torch.randn(4 * count, generator=generator, dtype=torch.float64), 0)
    noise = -torch.empty(4 * count, dtype=torch.float64).exponential_(generator=generator).log()
    keys = (log_prob + noise).sort(descending=True)
    chosen, threshold = keys.indices[:count], keys.values[count]
    draw = SetDraw(log_prob[chosen], log_prob[keys.indices[count:]].logsumexp(0), threshold)
    rewards = torch.rand(count, generator=generator, dtype=torch.float64)
    given = advantages(name, draw, rewards)
    assert given.isfinite().all()
    torch.testing.assert_close(advantages(name, draw, rewards + 5.0), given, rtol=1e-6, atol=1e-9)
    assert float(set_shares(draw, ESTIMATORS[name]).sum()) == pytest.approx(count)


def test_importance_weights_estimate_the_mean_and_need_a_threshold():
    p = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.2, 0.6, 0.0, 0.9, 0.4], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    total = 0.0
    for _ in range(20_000):
        keys = (p.log() - torch.empty(6, dtype=torch.float64).exponential_(generator=generator).log()).sort(
            descending=True
        )
        chosen = keys.indices[:3]
        draw = SetDraw(p[chosen].log(), p[keys.indices[3:]].sum().log(), keys.values[3])
        total += float(importance(draw)[0] @ rewards[chosen])
    assert total / 20_000 == pytest.approx(float(p @ rewards), abs=0.03)  # normalised: a small bias remains
    with pytest.raises(DataError, match="threshold"):
        importance(SetDraw.of(p[:3].log()))


def test_the_expected_reward_is_estimated_without_bias():
    p, rewards = [0.5, 0.2, 0.15, 0.1, 0.04, 0.01], torch.tensor([1.0, 0.0, 0.5, 0.2, 0.9, 0.1], dtype=torch.float64)
    total = 0.0
    for chosen in itertools.combinations(range(6), 3):
        weight, _ = unordered_set(draw_of(p, chosen))
        total += probability_of_set(p, chosen) * float(weight @ rewards[list(chosen)])
    assert total == pytest.approx(float(torch.tensor(p, dtype=torch.float64) @ rewards), rel=1e-9)


def test_degenerate_groups_get_exactly_zero():
    draw = draw_of([0.5, 0.3, 0.1, 0.1], (0, 1, 2))
    nan = math.nan
    for rewards in ([0.3, 0.3, 0.3], [nan, nan, nan], [0.5, nan, nan], [nan, 0.7, 0.7]):
        assert advantages("unordered_set", draw, torch.tensor(rewards)).tolist() == [0.0, 0.0, 0.0]
    given = advantages("unordered_set", draw, torch.tensor([1.0, nan, 0.0]))
    assert given[1] == 0.0
    assert given[0] > 0 > given[2]


def test_what_cannot_be_a_set_is_refused():
    with pytest.raises(DataError, match=r"add up to 1\.2"):
        SetDraw.of(torch.tensor([0.7, 0.5]).log())
    with pytest.raises(ConfigError, match="Did you mean 'unordered_set'"):
        credit_rule("unorderd_set")
    tree = PrefixTree.build(torch.tensor([[0], [1]]), torch.tensor([1, 1]))
    with pytest.raises(ConfigError, match="Set rollout: distinct"):
        credit_rule("unordered_set")(tree, torch.tensor([0.0, 1.0]), surprisal=torch.ones(2, 1))
