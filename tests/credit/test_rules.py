"""Credit rules worked by hand and against the oracle: SPO, Max-RL, shrunken baselines, LEAF's edges and boundaries."""

import math
import statistics

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import leaf
from leaf.credit import (
    CREDIT_RULES,
    credit,
    credit_rule,
    entropy_boundaries,
    even_boundaries,
    leaf_spans,
    select_boundaries,
)
from leaf.errors import ConfigError
from tests.helpers import oracle
from tests.helpers.groups import NAN, PLAIN_RULES, as_tensors, built, random_group

SEEDS = st.integers(0, 10**9)


def test_the_rules_by_name():
    relatives = ["grpo", "dr_grpo", "rloo", "max_rl", "tempo", "spo", "treerl", "treepo", "shrunken"]
    assert list(CREDIT_RULES) == ["leaf", *relatives]
    assert {name: rule.__name__ for name, rule in CREDIT_RULES.items()} == {name: name for name in CREDIT_RULES}


def test_whole_segments_for_spo():
    # (1, 2, 3), (1, 2, 4), (5, 6, 7): mean 1/2, V̂(1) = V̂(1, 2) = 5/8.
    tree, rewards = built([[1, 2, 3], [1, 2, 4], [5, 6, 7]], [1.0, 0.25, 0.25])
    assert credit_rule("spo", credited="branching")(tree, rewards).tolist() == [
        [0.125, 0, 0.375],
        [0.125, 0, -0.375],
        [-0.25, 0, 0],
    ]
    whole = credit_rule("spo", credited="all")(tree, rewards)
    assert whole.tolist() == [[0.125, 0.125, 0.375], [0.125, 0.125, -0.375], [-0.25] * 3]


def test_spo_credits_the_tokens_of_which_the_policy_was_unsure():
    # The same group; −ln 0.9 = 0.105. Segments (1, 2), (3), (4), (5, 6, 7) differ by 1/8, 3/8, −3/8, −1/4.
    tree, rewards = built([[1, 2, 3], [1, 2, 4], [5, 6, 7]], [1.0, 0.25, 0.25])
    surprisal = torch.tensor([[0.2, 0.1, 2.0], [0.2, 0.1, 0.05], [1.0, 0.11, 0.0]])
    got = credit_rule("spo")(tree, rewards, surprisal=surprisal)
    assert got.tolist() == [[0.125, 0, 0.375], [0.125, 0, 0], [-0.25, -0.25, 0]]
    half = credit_rule("spo", probability=0.5)(tree, rewards, surprisal=surprisal)
    assert half.tolist() == [[0, 0, 0.375], [0, 0, 0], [-0.25, 0, 0]]
    with pytest.raises(ConfigError, match="reads surprisal for its mask"):
        credit_rule("spo")(tree, rewards)


def test_max_rl_refuses_rewards_below_zero():
    tree, rewards = built([[1, 2], [1, 3]], [1.0, -0.5])
    with pytest.raises(ConfigError, match=r"divides by the mean reward, and -0\.5 is below 0"):
        credit_rule("max_rl")(tree, rewards)


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_whole_segments_equal_the_oracle(seed):
    completions, rewards, _ = random_group(seed)
    tree, reward = built(completions, rewards)
    want = oracle.per_token("spo_whole_segment", completions, rewards, tree.tokens.shape[1])
    got = credit_rule("spo", credited="all")(tree, reward)
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float64).reshape(got.shape), atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_step_credit_telescopes_to_the_own_reward(seed):
    """Sums of SPO's credit over a completion nobody repeats or continues are r − mean."""
    completions, rewards, _ = random_group(seed)
    tree, reward = built(completions, rewards)
    total = credit_rule("spo", credited="branching")(tree, reward).sum(1)
    deviation = credit_rule("dr_grpo")(tree, reward)
    scored = [c for c, r in zip(completions, rewards, strict=True) if not math.isnan(r)]
    for i, c in enumerate(completions):
        if c and not math.isnan(rewards[i]) and sum(other[: len(c)] == c for other in scored) == 1:
            assert total[i].item() == pytest.approx(deviation[i, 0].item(), abs=1e-9)


# -- shrunken baselines ------------------------------------------------------------------------------------------------
def test_shrunken_with_the_own_reward_by_hand():
    # Mean 1/2, V̂(1) = V̂(1, 2) = 5/8; κ = 1: Ṽ(1) = (5/4 + 1/2) / 3 = 7/12, Ṽ(1, 2) = (5/4 + 7/12) / 3 = 11/18.
    # The third is alone from its first token on: Ṽ(5) = (1/4 + 1/2) / 2 = 3/8, Ṽ(5, 6) = (1/4 + 3/8) / 2 = 5/16.
    tree, rewards = built([[1, 2, 3], [1, 2, 4], [5, 6, 7]], [1.0, 0.25, 0.25])
    got = credit_rule("shrunken", kappa=1.0, leave_one_out=False)(tree, rewards)
    want = [[1 / 2, 5 / 12, 7 / 18], [-1 / 4, -1 / 3, -13 / 36], [-1 / 4, -1 / 8, -1 / 16]]
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float64))


