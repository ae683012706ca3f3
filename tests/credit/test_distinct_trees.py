"""Tree credit on distinct completions, against enumeration of every set that a small policy could give."""

import itertools
import math

import pytest
import torch

from leaf.credit import PrefixTree, credit_rule, distinct_rules
from leaf.credit.sets import SetDraw, set_shares, unordered_set
from leaf.credit.spans import cut_spans
from leaf.credit.stretches import stretches
from leaf.errors import ConfigError

EOS, TOKENS, LIMIT = 0, 3, 3


class SmallPolicy:
    """A policy over three tokens that ends with token 0 or after three tokens: 15 outcomes, each with a reward."""

    def __init__(self, seed, sharpness=1.5):
        generator = torch.Generator().manual_seed(seed)
        self.step, self.outcomes = {}, {}
        self._grow((), 1.0, generator, sharpness)
        self.names = list(self.outcomes)
        self.p = torch.tensor([self.outcomes[name] for name in self.names], dtype=torch.float64)
        # What an answer begins with decides most of its reward, as it does in speech.
        first, second, own = (torch.rand(TOKENS**n, generator=generator, dtype=torch.float64) for n in (1, 2, 3))
        self.rewards = torch.tensor(
            [
                first[n[0]] + 0.5 * second[sum(t * TOKENS**i for i, t in enumerate(n[:2]))] + 0.25 * own[i]
                for i, n in enumerate(self.names)
            ],
            dtype=torch.float64,
        )
        self.prefixes = list(self.step)

    def _grow(self, prefix, p, generator, sharpness):
        if prefix and (prefix[-1] == EOS or len(prefix) == LIMIT):
            self.outcomes[prefix] = p
            return
        logits = sharpness * torch.randn(TOKENS, generator=generator, dtype=torch.float64)
        self.step[prefix] = logits.softmax(0)
        for token, q in enumerate(self.step[prefix].tolist()):
            self._grow((*prefix, token), p * q, generator, sharpness)

    def score(self, name, advantages):
        """Σ_t A_t ∇ log π(token t | prefix), with the logits of all prefixes as parameters."""
        gradient = torch.zeros(len(self.prefixes), TOKENS, dtype=torch.float64)
        for t, token in enumerate(name):
            row = self.prefixes.index(name[:t])
            gradient[row] += advantages[t] * (torch.eye(TOKENS, dtype=torch.float64)[token] - self.step[name[:t]])
        return gradient

    def true_gradient(self):
        every = zip(self.names, self.p, self.rewards, strict=True)
        return sum(p * self.score(name, [r] * len(name)) for name, p, r in every)

    def group(self, chosen):
        """A group as the sampler gives it: tree, surprisal, rewards, draw."""
        names = [self.names[i] for i in chosen]
        lengths = torch.tensor([len(name) for name in names])
        tokens = torch.zeros(len(names), LIMIT, dtype=torch.long)
        surprisal = torch.zeros(len(names), LIMIT, dtype=torch.float64)
        for k, name in enumerate(names):
            for t, token in enumerate(name):
                tokens[k, t], surprisal[k, t] = token, -self.step[name[:t]][token].log()
        rest = (1 - self.p[list(chosen)].sum()).clamp_min(0.0)
        log_rest = torch.tensor(-math.inf, dtype=torch.float64) if len(chosen) == len(self.names) else rest.log()
        draw = SetDraw(self.p[list(chosen)].log(), log_rest, torch.tensor(-math.inf, dtype=torch.float64))
        return PrefixTree.build(tokens, lengths), surprisal, self.rewards[list(chosen)], draw, names

    def estimate(self, rule, chosen):
        tree, surprisal, rewards, draw, names = self.group(chosen)
        advantages = rule(tree, rewards, surprisal=surprisal, draw=draw)
        weight = unordered_set(draw)[0]
        return sum(w * self.score(n, a.tolist()) for w, n, a in zip(weight, names, advantages, strict=True))

    def chance(self, chosen):
        """P(S): the sum over all orders in which the set may be drawn one by one."""
        total = 0.0
        for order in itertools.permutations(chosen):
            left, product = 1.0, 1.0
            for i in order:
                product *= float(self.p[i]) / left
                left -= float(self.p[i])
            total += product
        return total


