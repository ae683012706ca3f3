import math
import statistics
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import leaf
from leaf.credit import CREDIT_RULES, PrefixTree, credit, credit_rule, leaf_spans, select_boundaries
from leaf.credit.boundaries import even_boundaries, random_boundaries
from leaf.errors import ConfigError, DataError
from tests.helpers import oracle
from tests.helpers.groups import PLAIN_RULES, as_tensors, random_group

SEEDS = st.integers(0, 10**9)
NAN = float("nan")
to_an_ulp = partial(pytest.approx, rel=4e-16, abs=0)  # on Intel CPUs torch's √2 is off by one


def spans_of(completions, rewards, cuts, **options):
    tokens, lengths, _, reward = as_tensors(completions, rewards, [[0.0] * len(c) for c in completions])
    _, spans = leaf_spans(PrefixTree.build(tokens, lengths), reward, boundaries=torch.tensor(cuts), **options)
    return [[(s.start, s.end, s.raw) for s in each] for each in spans]


# -- worked by hand ----------------------------------------------------------------------------------------------------
def test_a_group_worked_by_hand():
    """Four completions, boundary 2: {0, 1} share (1, 2); V̂(root) = 0.5, V̂(node) = 0.75."""
    completions = [[1, 2, 3], [1, 2, 4], [1, 5, 6], [7, 8, 9]]
    rewards = [1.0, 0.5, 0.5, 0.0]
    node = (0.25 + 0.25) / math.sqrt(2)
    assert spans_of(completions, rewards, [2]) == [
        [(0, 2, to_an_ulp(node)), (2, 3, 0.5 + 0.25)],
        [(0, 2, to_an_ulp(node)), (2, 3, 0.0 - 0.25)],
        [(0, 3, 0.0)],
        [(0, 3, -1.0)],
    ]
    raw = [node, 0.75, node, -0.25, 0.0, -1.0]
    mean = sum(raw) / 6
    std = math.sqrt(sum((x - mean) ** 2 for x in raw) / 5)
    tokens, lengths, _, reward = as_tensors(completions, rewards, [[0.0] * 3] * 4)
    tree = PrefixTree.build(tokens, lengths)
    got = credit(CREDIT_RULES["leaf"], tree, reward, boundaries=torch.tensor([2]))
    want = [[(x - mean) / std for x in row] for row in ([node, node, 0.75], [node, node, -0.25], [0.0] * 3, [-1.0] * 3)]
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float64))


def test_ablations_by_hand():
    completions, rewards = [[1, 2, 3], [1, 2, 4], [7, 8, 9]], [1.0, 0.5, 0.0]
    node = to_an_ulp(0.25 / math.sqrt(2))
    assert spans_of(completions, rewards, [2], terms="global")[0] == [(0, 2, node), (2, 3, 0.5)]
    assert spans_of(completions, rewards, [2], terms="local")[0] == [(0, 2, node), (2, 3, 0.25)]
    assert spans_of(completions, rewards, [2], sqrt_count=False)[0] == [(0, 2, 0.5), (2, 3, 0.75)]


def test_identical_short_completions_form_a_node_that_ends_where_they_end():
    completions, rewards = [[1, 2], [1, 2], [1, 2, 3, 4], [5, 6, 7, 8]], [1.0, 0.0, 0.5, 0.5]
    # At t = 3 the ended pair is a node of its own, ending at 2; no zero-token span, no tail.
    assert spans_of(completions, rewards, [3])[:2] == [[(0, 2, 0.0)], [(0, 2, 0.0)]]
    # Left out (ablation), each is one tail.
    left_out = spans_of(completions, rewards, [3], group_ended=False)
    assert left_out[0] == [(0, 2, 1.0)]
    assert left_out[1] == [(0, 2, -1.0)]


def test_a_completion_that_ended_joins_longer_ones_with_the_same_prefix():
    completions, rewards = [[1, 2], [1, 2, 3], [4, 5, 6]], [1.0, 0.0, 0.5]
    assert spans_of(completions, rewards, [2]) == [[(0, 2, 0.0)], [(0, 2, 0.0), (2, 3, -1.0)], [(0, 3, 0.0)]]


def test_a_node_beyond_the_end_adds_no_zero_token_span():
    completions, rewards = [[1, 2], [1, 2], [1, 2, 3, 4, 5], [9, 9, 9, 9, 9]], [1.0, 0.0, 0.25, 0.75]
    spans = spans_of(completions, rewards, [2, 4])
    # At 2 three share (1, 2); at 4 the ended pair would make a second node ending at 2: dropped.
    assert [[(a, b) for a, b, _ in each] for each in spans] == [[(0, 2)], [(0, 2)], [(0, 2), (2, 5)], [(0, 5)]]