def test_shrunken_without_the_own_reward_by_hand():
    # κ = 1. Roots: 1/4, 5/8, 5/8. Ṽ(1): (1/4 + 1/4) / 2 and (1 + 5/8) / 2; the third keeps 5/8.
    tree, rewards = built([[1, 2], [1, 3], [4, 5]], [1.0, 0.25, 0.25])
    got = credit_rule("shrunken", kappa=1.0, leave_one_out=True)(tree, rewards)
    assert got.tolist() == [[0.75, 0.75], [-0.375, 0.25 - 0.8125], [-0.375, -0.375]]


def test_shrunken_between_its_limits():
    """κ = 0 is r − V̂(prefix); for large κ it is Dr. GRPO, or RLOO with the own reward left out."""
    tree, rewards = built([[1, 2, 3], [1, 2, 4], [5, 6, 7]], [1.0, 0.25, 0.25])
    plain = credit_rule("shrunken", kappa=0.0, leave_one_out=False)(tree, rewards)
    assert plain.tolist() == [[0.5, 0.375, 0.375], [-0.25, -0.375, -0.375], [-0.25, 0.0, 0.0]]
    others = credit_rule("shrunken", kappa=0.0, leave_one_out=True)(tree, rewards)
    assert others.tolist() == [[0.75, 0.75, 0.75], [-0.375, -0.75, -0.75], [-0.375, -0.375, -0.375]]
    for leave_one_out, limit in ((True, "rloo"), (False, "dr_grpo")):
        far = credit_rule("shrunken", kappa=1e9, leave_one_out=leave_one_out)(tree, rewards)
        assert torch.allclose(far, credit_rule(limit)(tree, rewards), atol=1e-8)


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.sampled_from([0.0, 0.3, 1.0, 7.0]), st.booleans())
def test_shrunken_equals_the_oracle(seed, kappa, leave_one_out):
    completions, rewards, _ = random_group(seed)
    tree, reward = built(completions, rewards, extra=seed % 3)
    options = {"kappa": kappa, "leave_one_out": leave_one_out}
    want = oracle.per_token("shrunken", completions, rewards, tree.tokens.shape[1], **options)
    got = credit_rule("shrunken", **options)(tree, reward)
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float64).reshape(got.shape), atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.integers(0, 7), st.floats(-2, 2))
def test_a_baseline_without_the_own_reward_does_not_move_with_it(seed, i, shift):
    """So r − baseline moves one to one with r, at every token of the completion: the gradient stays unbiased."""
    completions, rewards, _ = random_group(seed)
    i %= len(completions)
    tree, reward = built(completions, rewards)
    moved = reward.clone()
    moved[i] += shift
    known = {r for c, r in zip(completions, reward.tolist(), strict=True) if c and not math.isnan(r)}
    assume(len(known) > 1 and completions[i] and not math.isnan(rewards[i]))
    assume(len({m for c, m in zip(completions, moved.tolist(), strict=True) if c and not math.isnan(m)}) > 1)
    rule = credit_rule("shrunken", leave_one_out=True)
    change = rule(tree, moved) - rule(tree, reward)
    want = torch.full((len(completions[i]),), shift, dtype=torch.float64)
    assert torch.allclose(change[i, : len(completions[i])], want, atol=1e-9)


# -- LEAF's edges ------------------------------------------------------------------------------------------------------
def test_the_statistics_count_each_span_once_and_no_empty_one():
    """Boundaries 3 and 5; the pair that ended at 2 has one span each, though it is grouped at both boundaries."""
    completions = [[1, 2], [1, 2], [1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 9, 9]]
    tree, rewards = built(completions, [1.0, 1.0, 0.0, 1.0])
    # V̂(root) = 3/4. The pair: V̂ = 1. The others share (1, 2, 3): V̂ = 1/2.
    raw = [[0.5 / math.sqrt(2)], [0.5 / math.sqrt(2)], [-0.5 / math.sqrt(2), -1.25], [-0.5 / math.sqrt(2), 0.75]]
    cuts = torch.tensor([3, 5])
    _, spans = leaf_spans(tree, rewards, boundaries=cuts)
    assert [[(s.start, s.end, s.size) for s in each] for each in spans] == [
        [(0, 2, 2)],
        [(0, 2, 2)],
        [(0, 3, 2), (3, 6, 1)],
        [(0, 3, 2), (3, 6, 1)],
    ]
    assert [[s.raw for s in each] for each in spans] == [pytest.approx(each) for each in raw]
    flat = [x for each in raw for x in each]
    mean, std = statistics.mean(flat), statistics.stdev(flat)
    got = credit(CREDIT_RULES["leaf"], tree, rewards, boundaries=cuts)
    assert got[0].tolist() == pytest.approx([(raw[0][0] - mean) / std] * 2 + [0.0] * 4)
    assert got[2].tolist() == pytest.approx([(raw[2][0] - mean) / std] * 3 + [(raw[2][1] - mean) / std] * 3)
    assert [s.advantage for s in spans[3]] == pytest.approx([(x - mean) / std for x in raw[3]])
    assert [s.value for s in spans[3]] == [0.5, 1.0]
    assert [s.node for s in spans[3]] == [int(tree.node[3, 2]), -1]