def expectations(policy, size, rules):
    """Return rule → (bias, cosine with the truth of the expectation, error at the best scale), over all sets.

    The bias is relative to the true gradient. The error is √(1 − E[g·t]² / (E|g|² |t|²)): 0 is exact, 1 is noise.
    """
    truth = policy.true_gradient()
    sets = [(one, policy.chance(one)) for one in itertools.combinations(range(len(policy.names)), size)]
    assert math.isclose(sum(chance for _, chance in sets), 1.0, rel_tol=1e-9)
    found = {}
    for name, rule in rules.items():
        mean, square = torch.zeros_like(truth), 0.0
        for chosen, chance in sets:
            estimate = policy.estimate(rule, chosen)
            mean += chance * estimate
            square += chance * float(estimate.square().sum())
        along = float((mean * truth).sum() / truth.norm())
        bias = float((mean - truth).norm() / truth.norm())
        found[name] = (bias, along / float(mean.norm()), math.sqrt(1 - along**2 / square))
    return found


# docs/distinct_rollouts.md has this table.
MEASURED = {
    "unordered_set": (0.00, 1.000, 0.75),
    "shrunken": (0.00, 1.000, 0.74),
    "rescaled_set": (0.33, 0.994, 0.72),
    "spo": (0.24, 0.985, 0.66),
    "tempo": (6.67, 0.994, 0.72),
    "leaf": (3.01, 0.995, 0.78),
}


@pytest.mark.slow
def test_the_documented_biases_are_those_of_every_set_of_three():
    """Means over three policies."""
    rules = {name: credit_rule(name, **({"credited": "branching"} if name == "spo" else {})) for name in MEASURED}
    found = [expectations(SmallPolicy(seed, 1.0), 3, rules) for seed in (1, 2, 3)]
    for name, documented in MEASURED.items():
        means = [sum(values) / 3 for values in zip(*(one[name] for one in found), strict=True)]
        assert means == pytest.approx(documented, abs=6e-3), name
    assert all(one[name][0] < 1e-9 for one in found for name in ("unordered_set", "shrunken"))


def test_tree_values_that_contain_the_completion_are_biased_and_the_test_can_tell():
    rules = {"spo": credit_rule("spo", credited="branching"), "inclusive": credit_rule("shrunken", leave_one_out=False)}
    for name, (bias, cosine, _) in expectations(SmallPolicy(2), 2, rules).items():
        assert 0.05 < bias < 0.6, name
        assert cosine > 0.95, name


@pytest.mark.parametrize(("seed", "size", "kappa"), [(0, 2, 4.0), (1, 2, 0.0), (3, 2, 1.0)])
def test_shrunken_tree_credit_is_unbiased(seed, size, kappa):
    found = expectations(SmallPolicy(seed), size, {"shrunken": credit_rule("shrunken", kappa=kappa)})
    assert found["shrunken"][0] < 1e-9


@pytest.mark.parametrize("name", ["shrunken", "spo"])
def test_a_set_of_all_there_is_gives_the_exact_gradient(name):
    policy = SmallPolicy(4)
    rule = credit_rule(name, **({"credited": "branching"} if name == "spo" else {}))
    torch.testing.assert_close(policy.estimate(rule, range(15)), policy.true_gradient(), rtol=1e-9, atol=1e-12)


def repeated(rows, often):
    """Repeat rows (K, ...) as often as `often` says."""
    return rows.repeat_interleave(torch.tensor(often), 0)


def small_group():
    tokens = torch.tensor([[1, 2, 3, 0], [1, 2, 4, 0], [1, 5, 0, 0], [6, 2, 3, 0]])
    lengths, rewards = torch.tensor([4, 4, 3, 4]), torch.tensor([1.0, 0.25, 0.5, 0.0], dtype=torch.float64)
    surprisal = torch.tensor([[0.1, 0.2, 2.0, 0.1], [0.1, 0.2, 1.5, 0.1], [0.1, 3.0, 0.1, 0.0], [2.5, 0.3, 0.4, 0.1]])
    return tokens, lengths, rewards, surprisal


