"""Completions that something else than the policy draws; here it is another copy of the policy, right or wrong."""

from dataclasses import fields, replace

import pytest
import torch

from leaf import RLTrainer
from leaf.config import LeafConfig
from leaf.engines.samplers import check_sampler
from leaf.engines.vllm.launch import free_port
from leaf.engines.vllm.options import VllmOptions
from leaf.errors import ConfigError, ModelError, RunError, RunInterrupted
from leaf.fields import inner_without
from leaf.model.sampler import LocalSampler
from leaf.model.sampler_check import SEEN, random_adapter
from leaf.train.elsewhere import Agreement
from leaf.train.making import parts_from_model
from tests.helpers import tiny
from tests.helpers.elsewhere import Behind, Elsewhere, Leaving
from tests.helpers.training import lines, recipe, without_times


def length_reward(completions, **columns):
    return [len(text) / 20 for text in completions]


def trainer(config, sampler, say=lambda line: None):
    model, processor = tiny.tiny_model()
    parts = parts_from_model(model, config, tiny.rows(5), tiny.rows(2), [length_reward], None, processor, None)
    return RLTrainer(**parts, sampler=sampler, say=say)


def test_where_the_weights_are_one_the_run_is_that_of_the_policy_itself(tmp_path):
    config = recipe(tmp_path, top_p=1.0)
    said = []
    elsewhere = trainer(replace(config, output_dir=str(tmp_path / "elsewhere")), Elsewhere(), said.append).train()
    here = trainer(replace(config, output_dir=str(tmp_path / "here")), LocalSampler()).train()
    ours, theirs = (without_times(lines(run.path, "metrics.jsonl")) for run in (elsewhere, here))
    for one, other in zip(ours, theirs, strict=True):
        assert one["sampling/sampling_logp_difference/max"] < 1e-4
        assert one["sampling/importance_sampling_ratio/mean"] == pytest.approx(1, abs=1e-4)
        assert one["rollout_corr/rollout_is_eff_sample_size"] == pytest.approx(1, abs=1e-6)
        for key in ("reward_mean", "loss", "grad_norm", "kl", "length_mean"):
            assert one[key] == pytest.approx(other[key], rel=1e-3, abs=1e-6), key
    assert any("the sampler uses the adapter: random weights" in line for line in said)


def test_gradients_are_those_of_the_policy_times_the_weight(tmp_path):
    """A sampler whose log-probabilities are all log 2 lower than the policy's gives every token the weight 2."""

    def gradients(sampler, **changes):
        config = recipe(tmp_path, top_p=1.0, kl_coef=0.0, max_grad_norm=1e9, **changes)
        one = trainer(config, sampler)
        if isinstance(sampler, Elsewhere):
            sampler.sync(one.policy, 0)
        seen = []
        one.skips.take = lambda *step: seen.append([p.grad.clone() for p in one.trained.values()]) is None  # type: ignore[method-assign,union-attr]
        one.update(one.rollout(1))
        return torch.cat([gradient.flatten() for gradient in seen[0]])

    plain = gradients(LocalSampler())
    assert torch.allclose(gradients(Elsewhere()), plain, rtol=1e-4, atol=1e-6 * float(plain.abs().max()))
    twice = gradients(Elsewhere(wrong="0.6931471805599453"))
    assert torch.allclose(twice, 2 * plain, rtol=1e-3, atol=1e-5 * float(plain.abs().max()))


def test_nothing_is_lost_where_the_servers_stay_away(tmp_path):
    """Servers that go in step 4, three steps behind the last checkpoint: the resumed run is the uninterrupted one."""
    config = recipe(tmp_path, top_p=1.0, max_steps=5, save_every=9, eval_every=0)
    whole = trainer(replace(config, output_dir=str(tmp_path / "whole")), Elsewhere()).train()
    broken = replace(config, output_dir=str(tmp_path / "broken"))
    with pytest.raises(RunInterrupted, match=r"http://a.* the run is saved after step 3 of 5"):
        trainer(broken, Leaving(2)).train()
    run = trainer(broken, Elsewhere()).train(resume_from_checkpoint=True)
    ours, theirs = (without_times(lines(path, "metrics.jsonl")) for path in (run.path, whole.path))
    assert ours == theirs


def test_a_wrong_address_is_said_at_once_and_leaves_no_run(tmp_path):
    options = {"url": f"http://127.0.0.1:{free_port()}", "start_s": 0.2}
    config = recipe(tmp_path, top_p=1.0, sampler="vllm", sampler_options=options)
    config = replace(config, output_dir=str(tmp_path / "none"))
    said = []
    one = trainer(config, None, said.append)
    with pytest.raises(RunError, match=r"No server of vLLM answers at http://127.* Start one, as `leaf serve RECIPE`"):
        one.train()
    assert [line for line in said if "no server of vLLM answers" in line]
    assert not (tmp_path / "none").exists()


def test_a_sampler_that_ignores_the_adapter_is_found_before_the_first_step(tmp_path):
    one = trainer(recipe(tmp_path, top_p=1.0), Elsewhere("ignores the adapter"))
    before = [p.detach().clone() for p in one.parameters]
    with pytest.raises(ModelError, match=r"those of the bare model .* the server ignores the adapter"):
        one.train()
    assert all(torch.equal(p, own) for p, own in zip(one.parameters, before, strict=True))  # its own weights are back