def test_the_deviation_is_floored():
    """Rewards that differ by 2e-9 have credits ±2e-9 and a deviation below 1e-6, which then divides."""
    tree, rewards = built([[1], [2]], [0.0, 2e-9])
    got = credit(CREDIT_RULES["leaf"], tree, rewards, boundaries=torch.tensor([1]))
    assert got.flatten().tolist() == pytest.approx([-2e-3, 2e-3], rel=1e-6)


def test_a_prefix_everybody_shares_earns_exactly_nothing():
    rewards = [math.sqrt(i) for i in range(60)]
    tree, reward = built([[7, 7, i] for i in range(60)], rewards)
    for name in ("spo", "treerl"):
        assert credit(PLAIN_RULES[name], tree, reward)[:, :2].abs().max().item() == 0.0


def test_a_completion_that_ends_at_the_boundary_has_ended():
    tree, rewards = built([[1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 5], [6]], [1.0, 0.5, 0.0, 0.5])
    cuts = torch.tensor([3])
    assert [s.size for s in leaf_spans(tree, rewards, boundaries=cuts)[1][1]] == [3, 1]
    _, spans = leaf_spans(tree, rewards, boundaries=cuts, group_ended=False)
    assert [s.size for s in spans[1]] == [2, 1]
    assert [(s.start, s.end, s.node, s.raw) for s in spans[0]] == [(0, 3, -1, 1.0)]


def test_unscored_completions_are_left_out_of_n():
    tree, rewards = built([[1, 2], [1, 3], [1, 4], [5, 6]], [1.0, 0.0, NAN, 0.5])
    _, spans = leaf_spans(tree, rewards, boundaries=torch.tensor([1]))
    assert spans[0][0].size == 2
    assert spans[2] == []
    assert tree.count[tree.node[0, 0]].item() == 3


def test_public_results_have_the_callers_dtype_and_width():
    tokens = torch.tensor([[1, 2, 0, 0], [1, 3, 4, 0]], dtype=torch.int32)
    lengths = torch.tensor([2, 3], dtype=torch.int32)
    surprisal = torch.tensor([[0.1, 1.0, NAN, NAN], [0.1, 2.0, 0.2, NAN]])
    got = leaf.leaf_advantages(tokens, lengths, surprisal, torch.tensor([1.0, 0.0]))
    assert got.dtype == torch.float32
    assert got.shape == (2, 4)
    assert bool((got[:, 3] == 0).all())
    assert got[0, 2].item() == 0.0
    assert leaf.grpo_advantages(torch.tensor([1.0, 0.0]), torch.tensor([2, 3])).shape == (2, 3)
    assert leaf.grpo_advantages(torch.tensor([1.0, 0.0]), torch.tensor([0, 0])).shape == (2, 0)


def test_the_surprisal_carries_no_gradient_into_credit():
    surprisal = torch.rand(2, 4, requires_grad=True)
    tokens = torch.tensor([[1, 2, 3, 4], [1, 5, 6, 7]])
    got = leaf.leaf_advantages(tokens, torch.tensor([4, 4]), surprisal, torch.tensor([1.0, 0.0]))
    assert not got.requires_grad


# -- boundaries --------------------------------------------------------------------------------------------------------
def test_entropy_chooses_by_the_same_rule():
    entropy = torch.tensor([[9.0, 1.0, 5.0, 4.0, 0.0, 0.0], [9.0, 2.0, 0.0, 4.5, 3.0, 8.0]])
    assert entropy_boundaries(entropy, torch.tensor([4, 6])).tolist() == [2, 5]


def test_even_boundaries_by_hand():
    assert even_boundaries(torch.tensor([10, 9]), max_boundaries=2).tolist() == [3, 6]
    assert even_boundaries(torch.tensor([10, 9]), max_boundaries=2, min_prefix=4).tolist() == [6]
    assert even_boundaries(torch.tensor([4, 9]), max_boundaries=3).tolist() == [1, 3]  # 2 is too near to 1
    assert even_boundaries(torch.tensor([0, 0])).tolist() == []


@settings(max_examples=300, deadline=None)
@given(SEEDS, st.integers(0, 5), st.integers(0, 4))
def test_boundaries_equal_the_oracle(seed, budget, min_prefix):
    completions, _, surprisal = random_group(seed)
    _, lengths, nats, _ = as_tensors(completions, [0.0] * len(completions), surprisal, extra=seed % 3)
    want = oracle.boundaries(surprisal, lengths.tolist(), budget, min_prefix)
    assert select_boundaries(nats, lengths, max_boundaries=budget, min_prefix=min_prefix).tolist() == want
