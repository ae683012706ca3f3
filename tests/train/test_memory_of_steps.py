"""What a step keeps and how much fits: prompts kept for the update, token budgets, memory that runs out."""

import pytest
import torch

from leaf.errors import RunError
from leaf.model import kept as kept_prompts
from leaf.model.decoding import PathDecoder
from leaf.model.kept import taken
from leaf.train import update
from leaf.train.update import add_gradient, weights_over_all
from tests.helpers.training import lines, recipe, trainer, without_times


def test_an_update_that_goes_on_from_the_sampled_prompts_learns_the_same(tmp_path, monkeypatch):
    runs, used = {}, []
    with monkeypatch.context() as patch:
        patch.setattr(update, "finish", lambda kept: used.append(len(kept)) or kept_prompts.finish(kept))
        for name, budget in (("kept", 512), ("again", 80)):  # 80 tokens are a prompt with its nodes, not two prompts
            runs[name] = trainer(recipe(tmp_path, output_dir=str(tmp_path / name), token_budget=budget)).train()
    assert used == [2, 2, 2, 0, 0, 0]
    kept, again = (without_times(lines(run.path, "metrics.jsonl")) for run in runs.values())
    for mine, theirs in zip(kept, again, strict=True):
        assert mine.pop("token_budget") != theirs.pop("token_budget")
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("fails", ["score", "finish"])
def test_an_update_whose_prompts_are_lost_runs_them_again(tmp_path, monkeypatch, fails):
    def never(*given):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    one = trainer(recipe(tmp_path, max_steps=1))
    one.start()
    gradients = {}
    for lost in (False, True):
        made = one.rollout(1)
        assert all(group.kept is not None for group in made.groups)
        masks = [group.tree.node >= 0 for group in made.groups]
        weights = weights_over_all(masks, made.shares, one.config, one.processes)
        one.policy.zero_grad()
        if lost:
            with monkeypatch.context() as patch:
                patch.setattr(update, fails, never)
                with pytest.raises(torch.OutOfMemoryError):
                    add_gradient(one.policy, made, masks, weights, one.config)
            assert not any(group.kept.sources for group in made.groups)
            one.policy.zero_grad()
        add_gradient(one.policy, made, masks, weights, one.config)
        gradients[lost] = [p.grad.clone() for p in one.parameters]
    for mine, theirs in zip(gradients[True], gradients[False], strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6, rtol=1e-4)


def test_prompts_that_other_weights_ran_are_run_again(tmp_path):
    one = trainer(recipe(tmp_path, max_steps=1))
    one.start()
    groups = one.rollout(1).groups
    with torch.no_grad():
        one.parameters[0].mul_(1.01)
    with taken(one.policy, [(group.kept, group.tree) for group in groups]) as kept:
        assert kept is None


def test_running_out_of_memory_halves_the_budget_and_loses_no_step(tmp_path, monkeypatch):
    """Forwards above a limit fail as CUDA's do; the run goes on in smaller ones and learns the same."""
    wanted = trainer(recipe(tmp_path, output_dir=str(tmp_path / "free"), token_budget=4096, seed=1)).train()
    config = recipe(tmp_path, output_dir=str(tmp_path / "tight"), token_budget=4096, seed=1)
    tight = trainer(config)
    decode, limit = tight.policy.decode, 100
    failed = []

    def small(embeddings, **arguments):
        if embeddings.shape[0] * embeddings.shape[1] > limit and torch.is_grad_enabled():
            failed.append(embeddings.shape[0])
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return decode(embeddings, **arguments)

    monkeypatch.setattr(tight.policy, "decode", small)
    run = tight.train()
    assert failed
    budgets = [record["token_budget"] for record in lines(run.path, "metrics.jsonl")]
    assert budgets == sorted(budgets, reverse=True)
    assert budgets[-1] < 4096
    got, whole = lines(run.path, "metrics.jsonl"), lines(wanted.path, "metrics.jsonl")
    assert [record["step"] for record in got] == [1, 2, 3]
    assert (tmp_path / "tight" / "last" / "adapter_model.safetensors").is_file()
    # AdamW's first steps are signs of gradients, so weights near zero may part; what was learned from may not.
    for key in ("grad_norm", "reward_mean", "packed_tokens"):
        assert got[0][key] == pytest.approx(whole[0][key], rel=1e-4), key


def test_memory_too_small_for_one_prompt_is_said_in_one_sentence(tmp_path, monkeypatch):
    poor = trainer(recipe(tmp_path))
    start = poor.start()
    rollout = poor.rollout(start + 1)

    def never(embeddings, **arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(poor.policy, "decode", never)
    with pytest.raises(RunError, match=r"completions of a single prompt were sampled\. Use fewer num_completions"):
        poor.rollout(start + 1)
    with pytest.raises(RunError, match=r"Memory ran out even at 64 tokens a forward.*gradient_checkpointing: true"):
        poor.update(rollout)


def test_running_out_of_memory_while_sampling_leaves_the_token_budget_and_is_kept(tmp_path, monkeypatch):
    """In a rollout and in a validation; a resumed run goes on with what fitted."""
    first = trainer(recipe(tmp_path, max_steps=2, token_budget=512))
    first.policy.rows_at_once, first.policy.keeps_prompts = 3, False
    start = PathDecoder.start

    def small(self):
        if len(self.prompts) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return start(self)

    monkeypatch.setattr(PathDecoder, "start", small)
    run = first.train()
    assert [record["token_budget"] for record in lines(run.path, "metrics.jsonl")] == [512, 512]
    again = trainer(recipe(tmp_path, max_steps=3, token_budget=512))
    again.start(resume=True)
    assert again.policy.sampled_at_once == first.policy.sampled_at_once is not None
    assert again.policy.keeps_prompts is False
    assert again.policy.rows_at_once == 3


def test_the_budget_is_automatic_and_a_resumed_run_keeps_its_own(tmp_path):
    first = trainer(recipe(tmp_path, max_steps=2))
    assert 64 <= first.policy.token_budget <= 2048
    first.policy.token_budget = 77
    first.train()
    again = trainer(recipe(tmp_path, max_steps=3))
    again.start(resume=True)
    assert again.policy.token_budget == 77
    assert trainer(recipe(tmp_path, token_budget=333)).policy.token_budget == 333