def test_phantom_spans_enter_the_z_score_as_in_the_published_code():
    # At 2 three share (1, 2): V̂ 5/12, GA = LA = −1/12. At 4 the ended pair is a node again: V̂ 1/2, GA 0, LA 1/12.
    completions, rewards = [[1, 2], [1, 2], [1, 2, 3, 4, 5], [9, 9, 9, 9, 9]], [1.0, 0.0, 0.25, 0.75]
    tokens, lengths, _, reward = as_tensors(completions, rewards, [[0.0] * len(c) for c in completions])
    tree, cuts = PrefixTree.build(tokens, lengths), torch.tensor([2, 4])
    node, phantom = -1 / 6 / math.sqrt(3), 1 / 12 / math.sqrt(2)
    tails = [(0.25 - 0.5) + (0.25 - 5 / 12), 2 * (0.75 - 0.5)]
    for flag, extra in ((False, []), (True, [phantom, phantom])):
        counted = [node] * 3 + tails + extra
        mean, spread = statistics.mean(counted), statistics.stdev(counted)
        got = credit(CREDIT_RULES["leaf"], tree, reward, boundaries=cuts, phantom_spans=flag)
        surprisal = torch.zeros(tokens.shape, dtype=got.dtype)
        called = leaf.leaf_advantages(tokens, lengths, surprisal, reward, boundaries=cuts, phantom_spans=flag)
        assert torch.equal(called, got)
        assert got[0].tolist() == pytest.approx([(node - mean) / spread] * 2 + [0] * 3)
        assert got[2].tolist() == pytest.approx([(node - mean) / spread] * 2 + [(tails[0] - mean) / spread] * 3)
        assert got[3].tolist() == pytest.approx([(tails[1] - mean) / spread] * 5)


def test_boundaries_by_hand():
    surprisal = torch.tensor([[9.0, 1.0, 5.0, 4.0, 0.0, 0.0], [9.0, 2.0, 0.0, 4.5, 3.0, 8.0]])
    lengths = torch.tensor([4, 6])
    # Shortest is 4, so Δ = max(2, 4 // 3) = 2: 5 (8.0), then 2 (5.0); 3 is too near to 2.
    assert select_boundaries(surprisal, lengths).tolist() == [2, 5]
    assert select_boundaries(surprisal, lengths, max_boundaries=3).tolist() == [2, 5]
    assert select_boundaries(surprisal, lengths, min_prefix=3).tolist() == [3, 5]
    assert select_boundaries(surprisal, lengths, max_boundaries=0).tolist() == []
    assert select_boundaries(torch.tensor([[5.0], [5.0]]), torch.tensor([1, 1])).tolist() == []


def test_ties_go_to_the_lower_completion_then_the_lower_position():
    lengths = torch.tensor([6, 6])
    surprisal = torch.tensor([[0.0, 0.0, 0.0, 0.0, 7.0, 0.0], [0.0, 0.0, 0.0, 7.0, 0.0, 0.0]])
    assert select_boundaries(surprisal, lengths, max_boundaries=1).tolist() == [4]
    assert select_boundaries(torch.ones(2, 6), lengths, max_boundaries=2).tolist() == [1, 3]


def test_spacing_grows_with_the_shortest_non_empty_completion():
    surprisal = torch.zeros(2, 12)
    surprisal[0, [5, 7, 9]] = torch.tensor([3.0, 2.0, 1.0])
    assert select_boundaries(surprisal, torch.tensor([12, 12])).tolist() == [5, 9]  # Δ = 4
    assert select_boundaries(surprisal, torch.tensor([12, 6])).tolist() == [5, 7]  # Δ = 2
    assert select_boundaries(surprisal, torch.tensor([12, 0])).tolist() == [5, 9]  # the empty one does not count


def test_grpo_by_hand():
    got = leaf.grpo_advantages(torch.tensor([1.0, 0.0]), torch.tensor([2, 1]))
    a = 0.5 / (math.sqrt(0.5) + 1e-6)
    assert torch.allclose(got, torch.tensor([[a, a], [-a, 0.0]]))
    low = leaf.grpo_advantages(torch.tensor([0.6, 0.5]), torch.tensor([1, 1]))
    assert torch.allclose(low, torch.tensor([[0.05], [-0.05]]) / (1 / 3 + 1e-6))


