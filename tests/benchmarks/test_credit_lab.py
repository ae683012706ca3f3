"""The credit laboratory: its truth is true, and what it says about shared spans holds exactly."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.credit_lab.language import END, Language
from benchmarks.credit_lab.measure import Judge, advantages
from benchmarks.credit_lab.policies import Policies
from benchmarks.credit_lab.rules import all_rules, out, own
from benchmarks.credit_lab.world import Groups, Setting, World
from leaf.credit import PrefixTree, credit_rule, leaf_spans, policy_loss, token_weights

SMALL: dict[str, Any] = {"vocabulary": 3, "depth": 3, "completions": 4}


def worlds():
    kinds: list[dict[str, Any]] = [{}, {"end": True}, {"sparse": 0.1}, {"aligned": 1.0}]
    for policy, more in product(("tabular", "shared"), kinds):
        yield World.draw(Setting(policy=policy, **SMALL, **more), 7)


def test_the_true_gradient_is_the_derivative_of_the_expected_reward():
    for world in worlds():
        parameters = torch.zeros(world.gradient.shape, dtype=torch.float64, requires_grad=True)
        moved = (world.flat_probs.clamp_min(1e-300).log() + world.to_logits(parameters)).softmax(-1)
        mass, v = torch.ones(1, dtype=torch.float64), world.setting.vocabulary
        for t in range(world.setting.depth):
            now = moved[world.offset[t] : world.offset[t] + v**t]
            mass = (mass[:, None] * now).flatten()
        (mass * world.value[-1]).sum().backward()
        assert parameters.grad is not None
        assert torch.allclose(parameters.grad, world.gradient, atol=1e-12)


def test_rewards_are_scaled_as_described():
    for world in worlds():
        mass, value = world.mass[-1], world.value[-1]
        assert float(mass.sum()) == pytest.approx(1)
        if world.setting.sparse:
            assert set(value.tolist()) == {0.0, 1.0}
        else:
            mean = (mass * value).sum()
            assert float(mean) == pytest.approx(0.5)
            assert float((mass * (value - mean).square()).sum().sqrt()) == pytest.approx(0.25)


def test_estimates_are_the_gradients_that_autograd_finds():
    """Cosine, squared norm and projection of one group's estimate, against the loss of the library on this policy."""
    for world in worlds():
        groups = world.sample(3, torch.Generator().manual_seed(3))
        some = ("leaf B=2", "grpo", "shrunken own out, kappa=1")
        drawn = advantages(groups, {name: all_rules()[name] for name in some})
        judge = Judge(world, groups)
        for advantage in drawn.values():
            step = judge.weight * advantage.reshape(3, -1)
            squares = judge.squares(step, chunk=2)
            for g in range(3):
                parameters = torch.zeros(world.gradient.shape, dtype=torch.float64, requires_grad=True)
                moved = (world.flat_probs.clamp_min(1e-300).log() + world.to_logits(parameters)).log_softmax(-1)
                new = moved[groups.prefix[g], groups.tokens[g]]
                mask = torch.arange(world.setting.depth) < groups.lengths[g][:, None]
                loss, _ = policy_loss(new, new.detach(), advantage[g], mask, weights=token_weights([mask])[0])
                loss.backward()
                assert parameters.grad is not None
                assert float(parameters.grad.square().sum()) == pytest.approx(float(squares[g]), rel=1e-5, abs=1e-12)
                along = -float((parameters.grad * world.gradient).sum())
                assert along == pytest.approx(float((step * judge.along)[g].sum()), rel=1e-4, abs=1e-9)