@pytest.mark.parametrize("allowed", [1e-3, 0.01])
def test_random_weights_move_the_policy_by_little_more_than_can_be_told(tmp_path, allowed):
    policy = trainer(recipe(tmp_path, top_p=1.0), Elsewhere()).policy
    with random_adapter(policy, policy.embed(tiny.rows(2)), allowed) as moved:
        assert SEEN * allowed <= moved <= 2 * SEEN * allowed


def test_a_run_ends_when_sampler_and_policy_disagree_twice_in_a_row(tmp_path):
    said = []
    one = trainer(recipe(tmp_path, top_p=1.0), Elsewhere(wrong="0.2"), said.append)
    with pytest.raises(
        ModelError, match=r"step 2: .*differ from the policy's by 0\.2 nats per token.* 2 rollouts in a"
    ):
        one.train()
    assert sum("The run ends if the next rollout is off" in line for line in said) == 1
    assert one.done == 1
    assert len(lines(tmp_path / "run", "metrics.jsonl")) == 1


def test_one_rollout_that_is_off_is_forgiven_if_the_next_is_right():
    said = []
    agreement = Agreement(1e-3, said.append)
    agreement.step(1, 0.5, 1.0)
    agreement.step(2, 1e-5, 1e-4)
    agreement.step(3, 1e-5, 0.1)  # a single token, far off
    assert len(said) == 2
    with pytest.raises(ModelError):
        agreement.step(4, float("nan"), 0.0)


def test_rules_that_read_entropies_get_the_policys(tmp_path):
    config = recipe(tmp_path, top_p=1.0, credit="gtpo", temperature=0.7)
    one, other = trainer(config, Elsewhere()), trainer(config, LocalSampler())
    one.sampler.sync(one.policy, 0)
    ours, theirs = one.rollout(1), other.rollout(1)
    for a, b in zip(ours.groups, theirs.groups, strict=True):
        assert a.entropy is not None
        assert b.entropy is not None
        assert torch.allclose(a.entropy, b.entropy, atol=1e-4)
    for a, b in zip(ours.advantages, theirs.advantages, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_a_rollout_that_is_drawn_ahead_comes_from_weights_one_step_old(tmp_path):
    options = {"url": "http://localhost:1", "overlap": True}
    config = recipe(tmp_path, top_p=1.0, max_steps=4, learning_rate=3e-2, sampler="vllm", sampler_options=options)
    one = trainer(config, Behind())
    seen, update = [], one.update
    one.update = lambda rollout: seen.append(rollout) or update(rollout)  # type: ignore[func-returns-value,method-assign]
    run = one.train()
    assert [rollout.groups[0].version for rollout in seen] == [0, 0, 1, 2]
    records = lines(run.path, "metrics.jsonl")
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    for record in records:  # the sampler is right about the weights that it drew from
        assert record["sampling/engine_logp_difference/max"] < 1e-4
    # The first rollout is drawn from the policy as it is; since then it has moved, and the weights say so.
    assert records[0]["sampling/sampling_logp_difference/max"] < 1e-4
    for record in records[1:]:
        assert record["sampling/sampling_logp_difference/mean"] > 1e-3
        assert record["sampling/importance_sampling_ratio/max"] > 1.001
    assert all("seconds/sample" in record for record in records)
    (tmp_path / "run/checkpoints/step-000004").rename(tmp_path / "later")  # and it resumes
    again = trainer(config, Behind()).train(resume_from_checkpoint=True)
    assert [record["step"] for record in lines(again.path, "metrics.jsonl")] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler_options": {"url": "http://localhost:1"}}, "sampler is local, which takes none"),
        ({"sampler": "vllm"}, "name no server"),
        ({"sampler": "vllm", "sampler_options": {"urls": ["http://a"], "url": "http://b"}}, "name a url and urls"),
        ({"sampler": "vllm", "sampler_options": {"ulr": "http://a"}}, "have no ulr. Did you mean 'url'"),
        ({"sampler": "vllm", "sampler_options": {"url": "http://a", "threshold": "much"}}, "threshold is 'much'"),
        ({"sampler": "vllm", "sampler_options": {"url": "http://a", "threshold": 0.5}}, "at least 1.0"),
        ({"sampler": "vllm", "sampler_options": {"url": "http://a", "bound": "mak"}}, "Did you mean 'mask'"),
        ({"sampler": "vllm", "sampler_options": {"url": "http://u:p@a"}}, "user or password"),
        ({"sampler": "vllm", "sampler_options": {"url": "http://a"}, "top_p": 0.9}, "Set top_p=1"),
        (
            {"sampler": "vllm", "sampler_options": {"url": "http://a"}, "rollout": "distinct", "credit": "nbest"},
            "rollout is distinct and sampler is vllm",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_model_is_touched(changes, message):
    with pytest.raises(ConfigError) as error:
        check_sampler(LeafConfig(**{"top_p": 1.0, **changes}))
    assert message in str(error.value)


def test_what_a_resumed_run_may_change_of_a_sampler_are_its_servers():
    (free,) = (field.metadata["free_options"] for field in fields(LeafConfig) if field.name == "sampler_options")
    given = {"url": "http://a", "threshold": 2.0, "overlap": True, "adapter_dir": "/x"}
    assert inner_without(given, free) == {"threshold": 2.0, "overlap": True}
    assert {*free} < {field.name for field in fields(VllmOptions)}
