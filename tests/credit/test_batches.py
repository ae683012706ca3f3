import math
import statistics

import pytest
import torch

from leaf.credit import BATCH_RULES, BatchCredit, RewardedGroup, batch_credit, credit_rule, most_uncertain
from leaf.credit.batches import LEARN_FROM_EQUAL
from leaf.credit.tree import PrefixTree
from leaf.errors import ConfigError
from tests.helpers.groups import as_tensors, random_group

NAN = float("nan")


def group(completions, rewards, entropy=None, surprisal=None):
    zeros = [[0.0] * len(c) for c in completions]
    tokens, lengths, nats, reward = as_tensors(completions, rewards, surprisal or zeros)
    _, _, h, _ = as_tensors(completions, rewards, entropy or zeros)
    return RewardedGroup(PrefixTree.build(tokens, lengths), reward, nats, h)


def test_reinforce_pp_whitens_over_the_tokens_of_all_groups():
    # Rewards over tokens: 1 1 | 0 || 0.5 | 0.5 0.5 0.5: mean 4/7, squared deviations 2·9/49 + 16/49 + 4·1/196.
    groups = [group([[1, 2], [3]], [1.0, 0.0]), group([[1], [1, 2, 3]], [0.5, 0.25 * 2])]
    values = [1, 1, 0, 0.5, 0.5, 0.5, 0.5]
    spread = math.sqrt(statistics.variance(values) + 1e-8)
    first, second = batch_credit("reinforce_pp")(groups)
    assert first.tolist() == [
        pytest.approx([(1 - 4 / 7) / spread] * 2),
        pytest.approx([(0 - 4 / 7) / spread, 0.0]),
    ]
    # Its rewards are equal, and below the batch's mean: it learns. Padding stays 0.
    assert second.tolist() == [
        pytest.approx([(0.5 - 4 / 7) / spread, 0.0, 0.0]),
        pytest.approx([(0.5 - 4 / 7) / spread] * 3),
    ]


def test_the_baseline_of_reinforce_pp_is_the_mean_of_the_group():
    groups = [group([[1, 2], [3]], [1.0, 0.0]), group([[1], [1, 2, 3]], [4.0, 2.0])]
    values = [0.5, 0.5, -0.5, 1.0, -1.0, -1.0, -1.0]
    mean, spread = statistics.mean(values), math.sqrt(statistics.variance(values) + 1e-8)
    first, second = batch_credit("reinforce_pp_baseline")(groups)
    assert first[0].tolist() == pytest.approx([(0.5 - mean) / spread] * 2)
    assert second[1].tolist() == pytest.approx([(-1 - mean) / spread] * 3)


def test_treepo_is_whitened_over_the_batch():
    groups = [group(*random_group(seed)[:2]) for seed in range(40, 60)]
    plain = [credit_rule("treepo")(one.tree, one.rewards) for one in groups]
    got = batch_credit("treepo_whitened")(groups)
    learned = [one.learned for one in groups]
    flat = torch.cat([a[m].double() for a, m in zip(plain, learned, strict=True)])
    for one, want, mask in zip(got, plain, learned, strict=True):
        if bool((one != 0).any()):
            expected = (want.double() - flat.mean()) / (flat.var() + 1e-8).sqrt()
            assert torch.allclose(one[mask].double(), expected[mask], atol=1e-9)


def test_leaf_takes_its_z_score_over_the_spans_of_all_groups():
    # B = 0: each completion is one span of raw credit 2 (r − mean): 1, −1 and 0.2, −0.2.
    groups = [group([[1, 2], [3]], [1.0, 0.0]), group([[1], [1, 2, 3]], [0.6, 0.4])]
    spread = statistics.stdev([1, -1, 0.2, -0.2])
    first, second = batch_credit("leaf_batch", max_boundaries=0)(groups)
    assert first.tolist() == [pytest.approx([1 / spread] * 2), pytest.approx([-1 / spread, 0])]
    assert second[1].tolist() == pytest.approx([-0.2 / spread] * 3)
    # Of one group alone it is LEAF.
    alone = group([[1, 2, 3], [1, 2, 4], [1, 5, 6]], [1.0, 0.5, 0.0], surprisal=[[0, 1, 2.0], [0, 1, 3.0], [0, 1.5, 0]])
    (got,) = batch_credit("leaf_batch")([alone])
    assert torch.allclose(got, credit_rule("leaf")(alone.tree, alone.rewards, surprisal=alone.surprisal))


def test_gtpo_by_hand():
    # At position 0 the two good ones have entropies 3 and 1: shares 2 · 3/4 and 2 · 1/4; at 1 the other way round.
    entropy = [[3.0, 1.0], [1.0, 3.0], [4.0, 1.0], [1.0, 4.0]]
    one = group([[1, 2], [1, 3], [4, 5], [6, 7]], [1.0, 1.0, 0.0, 0.0], entropy)
    plus = [1.15, 1.05, 1.05, 1.15, 0, 0, 0, 0]
    # Of the bad ones the shares are 2 · (1/4) / (5/4) and 2 · 1 / (5/4): a confident mistake costs more.
    minus = [0, 0, 0, 0, -1.04, -1.16, -1.16, -1.04]
    z = [
        (p - statistics.mean(plus)) / statistics.stdev(plus) + (m - statistics.mean(minus)) / statistics.stdev(minus)
        for p, m in zip(plus, minus, strict=True)
    ]
    (got,) = batch_credit("gtpo")([one])
    assert got.flatten().tolist() == pytest.approx(z)
    (flat,) = batch_credit("gtpo", bonus=0.0)([one])
    assert bool((flat[:2] == flat[0, 0]).all())