RELATIVES = {
    "dr_grpo": [[0.5, 0.5], [-0.25, -0.25], [-0.25, -0.25]],
    "rloo": [[0.75, 0.75], [-0.375, -0.375], [-0.375, -0.375]],
    "spo": [[0.125, 0.375], [0.125, -0.375], [-0.25, 0.0]],
    "tempo": [[0.625, 0.875], [-0.125, -0.625], [-0.5, -0.25]],  # over std, below
    "treerl": [[0.25 / math.sqrt(2), 0.875], [0.25 / math.sqrt(2), -0.625], [-0.5, -0.5]],
    # Means of the others: 1/4, 5/8, 5/8. κ = 4: Ṽ(1) = (1/4 + 4 · 1/4) / 5 and (1 + 4 · 5/8) / 5; nobody shares (4).
    "shrunken": [[0.75, 0.75], [-0.375, 0.25 - 0.7], [-0.375, -0.375]],
    "max_rl": [[1.0, 1.0], [-0.5, -0.5], [-0.5, -0.5]],
    "treepo": [[(3 * 0.5 + 2 * 0.375) / 5] * 2, [(3 * -0.25 + 2 * -0.375) / 5] * 2, [-0.25, -0.25]],
}


@pytest.mark.parametrize("name", RELATIVES)
def test_relatives_by_hand(name):
    """Completions (1, 2), (1, 3), (4, 5) with rewards 1, 1/4, 1/4: mean 1/2, V̂(1) = 5/8, std = √(3/16)."""
    tokens, lengths = torch.tensor([[1, 2], [1, 3], [4, 5]]), torch.tensor([2, 2, 2])
    want = torch.tensor(RELATIVES[name], dtype=torch.float64)
    if name == "tempo":
        want = want / (math.sqrt(3 / 16) + 1e-6)
    got = credit(PLAIN_RULES[name], PrefixTree.build(tokens, lengths), torch.tensor([1.0, 0.25, 0.25]))
    assert torch.allclose(got, want)


# -- degenerate groups -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PLAIN_RULES)
@pytest.mark.parametrize(
    ("completions", "rewards"),
    [
        ([[1, 2, 3], [1, 2, 4], [1, 5, 6]], [0.1, 0.1, 0.1]),
        ([[1, 2, 3]] * 8, [0.1] * 8),
        ([[1, 2, 3, 4]], [0.7]),
        ([[1, 2, 3], [], []], [0.7, 0.2, 0.1]),
        ([[], []], [0.7, 0.2]),
        ([[1, 2, 3], [1, 2, 4]], [0.7, NAN]),
        ([[1, 2, 3], [1, 2, 4]], [NAN, NAN]),
    ],
)
def test_degenerate_groups_are_exactly_zero(name, completions, rewards):
    tokens, lengths, surprisal, reward = as_tensors(completions, rewards, [[1.0] * len(c) for c in completions])
    got = credit(PLAIN_RULES[name], PrefixTree.build(tokens, lengths), reward, surprisal=surprisal)
    assert got.shape == tokens.shape
    assert bool((got == 0).all())


@pytest.mark.parametrize("name", [name for name in PLAIN_RULES if name != "leaf"])
def test_an_unscored_completion_changes_nothing_for_the_others(name):
    completions, rewards = [[1, 2, 3], [1, 2, 4], [1, 5, 6], [7, 8]], [1.0, 0.25, 0.5, 0.0]
    alone = credit(PLAIN_RULES[name], *_called(completions, rewards))
    with_nan = credit(PLAIN_RULES[name], *_called([*completions, [1, 2, 3]], [*rewards, NAN]))
    assert torch.equal(alone, with_nan[:4])
    assert bool((with_nan[4] == 0).all())


def _called(completions, rewards):
    tokens, lengths, _, reward = as_tensors(completions, rewards, [[0.0] * len(c) for c in completions])
    return PrefixTree.build(tokens, lengths), reward


def test_an_unscored_completion_changes_nothing_for_leaf_at_fixed_boundaries():
    completions, rewards = [[1, 2, 3], [1, 2, 4], [7, 8, 9]], [1.0, 0.25, 0.5]
    assert spans_of([*completions, [1, 2, 3]], [*rewards, NAN], [2])[:3] == spans_of(completions, rewards, [2])


