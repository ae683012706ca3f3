"""Which changes to a recipe a resumed run accepts, and that every stage resumes exactly."""

import hashlib
import inspect
import json
import os
import shutil
import signal
from dataclasses import fields, replace

import peft
import pytest
import torch

from leaf.commands.running import load_policy
from leaf.config import AlignConfig, LeafConfig, SftConfig
from leaf.errors import ModelError, RunError, RunInterrupted
from leaf.model.policy import Policy
from leaf.rewards.judge import judge_reward
from leaf.runs.checkpoints import Checkpoints
from leaf.runs.directory import RunDirectory
from leaf.train.align import align
from leaf.train.sft import sft
from tests.helpers import tiny
from tests.helpers.project import save
from tests.helpers.resuming import contents, records, same, trainer

# -- which run it is ---------------------------------------------------------------------------------------------------


def test_another_recipe_is_refused_with_the_fields_that_differ(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    with pytest.raises(
        RunError, match="Allowed are larger values of max_prompt_tokens, max_steps, epochs and other ones of attention"
    ) as error:
        trainer(path, seed=1, clip=0.3, credit_options={"max_boundaries": 3}).start(resume=True)
    text = str(error.value)
    assert "clip is 0.3, was 0.2" in text
    assert "seed is 1, was 0" in text
    assert "credit_options is {'max_boundaries': 3}, was {}" in text
    assert "learning_rate" not in text
    assert "Put back what differs, or start another run in another output_dir" in text
    with pytest.raises(RunError, match="max_steps is 4, was 5"):
        trainer(path, max_steps=4).start(resume=True)
    with pytest.raises(RunError, match="lora_r is 4, was 2"):
        trainer(path, lora_r=4).start(resume=True)
    with pytest.raises(RunError, match=r"with rewards: \['letters'\], now \['bleu'\], but they decide"):
        trainer(path, rewards="bleu").start(resume=True)
    trainer(path).train(resume_from_checkpoint=True)
    assert same(path, whole)


def test_another_number_of_rows_is_refused(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    one = trainer(path)
    training = (one.trained, one.optimizer, one.schedule)
    for key, was, now, why in (("training rows", 5, 6, "their order depends on how many there are"),):
        with pytest.raises(RunError, match=f"was trained with {key}: {was}, now {now}, but {why}"):
            Checkpoints(RunDirectory(path), one.args, *training, facts={key: now}).restore()


def test_other_rows_of_the_same_number_are_said(whole, tmp_path):
    path, said = tmp_path / "run", []
    shutil.copytree(whole[0], path)
    one = trainer(path, say=said.append)
    one.train_rows[2]["reference"] += "s"
    one.start(resume=True)
    one.run.release()
    assert said[0] == "the training rows are as many as before, but not the same; the run goes on with those of now"


def test_a_judge_may_have_moved_but_not_have_become_another(tmp_path):
    """What is kept in the recipe is compared; the reward itself is another here."""
    path = tmp_path / "run"
    judge = {"url": "http://localhost:8000/v1", "model": "judge"}
    one = trainer(path, max_steps=1, eval_every=0)
    training = (one.trained, one.optimizer, one.schedule)
    config = replace(one.args, reward_options={"judge": judge})
    Checkpoints(RunDirectory.begin(config), config, *training, facts={}).save(1, validation_due=False)
    moved = {**judge, "url": "http://elsewhere:8000/v1", "concurrency": 2}
    config = replace(one.args, reward_options={"judge": moved})
    restored = Checkpoints(RunDirectory(path), config, *training, facts={}).restore()
    assert restored is not None
    assert restored["step"] == 1
    config = replace(one.args, reward_options={"judge": {**moved, "model": "other"}})
    with pytest.raises(RunError, match=r"reward_options is .*'model': 'other'.*, was .*'model': 'judge'"):
        Checkpoints(RunDirectory(path), config, *training, facts={}).restore()


def test_what_may_change_of_a_judge_are_options_that_it_takes():
    (free,) = (field.metadata["free_options"] for field in fields(LeafConfig) if field.name == "reward_options")
    asked = set(free) & inspect.signature(judge_reward).parameters.keys()
    assert asked == {"url", "key_env", "concurrency", "timeout_s", "retries"}


def test_another_number_of_processes_is_said(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    checkpoint = path / "checkpoints/step-000005"
    text = (checkpoint / "state.json").read_text().replace('"processes": 1', '"processes": 4')
    (checkpoint / "state.json").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"]["sha256"] = digest
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    said = []
    again = trainer(path, say=said.append)
    again.start(resume=True)
    again.run.release()
    assert said[-1] == "1 processes, was 4: the last bits will differ, as will the noise of LoRA dropout"


def test_a_model_with_other_parameters_is_refused(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    one = trainer(path)
    name = next(iter(one.trained))
    rest = {key: value for key, value in one.trained.items() if key != name}
    with pytest.raises(RunError, match=rf"does not fit what is trained here: {name} is None, was \(torch.float32"):
        Checkpoints(
            RunDirectory(path), one.args, rest, one.optimizer, one.schedule, facts={}, script=one.given.script
        ).restore()


def test_what_does_not_change_the_run_may_change(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    said = []
    changes = {"save_every": 7, "keep_checkpoints": 3, "token_budget": 99, "max_steps": 7, "eval_every": 0}
    again = trainer(path, say=said.append, **changes)
    again.train(resume_from_checkpoint=True)
    assert again.policy.token_budget == 99
    assert [record["step"] for record in records(path, "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 7]
    assert said[0] == "the learning rate now follows a cosine over 7 steps instead of 5"
    assert said[1] == "token_budget changed: results will match only up to floating-point rounding"
    assert again.run.config() == again.args
    # Two updates a step: after step 6 the schedule for 7 steps is at update 12 of 14, three of them warm-up.
    rate = records(path, "metrics.jsonl")[5]["learning_rate"]
    assert rate == again.schedule.base_lrs[0] * again.schedule.lr_lambdas[0](12)


def test_a_prompt_that_was_too_long_may_be_allowed_and_the_run_goes_on(whole, tmp_path):
    """Row 2 has 60 tokens, the others fewer, and step 3 is the first to meet it."""
    path, said = tmp_path / "run", []
    with pytest.raises(ModelError, match=r"The prompt of '2' has 60 tokens.*at most 50 are allowed"):
        trainer(path, max_prompt_tokens=50).train()
    with pytest.raises(RunError, match="max_prompt_tokens is 49, was 50"):
        trainer(path, max_prompt_tokens=49).start(resume=True)
    raised = trainer(path, max_prompt_tokens=60, say=said.append)
    raised.start(resume=True)
    raised.run.release()
    assert said == [
        "max_prompt_tokens is now 60 instead of 50; every prompt that was accepted so far is still accepted",
        f"resumed {path} after step 2",
    ]
    trainer(path).train(resume_from_checkpoint=True)
    assert same(path, whole)
    with pytest.raises(RunError, match="max_prompt_tokens is 60, was None"):
        trainer(path, max_prompt_tokens=60).start(resume=True)


def test_a_constant_schedule_extended_is_the_longer_run(tmp_path):
    """A longer run that stops early and one that is told later to go on are the same."""
    settled = {"schedule": "constant", "eval_every": 3}
    trainer(tmp_path / "a", max_steps=6, **settled).train()
    trainer(tmp_path / "b", max_steps=3, **settled).train()
    trainer(tmp_path / "b", max_steps=6, **settled).train(resume_from_checkpoint=True)
    assert records(tmp_path / "a", "metrics.jsonl") == records(tmp_path / "b", "metrics.jsonl")
    name = "checkpoints/step-000006/tensors.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_other_versions_are_said(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    versions = json.loads((path / "versions.json").read_text())
    (path / "versions.json").write_text(json.dumps({**versions, "torch": "1.0"}))
    said = []
    trainer(path, say=said.append).start(resume=True)
    assert said[0] == (
        f"changed since the run began: torch {versions['torch']}, was 1.0. Results may match only up to floating-point "
        "rounding"
    )


# -- the other stages --------------------------------------------------------------------------------------------------


STAGES = {
    "sft": (sft, SftConfig, {"lora_r": 2, "lora_dropout": 0.1, "max_new_tokens": 3}),
    "align": (align, AlignConfig, {}),
}


def run_stage(stage, path, interrupt=None, resume=False):
    """Run a stage on the tiny model; `interrupt` is called with the record of every step before it is logged."""
    function, config_class, options = STAGES[stage]
    shared = {"max_steps": 5, "batch_size": 2, "save_every": 2, "eval_every": 3, "eval_items": 2, "warmup_steps": 2}
    config = config_class(output_dir=str(path), learning_rate=1e-2, stage=stage, **shared, **options)
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=2, lora_dropout=0.1) if stage == "sft" else None
    policy = Policy.wrap(*tiny.tiny_model(), lora=lora)
    run = RunDirectory.begin(config, resume, say=lambda line: None)
    append = run.append

    def append_and_interrupt(name, record):
        if interrupt is not None and name == "metrics.jsonl":
            interrupt(record["step"])
        append(name, record)

    run.append = append_and_interrupt
    try:
        function(config, policy, tiny.rows(5), tiny.rows(2), run, lambda line: None, resume=resume)
    finally:
        run.release()


def timeless(path):
    found = contents(path)
    for record in found["metrics.jsonl"]:
        del record["seconds"]
    return found


@pytest.mark.parametrize("stage", list(STAGES))
@pytest.mark.parametrize("step", [1, 3, 4])
def test_sft_and_align_resume_exactly_after_a_crash_and_after_a_signal(tmp_path, stage, step):
    def crash(at):
        if at == step:
            raise RuntimeError("killed")

    def terminate(at):
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    run_stage(stage, tmp_path / "whole")
    wanted = timeless(tmp_path / "whole")
    assert [record["step"] for record in wanted["validation.jsonl"]] == [3, 5]
    with pytest.raises(RuntimeError, match="killed"):
        run_stage(stage, tmp_path / "crashed", crash)
    with pytest.raises(RunInterrupted, match=f"after step {step} of 5"):
        run_stage(stage, tmp_path / "stopped", terminate)
    for name in ("crashed", "stopped"):
        run_stage(stage, tmp_path / name, resume=True)
        got = timeless(tmp_path / name)
        assert got == wanted


def test_a_fresh_adapter_is_a_function_of_the_seed(tmp_path):
    """Killed before its first checkpoint, a run of stage sft begins again with the same adapter."""
    model, processor = tiny.tiny_model()
    save(model, processor, tmp_path)
    drawn = []
    for torch_seed, seed in ((1, 3), (2, 3), (2, 4)):
        torch.manual_seed(torch_seed)
        policy = load_policy(SftConfig(model=str(tmp_path), seed=seed, device="cpu", lora_r=2))
        drawn.append(torch.cat([p.flatten() for n, p in policy.named_parameters() if "lora_A" in n]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
