"""Parity with the papers: their formulas written down here, in loops over plain numbers, on random groups.

`tests.helpers.oracle` has the same for the rules of one group, and test_surrogates.py for GSPO, CISPO and SAPO.
"""

import math
import random
import statistics

import pytest
import torch

from leaf.credit import RewardedGroup, batch_credit, credit_rule, most_uncertain, policy_loss, token_weights
from leaf.credit.tree import PrefixTree
from tests.helpers import oracle
from tests.helpers.groups import as_tensors, random_group

NAN = float("nan")


def batch(seed, count=6, *, binary=False):
    """Return random groups as the papers see them: per group rows, rewards and entropies, and as leaf sees them."""
    draw, groups, seen = random.Random(seed), [], []
    for i in range(count):
        rows, rewards, surprisal = random_group(100 * seed + i)
        rewards = [float(draw.random() < 0.5) if binary else reward for reward in rewards]
        entropy = [[draw.random() + 0.01 for _ in row] for row in rows]
        tokens, lengths, nats, reward = as_tensors(rows, rewards, surprisal)
        _, _, h, _ = as_tensors(rows, rewards, entropy)
        groups.append((rows, rewards, entropy, surprisal))
        seen.append(RewardedGroup(PrefixTree.build(tokens, lengths), reward, nats, h))
    return groups, seen


def scored(rows, rewards):
    return [i for i, row in enumerate(rows) if row and not math.isnan(rewards[i])]


def learns(rows, rewards):
    return len({rewards[i] for i in scored(rows, rewards)}) > 1


def same(got, wanted, groups, *, equal=False):
    """Compare per group and completion; groups with nothing to learn have exactly 0, unless `equal` ones learn."""
    for one, want, (rows, rewards, *_) in zip(got, wanted, groups, strict=True):
        for i in scored(rows, rewards):
            expected = want(i) if equal or learns(rows, rewards) else [0.0] * len(rows[i])
            assert one[i, : len(rows[i])].tolist() == pytest.approx(expected, abs=1e-6)


def whitened(values):
    """Return the map of REINFORCE++: (A − mean) / sqrt(var + 1e-8) over all tokens of the batch."""
    mean, spread = statistics.mean(values), math.sqrt(statistics.variance(values) + 1e-8)
    return lambda value: (value - mean) / spread


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("baseline", [False, True])
def test_reinforce_pp(seed, baseline):
    """2501.03262: A = r, or r − mean of the group with baseline, then normalised over the global batch of tokens."""
    groups, seen = batch(seed)

    def advantage(rows, rewards, i):
        mean = statistics.mean(rewards[j] for j in scored(rows, rewards)) if baseline else 0.0
        return rewards[i] - mean

    values = [advantage(g[0], g[1], i) for g in groups for i in scored(g[0], g[1]) for _ in g[0][i]]
    white = whitened(values)
    wanted = [lambda i, g=g: [white(advantage(g[0], g[1], i))] * len(g[0][i]) for g in groups]
    got = batch_credit("reinforce_pp_baseline" if baseline else "reinforce_pp")(seen)
    same(got, wanted, groups, equal=not baseline)


@pytest.mark.parametrize("seed", range(5))
def test_treepo_whitens_its_advantage_over_the_batch(seed):
    """2508.17445: the size-weighted mean over ancestor groups, then the same whitening."""
    groups, seen = batch(seed)
    plain = [oracle.per_token("treepo", g[0], g[1], max(map(len, g[0]), default=0)) for g in groups]
    values = [plain[k][i][t] for k, g in enumerate(groups) for i in scored(g[0], g[1]) for t in range(len(g[0][i]))]
    white = whitened(values)
    wanted = [lambda i, k=k, g=g: [white(x) for x in plain[k][i][: len(g[0][i])]] for k, g in enumerate(groups)]
    same(batch_credit("treepo_whitened")(seen), wanted, groups)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", ["gtpo", "grpo_s"])