# -- properties and the oracle -----------------------------------------------------------------------------------------
@settings(max_examples=400, deadline=None)
@given(SEEDS)
def test_tree_is_the_trie_of_the_prefixes(seed):
    completions, rewards, surprisal = random_group(seed)
    tokens, lengths, _, _ = as_tensors(completions, rewards, surprisal)
    tree = PrefixTree.build(tokens, lengths)
    prefixes = {tuple(c[: t + 1]) for c in completions for t in range(len(c))}
    assert tree.num_nodes == len(prefixes)
    node_of = {}
    for i, c in enumerate(completions):
        for t in range(len(c)):
            node = int(tree.node[i, t])
            assert node_of.setdefault(tuple(c[: t + 1]), node) == node
            assert int(tree.token[node]) == c[t]
            assert int(tree.depth[node]) == t
            assert int(tree.parent[node]) == (int(tree.node[i, t - 1]) if t else -1)
    assert len(set(node_of.values())) == len(prefixes)
    for prefix, node in node_of.items():
        assert int(tree.count[node]) == sum(tuple(c[: len(prefix)]) == prefix for c in completions)
        below = {n for p, n in node_of.items() if p[: len(prefix)] == prefix}
        assert set(range(node, int(tree.subtree_end[node]))) == below
        assert bool(tree.is_leaf[node]) == (below == {node})
    for t in range(tokens.shape[1] + 2):
        groups = tree.prefix_group(t).tolist()
        for i, a in enumerate(completions):
            for j, b in enumerate(completions):
                assert (groups[i] == groups[j]) == (tuple(a[:t]) == tuple(b[:t]))


@settings(max_examples=1500, deadline=None)
@given(SEEDS, st.integers(0, 4), st.sampled_from(["both", "global", "local"]), st.booleans(), st.booleans())
def test_leaf_equals_the_oracle(seed, budget, terms, normalize, group_ended):
    completions, rewards, surprisal = random_group(seed)
    tokens, lengths, nats, reward = as_tensors(completions, rewards, surprisal)
    cuts = oracle.boundaries(surprisal, lengths.tolist(), budget)
    assert select_boundaries(nats, lengths, max_boundaries=budget).tolist() == cuts
    options = {"terms": terms, "normalize": normalize, "group_ended": group_ended}
    got = leaf.leaf_advantages(tokens, lengths, nats, reward, max_boundaries=budget, **options)
    want = oracle.leaf_advantages(completions, rewards, cuts, tokens.shape[1], **options)
    assert got.shape == tokens.shape
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float64).reshape(got.shape), atol=1e-9)


@settings(max_examples=300, deadline=None)
@given(SEEDS, st.sampled_from([name for name in PLAIN_RULES if name != "leaf"]))
def test_relatives_equal_the_oracle(seed, name):
    completions, rewards, surprisal = random_group(seed)
    tokens, lengths, _, reward = as_tensors(completions, rewards, surprisal)
    got = credit(PLAIN_RULES[name], PrefixTree.build(tokens, lengths), reward)
    want = torch.tensor(oracle.per_token(name, completions, rewards, tokens.shape[1]), dtype=torch.float64)
    assert torch.allclose(got, want.reshape(got.shape), atol=1e-9)


@settings(max_examples=300, deadline=None)
@given(SEEDS, st.integers(0, 4))
def test_spans_partition_each_completion_and_local_terms_telescope(seed, budget):
    completions, rewards, surprisal = random_group(seed)
    tokens, lengths, nats, reward = as_tensors(completions, rewards, surprisal)
    tree = PrefixTree.build(tokens, lengths)
    options = {"max_boundaries": budget, "terms": "local", "sqrt_count": False, "normalize": False}
    _, spans = leaf_spans(tree, reward, surprisal=nats, **options)
    some = [r for c, r in zip(completions, rewards, strict=True) if c and not math.isnan(r)]
    for c, r, each in zip(completions, rewards, spans, strict=True):
        if not c or math.isnan(r):
            assert each == []
            continue
        assert [s.start for s in each] == [0, *(s.end for s in each[:-1])]
        assert all(s.end > s.start for s in each)
        assert each[-1].end == len(c)
        if each[-1].node == -1:  # the path ends in a tail: LA terms add up to r − V̂(root)
            assert sum(s.raw for s in each) == pytest.approx(r - sum(some) / len(some), abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.sampled_from(list(PLAIN_RULES)), st.randoms(use_true_random=False), st.integers(0, 5))
