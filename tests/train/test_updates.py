"""Updates of a rollout: on policy and off, losses, divergence, and what is recorded of them."""

import math
from dataclasses import replace
from typing import Any

import peft
import pytest
import torch

from leaf.credit import SURROGATES
from leaf.errors import ConfigError
from leaf.train.scoring import reference_log_probs
from leaf.train.update import add_gradient, update_record, weights_over_all
from tests.helpers.training import lines, recipe, trainer, weights, without_times


def test_small_updates_and_off_policy_passes(tmp_path):
    config = recipe(tmp_path, completions_per_update=3, passes_per_rollout=2, max_steps=2)
    leaf_trainer = trainer(config)
    assert leaf_trainer.updates_per_rollout == 6  # 8 completions in parts of 3, twice
    assert not leaf_trainer.on_policy
    run = leaf_trainer.train()
    metrics = lines(run.path, "metrics.jsonl")
    assert metrics[0]["ratio_max"] > 1.0
    assert "seconds/old" in metrics[0]


@pytest.mark.parametrize("parts", [{}, {"completions_per_update": 3, "passes_per_rollout": 2}], ids=["one", "six"])
def test_layers_below_the_adapter_run_once_per_rollout_and_training_stays_the_same(tmp_path, parts):
    lora = peft.LoraConfig(r=4, lora_alpha=8, layers_to_transform=[1])
    found: list[dict[str, torch.Tensor]] = []
    for shares in (True, False):
        one = trainer(recipe(tmp_path, kl_coef=0.1, **parts), peft_config=lora)
        one.policy.shares_below = shares
        rollout = one.rollout(1)
        assert (rollout.groups[0].entry.states is not None) == shares
        calls: list[Any] = []
        one.policy.language_model.layers[0].mlp.register_forward_hook(lambda *given, calls=calls: calls.append(given))
        one.update(rollout)
        assert bool(calls) != shares
        found.append({name: value.detach() for name, value in one.trained.items()})
    for name, value in found[0].items():
        assert torch.allclose(value, found[1][name], atol=1e-5), name


def test_losses_differ_once_the_policy_has_moved_and_not_before(tmp_path):
    def adapter(name, **changes):
        run = trainer(recipe(tmp_path / name, learning_rate=1e-2, max_steps=1, eval_every=0, **changes)).train()
        return torch.cat([value.flatten() for value in weights(run.path / "last").values()])

    def trained(name, **changes):
        return adapter(f"{name}-{len(changes)}", loss=name, **changes)

    on_policy = [trained(name) for name in SURROGATES]
    assert all(torch.allclose(on_policy[0], other, atol=1e-6) for other in on_policy[1:])
    off_policy = [trained(name, completions_per_update=2, passes_per_rollout=3) for name in SURROGATES]
    for i, one in enumerate(off_policy):
        assert all(not torch.allclose(one, other, atol=1e-4) for other in off_policy[i + 1 :])


@pytest.mark.parametrize("betas", [[0.9], [0.9, 1.0], [-0.1, 0.9]])
def test_betas_of_adam_are_two_numbers_below_one(tmp_path, betas):
    with pytest.raises(ConfigError, match="two numbers of at least 0 and below 1"):
        trainer(recipe(tmp_path, adam_betas=betas))


def test_one_update_with_all_completions_is_on_policy_however_it_is_asked_for(tmp_path):
    runs = []
    for name, size in (("none", None), ("equal", 8), ("more", 9)):
        config = recipe(tmp_path, output_dir=str(tmp_path / name), completions_per_update=size, max_steps=2)
        one = trainer(config)
        assert (one.updates_per_rollout, one.on_policy) == (1, True)
        runs.append(without_times(lines(one.train().path, "metrics.jsonl")))
    assert runs[0] == runs[1] == runs[2]


def test_what_is_recorded_of_a_rollout_leaves_skipped_updates_out():
    updates = [
        ({"loss": 1.0, "ratio_max": 1.5}, True),
        ({"loss": math.nan, "ratio_max": 9.0}, False),
        ({"loss": 2.0, "ratio_max": 1.25}, True),
    ]
    assert update_record(updates) == {"kl": None, "loss": 1.5, "ratio_max": 1.5, "skipped_steps": 1}
    assert update_record(updates[1:2]) == {"kl": None, "loss": None, "ratio_max": None, "skipped_steps": 1}
    assert update_record([({"kl": 0.25}, True), ({"kl": 0.75}, True)]) == {"kl": 0.5, "skipped_steps": 0}