def test_which_rules_are_unbiased_exactly():
    """All 64 groups of 3 completions of 2 tokens over 2 words, each with its probability: the expectation itself."""
    world = World.draw(Setting(vocabulary=2, depth=2, completions=3), 0)
    number = torch.tensor(list(product(range(4), repeat=3)))
    tokens = torch.stack([number // 2, number % 2], -1)
    prefix = torch.stack([torch.zeros_like(number), 1 + number // 2], -1)
    surprisal = -world.flat_probs[prefix, tokens].log()
    groups = Groups(tokens, torch.full((64, 3), 2), surprisal, prefix, world.value[-1][number])
    mass = world.mass[-1][number].prod(1)
    assert float(mass.sum()) == pytest.approx(1.0)
    rules = {f"out {k:g}": out(k) for k in (0.0, 1.0, 5.0)}
    judge = Judge(world, groups)
    drawn = advantages(groups, {"rloo": credit_rule("rloo"), **rules, "own": own(1.0)})
    drawn["true"] = world.child_value(groups) - world.own_value(groups)
    for name, advantage in drawn.items():
        # A token's weight is 1 / (K D), so the expected estimate is the true gradient over D.
        mean = 2 * judge.total(judge.weight * (mass[:, None, None] * advantage).reshape(64, -1))
        if name == "own":  # not even its direction
            assert float((mean * world.gradient).sum() / mean.norm() / world.gradient.norm()) < 0.9999
        else:
            assert torch.allclose(mean, world.gradient, atol=1e-8)


# -- what a shared span does to the gradient ---------------------------------------------------------------------------
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["tabular", "shared"]), st.booleans())
def test_the_mean_reward_on_a_shared_span_leaves_the_gradient_unchanged(seed, policy, global_terms):
    """Σ over a node's members of r ∇log π(span) = n V̂ ∇log π(span): members' tokens there have one and the same score.

    So, with equal token weights, no 1/√n and no z-score, GA alone is Dr. GRPO, whatever the boundaries; and with the
    parent baseline it is r − V̂(parent) painted on every span.
    """
    world = World.draw(Setting(policy=policy, vocabulary=2, depth=5, completions=8, scale=2.0), seed)
    groups = world.sample(4, torch.Generator().manual_seed(seed))
    judge = Judge(world, groups)
    options = {"sqrt_count": False, "normalize": False, "max_boundaries": 1 + seed % 4}

    def own_reward(tree, rewards, *, surprisal):
        """Credit r − V̂ of the span's parent (GA: of the root), without any mean over members."""
        result = torch.zeros(tree.tokens.shape, dtype=torch.float64)
        _, spans = leaf_spans(tree, rewards, surprisal=surprisal, terms="local", **options)
        for i, each in enumerate(spans):
            above = rewards.mean()
            for s in each:
                result[i, s.start : s.end] = rewards[i] - (rewards.mean() if global_terms else above)
                above = s.value
        return result

    terms = "global" if global_terms else "local"
    drawn = advantages(groups, {"mean": credit_rule("leaf", terms=terms, **options), "own": own_reward})
    for g in range(4):
        one = torch.zeros(4, 1, 1).index_fill_(0, torch.tensor([g]), 1.0)
        mean, plain = (judge.total(judge.weight * (one * a).reshape(4, -1)) for a in (drawn["mean"], drawn["own"]))
        assert torch.allclose(mean, plain, atol=1e-9)
    if global_terms:
        dr_grpo = advantages(groups, {"dr_grpo": credit_rule("dr_grpo")})["dr_grpo"]
        assert torch.allclose(dr_grpo, drawn["own"], atol=1e-9)


def test_the_identity_ends_where_token_weights_differ():
    """Completions of unequal length have unequal weights under the published reduction: then the two part."""
    tree = PrefixTree.build(torch.tensor([[1, 2, 0], [1, 3, 4], [5, 6, 7]]), torch.tensor([2, 3, 3]))
    rewards, mask = torch.tensor([1.0, 0.0, 0.5]), tree.node >= 0
    options = {"boundaries": torch.tensor([1]), "terms": "global", "sqrt_count": False, "normalize": False}
    on_first = []
    for reduction in ("completion_mean", "token_mean"):
        weight = token_weights([mask], reduction=reduction)[0]
        rules = (credit_rule("leaf", **options), credit_rule("dr_grpo"))
        on_first += [float((weight * rule(tree, rewards))[:2, 0].sum()) for rule in rules]
    assert on_first == pytest.approx([0.0, (1 / 2 - 1 / 3) / 3 * 0.5, 0.0, 0.0])


def test_spo_and_the_prefix_baseline_are_one_gradient():
    world = World.draw(Setting(vocabulary=2, depth=6, scale=2.0), 0)
    groups = world.sample(20, torch.Generator().manual_seed(0))
    judge = Judge(world, groups)
    prefix = credit_rule("shrunken", kappa=0.0, leave_one_out=False)
    drawn = advantages(groups, {"spo": credit_rule("spo", credited="branching"), "prefix": prefix})
    spo, baseline = (judge.total(judge.weight * a.reshape(20, -1)) for a in drawn.values())
    assert torch.allclose(spo, baseline, atol=1e-9)


# -- the translation game --------------------------------------------------------------------------------------------
def test_the_language_by_hand():
    language = Language()
    source, target, length = language.sentences((300,), torch.Generator().manual_seed(0))
    for s, t, n in zip(source.tolist(), target.tolist(), length.tolist(), strict=True):
        assert s[n:] == [END] * (7 - n)
        want = []
        for i, word in enumerate(s[:n]):
            after = i > 0 and s[i - 1] in language.marks.tolist()
            want.append(int((language.second if after else language.first)[word]))
            if i and word in language.swaps.tolist():
                want[-2:] = want[:-3:-1]
        assert t == want + [END] * (8 - n)


def test_sampling_and_scoring_agree_and_seeds_do_not_mix():
    policies, generator = Policies(3, 5), torch.Generator().manual_seed(0)
    source, _, _ = Language().sentences((3, 2), generator)
    tokens, length, logp, entropy = policies.sample(source, 4, generator)
    scored = policies.log_probs(source, tokens, 4)
    mask = torch.arange(tokens.shape[-1]) < length[..., None]
    assert torch.allclose(scored[mask], logp[mask], atol=1e-5)
    assert bool((entropy > 0).all())
    assert bool((entropy <= math.log(END + 1) + 1e-5).all())
    gradient = torch.autograd.grad(scored[1][mask[1]].sum(), policies.p["encoder.x"])[0]
    assert bool((gradient[[0, 2]] == 0).all())
    assert bool((gradient[1] != 0).any())
    alone = Policies(1, 6)
    assert torch.equal(alone.p["out"][0], policies.p["out"][1])