def test_order_and_padding_do_not_matter(seed, name, rng, extra):
    completions, rewards, surprisal = random_group(seed)
    surprisal = [[s + 1e-3 * (i + len(row) * j) for j, s in enumerate(row)] for i, row in enumerate(surprisal)]
    tokens, lengths, nats, reward = as_tensors(completions, rewards, surprisal)
    cuts = select_boundaries(nats, lengths)
    given_cuts = {"boundaries": cuts} if name == "leaf" else {}
    plain = credit(PLAIN_RULES[name], PrefixTree.build(tokens, lengths), reward, **given_cuts)
    order = list(range(len(completions)))
    rng.shuffle(order)
    mixed = as_tensors(
        [completions[i] for i in order], [rewards[i] for i in order], [surprisal[i] for i in order], extra
    )
    tokens, lengths, nats, reward = mixed
    if name == "leaf" and len({s for row in surprisal for s in row}) == sum(map(len, surprisal)):
        assert torch.equal(select_boundaries(nats, lengths), cuts)
    got = credit(PLAIN_RULES[name], PrefixTree.build(tokens, lengths), reward, **given_cuts)
    assert torch.allclose(got[:, : plain.shape[1]], plain[order], atol=1e-9)
    assert bool((got[:, plain.shape[1] :] == 0).all())


@settings(max_examples=100, deadline=None)
@given(SEEDS)
def test_without_boundaries_leaf_is_the_z_scored_group_advantage(seed):
    completions, rewards, surprisal = random_group(seed)
    tokens, lengths, nats, reward = as_tensors(completions, rewards, surprisal)
    got = leaf.leaf_advantages(tokens, lengths, nats, reward, max_boundaries=0)
    scored = ~reward.isnan() & (lengths > 0)
    some = reward[scored]
    if some.numel() < 2 or bool((some == some[0]).all()):
        want = torch.zeros_like(reward)
    else:
        raw = 2 * (some - some.mean())
        want = torch.zeros_like(reward)
        want[scored] = (raw - raw.mean()) / raw.std().clamp_min(1e-6)
    mask = torch.arange(tokens.shape[1])[None] < lengths[:, None]
    assert torch.allclose(got, want[:, None] * mask, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool])
@pytest.mark.parametrize("name", PLAIN_RULES)
def test_rewards_may_be_whole_numbers_or_booleans(name, dtype):
    tree, rewards = _called([[1, 2], [1, 3], [4, 2]], [1.0, 0.0, 0.0])
    options: dict[str, Any] = {"boundaries": [1]} if name == "leaf" else {}
    plain = credit(PLAIN_RULES[name], tree, rewards, **options)
    assert torch.equal(credit(PLAIN_RULES[name], tree, rewards.to(dtype), **options), plain)
    grpo = leaf.grpo_advantages(rewards, tree.lengths)
    assert torch.allclose(leaf.grpo_advantages(rewards.to(dtype), tree.lengths), grpo.float())


@pytest.mark.usefixtures("unchecked")
def test_advantages_can_hold_fractions_whatever_the_surprisal_is():
    tree, rewards = _called([[1, 2], [1, 3], [4, 2]], [1.0, 0.0, 0.0])
    whole = leaf.leaf_advantages(tree.tokens, tree.lengths, torch.zeros_like(tree.tokens), rewards, boundaries=[1])
    assert whole.dtype == torch.float32
    assert torch.allclose(whole.double(), credit_rule("leaf", boundaries=[1])(tree, rewards))


# -- refusals and ablations --------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("unchecked")
def test_refusals():
    with pytest.raises(ConfigError, match=r"'gpro' is unknown\. Did you mean 'grpo'\? Allowed are leaf, grpo"):
        credit_rule("gpro")
    tree = PrefixTree.build(torch.tensor([[1]]), torch.tensor([1]))
    with pytest.raises(ConfigError, match="terms"):
        leaf_spans(tree, torch.tensor([1.0]), surprisal=torch.zeros(1, 1), terms="neither")
    with pytest.raises(ConfigError, match="surprisal"):
        leaf_spans(tree, torch.tensor([1.0]))
    with pytest.raises(ConfigError, match="at least 0"):
        select_boundaries(torch.zeros(1, 1), torch.tensor([1]), max_boundaries=-1)
    with pytest.raises(DataError, match="Lengths"):
        PrefixTree.build(torch.tensor([[1]]), torch.tensor([2]))
    with pytest.raises(DataError, match="rewards"):
        credit_rule("grpo")(tree, torch.tensor([1.0, 2.0]))


def test_other_boundary_choices_keep_the_rules():
    lengths = torch.tensor([9, 12, 0])
    assert even_boundaries(lengths, max_boundaries=2).tolist() == [3, 6]
    assert even_boundaries(torch.tensor([1, 1])).tolist() == []
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        cuts = random_boundaries(lengths, generator=generator, max_boundaries=3).tolist()
        assert cuts == sorted(cuts)
        assert all(1 <= t < 12 for t in cuts)
        assert all(b - a >= 2 for a, b in pairwise(cuts))