def test_entropy_shapes_rewards_of_0_and_1(seed, name):
    """2508.04349: shares of entropy among those of one outcome that have a token t, inverse ones for failures."""
    groups, seen = batch(seed, binary=True)
    wanted = []
    for rows, rewards, entropy, _ in groups:
        here = scored(rows, rewards)
        if name == "grpo_s":
            shape = [[statistics.mean(entropy[i])] if rows[i] else [] for i in range(len(rows))]
        else:
            shape = entropy
        plus, minus = {}, {}
        for i in here:
            for t, h in enumerate(shape[i]):
                alike = [shape[k][t] for k in here if rewards[k] == rewards[i] and t < len(shape[k])]
                share = len(alike) * h / sum(alike)
                inverse = len(alike) * (1 / h) / sum(1 / other for other in alike)
                plus[i, t] = 1.0 + 0.1 * share if rewards[i] == 1 else 0.0
                minus[i, t] = 0.0 if rewards[i] == 1 else -1.0 - 0.1 * inverse

        def z(values, key):
            spread = statistics.stdev(values.values())
            return (values[key] - statistics.mean(values.values())) / spread

        def advantages(i, rows=rows, plus=plus, minus=minus):
            places = range(len(rows[i])) if name == "gtpo" else [0] * len(rows[i])
            return [z(plus, (i, t)) + z(minus, (i, t)) for t in places]

        wanted.append(advantages)
    same(batch_credit(name)(seen), wanted, groups)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.2, 0.6])
def test_the_high_entropy_mask_keeps_the_top_share_of_a_batch(seed, share):
    """2506.01939: the tokens whose entropy is in the top ρ of all tokens of the batch."""
    groups, seen = batch(seed)
    entropies = sorted((h for g in groups for i in scored(g[0], g[1]) for h in g[2][i]), reverse=True)
    limit = entropies[math.ceil(share * len(entropies)) - 1]
    for mark, (rows, rewards, entropy, _) in zip(most_uncertain(seen, share), groups, strict=True):
        for i in scored(rows, rewards):
            assert mark[i, : len(rows[i])].tolist() == [torch.tensor(h).item() >= limit - 1e-7 for h in entropy[i]]


@pytest.mark.parametrize("seed", range(10))
def test_spo_trains_the_tokens_below_a_probability_of_09(seed):
    """2505.23564: A = V̂(child) − V̂(parent) of the segment, M = 1 where π(token) < 0.9."""
    rows, rewards, surprisal = random_group(seed)
    tokens, lengths, nats, reward = as_tensors(rows, rewards, surprisal)
    whole = oracle.per_token("spo_whole_segment", rows, rewards, tokens.shape[1])
    got = credit_rule("spo")(PrefixTree.build(tokens, lengths), reward, surprisal=nats)
    for i in scored(rows, rewards):
        for t in range(len(rows[i])):
            masked = whole[i][t] if math.exp(-float(nats[i, t])) < 0.9 else 0.0
            assert got[i, t].item() == pytest.approx(masked, abs=1e-9)


def losses(seed):
    draw = random.Random(seed)
    lengths = [draw.randint(1, 6) for _ in range(4)]

    def numbers():
        return [[draw.uniform(-1, 1) for _ in range(length)] for length in lengths]

    return lengths, numbers(), numbers(), numbers()


def tensor(values):
    width = max(map(len, values))
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in values], dtype=torch.float64)


def clipped(new, old, advantage, low, high):
    ratio = math.exp(new - old)
    return min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("reduction", ["completion_mean", "token_mean", "constant"])
def test_the_reductions_are_those_of_grpo_dapo_and_dr_grpo(seed, reduction):
    """GRPO 2402.03300 eq. 3; DAPO 2503.14476 eq. 8 with ε_high = 0.28; Dr. GRPO 2503.20783 with L = 6 tokens."""
    lengths, new, old, advantages = losses(seed)
    low, high = 0.2, 0.28 if reduction == "token_mean" else 0.2
    gains = [
        [clipped(*one, low, high) for one in zip(*rows, strict=True)] for rows in zip(new, old, advantages, strict=True)
    ]
    want = {
        "completion_mean": statistics.mean(statistics.mean(row) for row in gains),
        "token_mean": sum(map(sum, gains)) / sum(lengths),
        "constant": sum(map(sum, gains)) / (len(gains) * 6),
    }[reduction]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    (weights,) = token_weights([mask], reduction=reduction, constant_length=6)
    how = {"weights": weights, "clip": low, "clip_high": high}
    loss, _ = policy_loss(tensor(new), tensor(old), tensor(advantages), mask, **how)
    assert float(loss) == pytest.approx(-want, abs=1e-7)
