"""Re-sampling on the real model: its estimates are free of the noise they say they are free of."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.resampling import noise, rollouts
from benchmarks.resampling.bench import Bench
from benchmarks.resampling.estimators import between_variance, bootstrap, leave_one_out, mean_square, others_baseline
from benchmarks.resampling.gradients import adapter_parameters, gradients_of, last_layer_gradients
from leaf.credit import PrefixTree, policy_loss
from leaf.model.distinct import sample_distinct
from leaf.model.policy import Policy
from leaf.model.sampling import sample
from leaf.model.scoring import score
from tests.helpers import tiny


@pytest.fixture(scope="module")
def policy():
    model, processor = tiny.tiny_model()
    torch.manual_seed(1)
    policy = Policy.wrap(model, processor, lora=peft.LoraConfig(r=4))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return policy


def test_variance_between_children_by_hand():
    # Three members, two ids with shares 2/3 and 1/3: mean 1, apart 2/3 · 1 + 1/3 · 4 = 2; errors 2/9 · (0.9 + 1.8).
    found = between_variance(np.array([5, 5, 8]), np.array([0.0, 0.0, 3.0]), np.array([0.9, 0.9, 1.8]))
    assert found == pytest.approx(2.0 - 0.6)
    assert between_variance(np.array([3, 3]), np.array([0.4, 0.4]), np.array([9.0, 9.0])) == 0.0


@given(st.lists(st.tuples(st.floats(-1, 1), st.floats(0, 1), st.integers(1, 3)), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_variance_between_children_has_no_bias(children):
    group = np.repeat(np.arange(len(children)), [count for _, _, count in children])
    true, error = (np.array([child[i] for child in children]) for i in (0, 1))
    found = [
        between_variance(group, (true + error * signs)[group], (error**2)[group])
        for signs in product((-1.0, 1.0), repeat=len(children))
    ]
    assert np.mean(found) == pytest.approx(true[group].var(), abs=1e-12)


def test_cosine_with_the_other_groups_by_hand():
    truth = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]])
    cosine, dot, square = leave_one_out(torch.tensor([[1.0, 1.0], [0.0, 5.0], [0.0, 0.0]]), truth)
    # The others of group 0 have mean (1.5, 1), of group 1 (2, 0).
    torch.testing.assert_close(dot, torch.tensor([2.5, 0.0, 0.0]))
    torch.testing.assert_close(square, torch.tensor([2.0, 25.0, 0.0]))
    torch.testing.assert_close(cosine, torch.tensor([2.5 / (2.0 * 3.25) ** 0.5, 0.0, 0.0]))
    # Pairs: 1·0, 1·3, 0·3, each twice of six.
    assert mean_square(truth) == pytest.approx(1.0)


def test_the_other_groups_baseline_knows_nothing_of_the_own_rewards():
    tokens = torch.tensor([[4, 5, 2], [4, 6, 2], [4, 5, 2], [7, 5, 2]])
    tree, mine = PrefixTree.build(tokens, torch.tensor([3, 3, 3, 3])), slice(0, 2)
    found = others_baseline(tree, torch.tensor([0.1, 0.9, 1.0, 0.0]), mine)
    again = others_baseline(tree, torch.tensor([0.7, 0.2, 1.0, 0.0]), mine)
    torch.testing.assert_close(found, again)
    # κ = 1: root 0.5; prefix 4: (1 + 0.5) / 2; then 4 5: (1 + 0.75) / 2, and 4 6, which no other has: its parent's.
    expected = torch.tensor([[0.5, 0.75, 0.875], [0.5, 0.75, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


def test_bootstrap():
    values = np.arange(10.0)
    middle, low, high = bootstrap(lambda i: values[i].mean(), 10, rounds=500)
    assert middle == 4.5
    assert low < 4.5 < high
    assert bootstrap(lambda i: np.ones(10)[i].mean(), 10, rounds=5) == (1.0, 1.0, 1.0)


def test_continuations_keep_their_prefix_and_draw_what_the_sampler_would(policy):
    (prompt,) = policy.embed(tiny.rows(1))
    bench: Any = object.__new__(Bench)
    bench.policy, bench.config = policy, SimpleNamespace(max_new_tokens=5, top_p=1e-6, temperature=1.0)
    (group,) = sample(policy, [prompt], num_completions=1, max_new_tokens=5, greedy=True)
    (text,), path = group.texts(policy.tokenizer), group.tokens[0]
    prefixes = [path[:0], path[:2], torch.tensor([int(path[0]) + 1, 7])]
    found = bench.continued(prompt, prefixes, 2, torch.Generator().manual_seed(0))
    assert found[:4] == [text] * 4
    assert found[4] == found[5]
    assert found[4].startswith(policy.tokenizer.decode(prefixes[2]).strip())


def test_gradients_are_those_of_the_policy_loss(policy):
    (prompt,) = policy.embed(tiny.rows(1))
    (group,) = sample(policy, [prompt], num_completions=4, max_new_tokens=6, generator=torch.Generator().manual_seed(0))
    mask = group.tree.node >= 0
    parameters = adapter_parameters(policy, policy.text_config.num_hidden_layers // 2)
    advantages = torch.randn(mask.shape, generator=torch.Generator().manual_seed(1))
    weights = mask / 24
    credits = {"one": weights * advantages, "none": torch.zeros(mask.shape)}
    found = gradients_of(policy, parameters, prompt, group.tree, credits)
    (log_probs,) = score(policy, [prompt], [group.tree]).log_probs
    loss, _ = policy_loss(log_probs, log_probs.detach(), advantages, mask, weights=weights, kl_coef=0.0)
    loss.backward()
    expected = -torch.cat([parameter.grad.flatten() for parameter in parameters])
    torch.testing.assert_close(found["one"].float(), expected, rtol=0.01, atol=1e-6)
    assert not found["none"].any()
    assert len(parameters) == 7  # one of the two layers


def test_last_layer_inner_products_are_those_of_its_gradients(policy):
    (prompt,) = policy.embed(tiny.rows(1))
    generator = torch.Generator().manual_seed(0)
    (group,) = sample(policy, [prompt], num_completions=6, max_new_tokens=6, generator=generator)
    halves = [group.select([0, 1, 2]), group.select([3, 4, 5])]
    credits = [{"one": torch.randn(3, group.tokens.shape[1], generator=generator)} for _ in halves]
    for half, credit in zip(halves, credits, strict=True):
        credit["one"] *= half.tree.node >= 0
    found = last_layer_gradients(policy, prompt, group.tree, credits)

    names = ("o_proj", "gate_proj", "up_proj", "down_proj")
    parameters = []
    for name, parameter in policy.named_parameters():
        local = "lora_B" in name and ".layers.1." in name and any(part in name for part in names)
        parameter.requires_grad_(local)
        parameters += [parameter] if local else []
    assert len(parameters) == 4
    mine = [
        gradients_of(policy, parameters, prompt, half.tree, credit)["one"].float()
        for half, credit in zip(halves, credits, strict=True)
    ]
    for a, b in product(range(2), repeat=2):
        rounding = 1e-3 * float(mine[a].norm() * mine[b].norm())  # of bfloat16, in which whole gradients are kept
        assert float(found[a]["one"] @ found[b]["one"]) == pytest.approx(float(mine[a] @ mine[b]), abs=rounding)


def test_products_of_groups_are_those_of_their_gradients(policy):
    (prompt,) = policy.embed(tiny.rows(1))
    given: Any = {"num_completions": 3, "max_new_tokens": 5}
    (alone,) = sample(policy, [prompt], generator=torch.Generator().manual_seed(2), **given)
    sets = sample_distinct(policy, [prompt] * 2, [torch.Generator().manual_seed(seed) for seed in (3, 4)], **given)
    groups = [alone, *sets]
    rewards = [torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)] * 3
    credits = [rollouts.credit_of(group, reward) for group, reward in zip(groups, rewards, strict=True)]
    # RLOO: r minus the mean of the others, over K.
    torch.testing.assert_close(credits[0], torch.tensor([-0.65, -0.05, 0.7], dtype=torch.float64) / 3)
    assert [len(credit) for credit in credits] == [3, 3, 3]
    found = rollouts.products_of(policy, prompt, groups, credits)
    together = PrefixTree.build(torch.cat([g.tokens for g in groups]), torch.cat([g.lengths for g in groups]))
    spread = [{"one": c[:, None] * (g.tree.node >= 0)} for g, c in zip(groups, credits, strict=True)]
    gradients = torch.stack([one["one"] for one in last_layer_gradients(policy, prompt, together, spread)])
    torch.testing.assert_close(found, gradients @ gradients.T, rtol=1e-6, atol=1e-12)


def test_what_a_distinct_group_is_worth_by_hand():
    def record(independent, distinct):
        return {"independent": {"variance": independent}, "distinct": {"variance": distinct}}

    assert rollouts.worth([record(5.0, 1.0), record(3.0, 1.0)]) == 4.0
    assert rollouts.worth([record(5.0, 0.0)]) == np.inf
    assert np.isnan(rollouts.worth([record(0.0, 0.0)]))


def test_what_a_step_is_made_of_by_hand():
    record = {"square": [5.0, 3.0], "independent": [3.0, 1.0], "distinct": [1.5, 0.5], "completions": 8}
    record["products"] = [[5.5, 1.0], [1.0, 3.5]]
    # B = 4 − 1 = 3, W = 2 and 1, that of 32 completions 2/4; the signal is 1.
    assert noise.parts(record, np.arange(2)) == {
        "share/independent": 2 / 5,
        "share/distinct": 1 / 4,
        "worth": 5 / 4,
        "worth of 32": 5 / 3.5,
        "prompts": 5.0,
    }
    # A prompt that a bootstrap draws twice is no pair of prompts.
    assert noise.parts(record, np.array([0, 0, 1]))["prompts"] == pytest.approx(13 / 3 - 1 + 7 / 3)
    assert noise.parts(record | {"products": [[5.5, -1.0], [-1.0, 3.5]]}, np.arange(2))["prompts"] == np.inf