def test_ratio_max_is_the_largest_of_all_updates(tmp_path):
    one = trainer(recipe(tmp_path, completions_per_update=3, passes_per_rollout=2))
    step, seen = one._optimizer_step, []

    def watched(part, count):
        stats, taken = step(part, count)
        seen.append(stats["ratio_max"])
        return stats, taken

    one._optimizer_step = watched
    assert one.update(one.rollout(1))["ratio_max"] == max(seen) > min(seen)


def test_without_a_reference_there_is_no_divergence(tmp_path):
    said = []
    one = trainer(recipe(tmp_path, kl_coef=0.0, max_steps=1, eval_every=0))
    one.say = said.append
    (record,) = lines(one.train().path, "metrics.jsonl")
    assert record["kl"] is None
    assert "seconds/reference" not in record
    assert any("kl none" in line for line in said)


def test_on_policy_gradient_equals_that_with_stored_old_log_probs(tmp_path, monkeypatch):
    """Leaving out the old forward changes nothing; nor do micro-batches."""
    gradients = []
    for name, on_policy, budget in (("a", True, 4096), ("b", False, 4096), ("c", True, 1)):
        one = trainer(recipe(tmp_path, output_dir=str(tmp_path / name), token_budget=budget))
        one.on_policy = on_policy
        seen, clip = {}, torch.nn.utils.clip_grad_norm_

        def look(parameters, norm, one=one, seen=seen, clip=clip):
            seen.update({n: p.grad.clone() for n, p in one.policy.named_parameters() if p.requires_grad})
            return clip(parameters, norm)

        rollout = one.rollout(1)
        assert (rollout.old_log_probs is None) == on_policy
        monkeypatch.setattr("leaf.train.update.clip_grad_norm_", look)
        one.update(rollout)
        gradients.append(seen)
    for other in gradients[1:]:
        for name, value in gradients[0].items():
            assert torch.allclose(value, other[name], rtol=1e-3, atol=1e-6), name


def test_dropout_needs_an_old_forward(tmp_path):
    assert not trainer(recipe(tmp_path, lora_dropout=0.1)).on_policy


@pytest.mark.parametrize("reward", [None, 0.5])
def test_unscored_and_equal_rewards_leave_the_weights(tmp_path, reward):
    config = recipe(tmp_path, kl_coef=0.0, max_steps=2, eval_every=0)
    run = trainer(config, reward_funcs=[lambda completions, **_: [reward] * len(completions)]).train()
    metrics = lines(run.path, "metrics.jsonl")
    assert metrics[0]["reward_mean"] == reward
    assert metrics[0]["unscored"] == (8 if reward is None else 0)
    assert metrics[0]["grad_norm"] == 0.0
    assert all(bool((v == 0).all()) for name, v in weights(run.path / "last").items() if "lora_B" in name)


def test_groups_without_a_single_token_teach_nothing(tmp_path):
    """Beside a normal group the update is that group's alone; by themselves they leave loss and gradient at zero."""
    one = trainer(recipe(tmp_path))
    rollout = one.rollout(1)
    width = rollout.groups[1].tokens.shape[1]
    for empty in (0, width):  # no tokens at all, or padding alone
        nothing = torch.zeros(4, empty)
        group = replace(
            rollout.groups[0], tokens=nothing.long(), lengths=torch.zeros(4, dtype=torch.long), surprisal=nothing
        )
        advantages = one.rule(group.tree, rollout.rewards[0], surprisal=nothing).float()
        assert advantages.shape == nothing.shape
        assert not bool(advantages.any())
        mixed = replace(
            rollout,
            groups=[group, rollout.groups[1]],
            advantages=[advantages, rollout.advantages[1]],
            ref_log_probs=reference_log_probs(one.policy, [group, rollout.groups[1]]),
        )
        found = []
        for positions in ([1], [0, 1], [0]):
            names = ("rows", "groups", "rewards", "advantages", "shares", "ref_log_probs", "positions")
            part = replace(mixed, **{name: [getattr(mixed, name)[i] for i in positions] for name in names})
            one.optimizer.zero_grad()
            masks = [group.tree.node >= 0 for group in part.groups]
            weights = weights_over_all(masks, part.shares, one.config, one.processes)
            sums = add_gradient(one.policy, part, masks, weights, one.config)
            assert all(math.isfinite(value) for value in sums.values())
            found.append((sums["loss"], [torch.zeros(1) if p.grad is None else p.grad.clone() for p in one.parameters]))
        (alone, wanted), (both, got), (only, none) = found
        assert both == pytest.approx(alone, abs=1e-6)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, wanted, strict=True))
        assert only == 0.0
        assert not any(bool(gradient.any()) for gradient in none)
        twice = {name: [getattr(mixed, name)[0]] * 2 for name in ("groups", "advantages", "ref_log_probs")}
        assert one.update(replace(mixed, **twice))["skipped_steps"] == 0