@pytest.mark.parametrize("name", ["gtpo", "grpo_s"])
def test_shaping_by_entropy_needs_good_and_bad_answers(name):
    entropy = [[3.0, 1.0], [1.0, 3.0], [2.0, 2.0]]
    for rewards in ([0.1, 0.4, NAN], [8.0, 12.0, 9.0], [0.5, 0.9, NAN]):
        (got,) = batch_credit(name)([group([[1, 2], [1, 3], [4, 5]], rewards, entropy)])
        assert bool((got == 0).all())
    (got,) = batch_credit(name, success=10.0)([group([[1, 2], [1, 3], [4, 5]], [8.0, 12.0, 9.0], entropy)])
    assert got[1].mean() > 0 > got[0].mean()
    for options in ({"alpha": -1.0}, {"bonus": -0.1}, {"success": NAN}):
        with pytest.raises(ConfigError, match="allowed are a finite alpha above 0"):
            batch_credit(name, **options)


def test_grpo_s_shapes_whole_completions_by_their_mean_entropy():
    one = group([[1, 2], [1], [4, 5]], [1.0, 1.0, 0.0], [[3.0, 3.0], [1.0], [2.0, 4.0]])
    plus, minus = [1.15, 1.05, 0.0], [0.0, 0.0, -1.1]
    z = [
        (p - statistics.mean(plus)) / statistics.stdev(plus) + (m - statistics.mean(minus)) / statistics.stdev(minus)
        for p, m in zip(plus, minus, strict=True)
    ]
    (got,) = batch_credit("grpo_s")([one])
    assert got[0].tolist() == pytest.approx([z[0]] * 2)
    assert got[1].tolist() == pytest.approx([z[1], 0.0])
    assert got[2].tolist() == pytest.approx([z[2]] * 2)


@pytest.mark.parametrize("name", BATCH_RULES)
def test_rules_of_a_batch_keep_the_guarantees(name):
    groups = [
        group([[1, 2, 3], [1, 2, 4], [5], []], [0.5, NAN, 1.0, 0.2]),
        group([[1, 2], [1, 3]], [0.5, 0.5]),
        group([[1, 2], [1, 3]], [NAN, NAN]),
        group([[]], [1.0]),
    ]
    first, equal, *rest = batch_credit(name)(groups)
    assert first.shape == (4, 3)
    assert first.isfinite().all()
    assert first[1].tolist() == first[3].tolist() == [0, 0, 0]
    assert first[2, 1:].tolist() == [0, 0]
    assert bool((equal != 0).all()) == (BATCH_RULES[name] in LEARN_FROM_EQUAL) != bool((equal == 0).all())
    assert all(bool((one == 0).all()) for one in rest)
    assert batch_credit(name)([]) == []


@pytest.mark.parametrize("name", BATCH_RULES)
def test_the_order_of_groups_does_not_matter(name):
    groups = [group(*random_group(seed)) for seed in range(20)]
    plain, turned = batch_credit(name)(groups), batch_credit(name)(groups[::-1])
    assert all(torch.allclose(a, b, atol=1e-9) for a, b in zip(plain, turned[::-1], strict=True))


def test_the_most_uncertain_tokens_of_a_batch():
    groups = [
        group([[1, 2, 3], [1]], [1.0, 0.0], [[0.1, 0.9, 0.3], [0.8]]),
        group([[1, 2]], [1.0], [[0.95, 0.2]]),
    ]
    assert [m.tolist() for m in most_uncertain(groups, 0.5)] == [
        [[False, True, False], [True, False, False]],
        [[True, False]],
    ]
    assert sum(int(m.sum()) for m in most_uncertain(groups, 1.0)) == 6
    # Completions without a score do not count, whatever was recorded of them.
    broken = group([[1, 2], [3, 4], [5, 6]], [1.0, NAN, 0.0], [[0.5, 0.1], [NAN, NAN], [0.2, 0.3]])
    assert most_uncertain([broken], 0.5)[0].tolist() == [[True, False], [False, False], [False, True]]
    assert sum(int(m.sum()) for m in most_uncertain(groups, 0.01)) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gtp", {}, "Did you mean 'gtpo'"),
        ("gtpo", {"alph": 1.0}, "gtpo does not take the option alph. Did you mean 'alpha'"),
        ("gtpo", {"alpha": "much"}, "must be a number"),
        ("leaf_batch", {"normalize": False}, "does not take the option normalize"),
        ("leaf_batch", {"max_boundary": 1}, "leaf_batch does not take the option max_boundary"),
        ("leaf_batch", {"max_boundaries": -1}, "max_boundaries is -1"),
    ],
)
def test_options_of_batch_rules_are_checked_when_bound(name, options, message):
    with pytest.raises(ConfigError, match=message):
        batch_credit(name, **options)


def test_a_rule_of_a_batch_has_no_credit_for_one_group():
    with pytest.raises(ConfigError, match="gtpo sees all groups of a step together"):
        credit_rule("gtpo")


def test_a_missing_entropy_and_a_wrong_shape_are_refused():
    one = group([[1, 2], [1, 3]], [1.0, 0.0])
    blind = RewardedGroup(one.tree, one.rewards, one.surprisal)
    with pytest.raises(ConfigError, match="reads the policy's entropy"):
        batch_credit("gtpo")([blind])
    with pytest.raises(ConfigError, match="gave 0 tensors for 1 groups"):
        BatchCredit(lambda groups: [])([one])
    with pytest.raises(ConfigError, match="it must return a tensor"):
        BatchCredit(lambda groups: [torch.zeros(3)])([one])