def test_a_share_of_three_is_worth_three_equal_completions():
    """The weighted rules are the plain ones: a group with duplicates is the same group with shares."""
    tokens, lengths, rewards, surprisal = small_group()
    often = [3, 1, 2, 1]
    shares = torch.tensor(often, dtype=torch.float64)
    tree, plain = PrefixTree.build(tokens, lengths), PrefixTree.build(repeated(tokens, often), repeated(lengths, often))
    with_shares = cut_spans(tree, rewards, surprisal=surprisal, shares=shares).paint(4)
    without = cut_spans(plain, repeated(rewards, often), surprisal=repeated(surprisal, often)).paint(4)
    torch.testing.assert_close(repeated(with_shares, often), without, rtol=1e-12, atol=1e-12)
    ours, theirs = stretches(tree, rewards, shares), stretches(plain, repeated(rewards, often))
    for name in ("opens", "count", "value", "before", "parent"):
        torch.testing.assert_close(repeated(getattr(ours, name), often), getattr(theirs, name), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(tree.node_mean(rewards, shares), plain.node_mean(repeated(rewards, often)))


@pytest.mark.parametrize("name", ["leaf", "tempo", "spo"])
def test_improbable_completions_give_the_plain_rule(name):
    """Weights tend to 1/K, so that nothing is lost where nothing can be gained."""
    tokens, lengths, rewards, surprisal = small_group()
    tree = PrefixTree.build(tokens, lengths)
    draw = SetDraw.of(-80 - torch.arange(4, dtype=torch.float64))
    rule = credit_rule(name)
    plain = rule(tree, rewards, surprisal=surprisal)
    torch.testing.assert_close(rule(tree, rewards, surprisal=surprisal, draw=draw), plain, rtol=1e-9, atol=1e-9)


def test_a_pair_worked_by_hand():
    """Of the three answers a b (0.4), a c (0.2) and d (0.4) the first two; the baseline is [[0.4, 0.6], [0.8, 0.2]]."""
    tree = PrefixTree.build(torch.tensor([[1, 2], [1, 3]]), torch.tensor([2, 2]))
    surprisal = -torch.tensor([[0.6, 2 / 3], [0.6, 1 / 3]], dtype=torch.float64).log()
    p = torch.tensor([0.4, 0.2], dtype=torch.float64)
    draw = SetDraw(p.log(), torch.tensor(0.4, dtype=torch.float64).log(), torch.tensor(-math.inf))
    rewards = torch.tensor([1.0, 0.0], dtype=torch.float64)
    given = credit_rule("shrunken", kappa=4.0)(tree, rewards, surprisal=surprisal, draw=draw)
    # Without the first answer the second has 0.2 of 0.6, and the set is it alone: B = 0.2 / (0.2 / 0.6) = 0.6. At the
    # root A = 0.6 (1 - 0) for the first; at `a`, of probability 0.6, A = (0.6 + 4 · 0.6) / (0.6 + 4).
    first, second = 0.6, -0.8
    expected = [[first, (first + 4 * first) / 4.6], [second, (second + 4 * second) / 4.6]]
    torch.testing.assert_close(given, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    shares = set_shares(draw)
    assert float(shares.sum()) == pytest.approx(2)
    # V̂ of `a` is that of both answers: TEMPO steps there by nothing, and then by r − V̂.
    mean = float(shares[0] / 2)
    spread = math.sqrt(float(shares[0]) * (1 - mean) ** 2 + float(shares[1]) * mean**2)
    given = credit_rule("tempo")(tree, rewards, surprisal=surprisal, draw=draw)
    expected = torch.tensor([[1 - mean, 2 * (1 - mean)], [-mean, -2 * mean]], dtype=torch.float64) / (spread + 1e-6)
    torch.testing.assert_close(given, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", distinct_rules())
def test_unscored_completions_are_left_out_and_equal_rewards_give_zero(name):
    policy = SmallPolicy(5)
    tree, surprisal, rewards, draw, _ = policy.group((0, 3, 4, 9))
    draw = SetDraw(draw.log_prob, draw.log_rest, draw.log_prob.min() - 3)  # importance weights need a threshold
    rule = credit_rule(name)
    rewards[1] = math.nan
    given = rule(tree, rewards, surprisal=surprisal, draw=draw)
    assert given.isfinite().all()
    assert not given[1].any()
    assert given[0].any()
    assert not rule(tree, torch.full((4,), 0.3), surprisal=surprisal, draw=draw).any()


def test_shrunken_needs_the_probability_of_prefixes():
    tree, _, rewards, draw, _ = SmallPolicy(5).group((0, 3, 4))
    with pytest.raises(ConfigError, match="Pass surprisal"):
        credit_rule("shrunken")(tree, rewards, draw=draw)
