"""Schedules and epochs."""

import json
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch

from leaf import LeafTrainer
from leaf.config import LeafConfig, SftConfig, from_dict, load_recipe, to_dict
from leaf.errors import ConfigError
from leaf.model.device import pick_device, take_device
from leaf.model.policy import Policy, Prompt
from leaf.model.projector import save_projector
from leaf.model.sampling import Group
from leaf.train.parts import cut
from leaf.train.records import group_record
from leaf.train.rollout import Rollout
from leaf.train.schedule import build_schedule, check_stage, check_tracker, is_warm_restart, run_length
from tests.helpers.tiny import rows, tiny_model

PUBLISHED = Path(__file__).parents[2] / "recipes/published"


def rates(config, length, updates, **options):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, config, length, **options)
    seen = []
    for _ in range(updates):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return seen


def test_epochs_are_steps_of_whole_passes_with_a_schedule_each():
    config = LeafConfig(epochs=3, prompts_per_rollout=4)
    length = run_length(config, num_rows=9)
    assert length == (9, 3)
    assert [step for step in range(1, 10) if is_warm_restart(length, step)] == [4, 7]
    once = rates(config, 6, 6)
    again = rates(config, 6, 18, restarts=True)
    assert again == once * 3
    assert once[0] == 1.0
    assert min(once) > 0.1
    for config in (LeafConfig(max_steps=7), SftConfig(max_steps=7)):
        assert run_length(config, 9) == (7, 7)
        assert not any(is_warm_restart(run_length(config, 9), step) for step in range(1, 8))


def test_the_schedule_without_restarts_stays_where_it_ends():
    config = LeafConfig(schedule="linear", min_lr_ratio=0.5)
    assert rates(config, 4, 7) == pytest.approx([1.0, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5])


def test_warm_up_counts_updates():
    config = LeafConfig(warmup_steps=2, schedule="constant")
    assert rates(config, 8, 4) == rates(config, 4, 4) == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])


def test_the_published_schedule_has_four_cycles():
    # 6,000 prompts in rollouts of 6, 8 updates each: a horizon of 1,000 updates of 8,000. Read in the code.
    config = LeafConfig(schedule="published", epochs=1)
    seen = rates(config, 8000, 8001, updates_per_step=8)
    shares = [0.001, 0.0625, 0.125, 0.25, 0.375, 0.5, 0.75, 0.95, 1.0]
    wanted = [0.16, 0.54, 0.10, 0.99, 0.10, 0.94, 0.84, 0.99, 0.70]
    assert [round(seen[round(share * 8000)], 2) for share in shares] == wanted
    assert min(seen[1000:]) == 0.1
    with pytest.raises(ConfigError, match="has a warm-up of its own"):
        check_stage(LeafConfig(schedule="published", warmup_steps=3))


def test_published_updates_mix_two_to_four_prompts_evenly_over_two_processes():
    config = load_recipe(PUBLISHED / "leaf.yaml")
    assert isinstance(config, LeafConfig)
    assert (config.prompts_per_rollout, config.completions_per_update, config.mix_prompts) == (6, 6, 2)
    updates = dealt(range(6), mix=2)
    assert [sum(map(len, update.values())) for update in updates] == [6] * 8
    assert {len(update) for update in updates} == {2, 4}
    both = [(0, 2, 4), (1, 3, 5)]  # the prompts of two processes
    assert all(sum(len(ks) for p, ks in update.items() if p in own) == 3 for own in both for update in updates)
    for own in both:  # a process alone sees its own part of the same updates
        mine = [{p: ks for p, ks in update.items() if p in own} for update in updates]
        assert dealt(own, mix=2) == mine
    everything = sorted((p, k) for update in updates for p, ks in update.items() for k in ks)
    assert everything == [(p, k) for p in range(6) for k in range(8)]
    # In order, as before: half of the updates have one prompt.
    assert [len(update) for update in dealt(range(6), mix=1)] == [1, 2, 2, 1, 1, 2, 2, 1]


def dealt(positions, *, mix):
    """Cut a rollout of six prompts with eight completions each; gives per update its completions by prompt."""
    ks = torch.arange(8)
    prompt = Prompt(torch.empty(0, 0), torch.empty(0, dtype=torch.bool))
    group = Group(prompt, ks[:, None], torch.ones_like(ks), torch.zeros(8, 1), torch.zeros(8, dtype=torch.bool))
    many, rows, groups = [torch.zeros(8)] * len(positions), [{} for _ in positions], [group] * len(positions)
    whole = Rollout(rows, groups, many, many, many, None, None, reward_errors=0, left_out=[])
    return [
        {p: one.tokens[:, 0].tolist() for p, one in zip(part.positions, part.groups, strict=True)}
        for part in cut(replace(whole, positions=positions), 6, 6, mix)
    ]


@pytest.mark.parametrize(("prompts", "size"), [(5, 6), (6, 5)])
def test_lanes_must_divide_prompts_and_updates(prompts, size):
    config = LeafConfig(prompts_per_rollout=prompts, completions_per_update=size, mix_prompts=2)
    with pytest.raises(ConfigError, match="mix_prompts is 2; it must divide prompts_per_rollout"):
        check_stage(config)


def test_epochs_beside_a_number_of_steps_are_refused():
    with pytest.raises(ConfigError, match=r"max_steps is 20 and epochs is 2; a run has one of them\. Leave one out"):
        LeafConfig(epochs=2, max_steps=20)
    assert (LeafConfig().max_steps, LeafConfig(epochs=2).max_steps) == (100, None)


def test_the_recipe_of_a_run_may_be_given_more_epochs_and_other_rows():
    own = from_dict(to_dict(LeafConfig(epochs=1, prompts_per_rollout=4)))
    assert run_length(own, 9).steps == 3
    assert run_length(replace(own, epochs=2), 9) == (6, 3)
    assert run_length(own, 20) == (5, 5)


def test_a_gpu_named_by_number_is_the_one_that_trains(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    for name in ("cpu", "cuda", "cuda:1"):
        take_device(name)
    assert chosen == [torch.device("cuda:1")]
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        with monkeypatch.context() as launched:
            launched.setenv(name, value)
            take_device("cuda")
            with pytest.raises(ConfigError, match=r"'cuda:1' under a launcher, where every process takes the GPU"):
                take_device("cuda:1")
    assert len(chosen) == 1


def test_trackers_that_would_be_left_out_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"track_with is 'tensorbord'; allowed are .*tensorboard"):
        check_tracker("tensorbord")
    monkeypatch.setattr("leaf.train.schedule.get_available_trackers", list)
    with pytest.raises(ConfigError, match=r"not installed: pip install '\.\[tensorboard\]'"):
        check_tracker("tensorboard")
    with pytest.raises(ConfigError, match="not installed: pip install comet-ml"):
        check_tracker("comet_ml")


def test_an_epoch_begins_with_the_adapter_it_has_and_a_fresh_optimiser(tmp_path):
    model, processor = tiny_model()
    args = LeafConfig(
        epochs=2,
        prompts_per_rollout=2,
        num_completions=3,
        max_new_tokens=4,
        lora_r=2,
        lora_dropout=0.0,
        device="cpu",
        output_dir=str(tmp_path / "run"),
        eval_every=0,
        learning_rate=1e-2,
        kl_coef=0.0,
    )
    trainer = LeafTrainer(model, ["chrf"], args, rows(3), processing_class=processor, say=lambda line: None)
    counts = []
    update = trainer.update

    def watched(rollout):
        stats = update(rollout)
        counts.append(next(int(state["step"]) for state in trainer.optimizer.state.values()))
        return stats

    trainer.update = watched
    trainer.train()
    assert counts == [1, 2, 1, 2]  # AdamW's own count of updates
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines[:2]] == [line["learning_rate"] for line in lines[2:]]


SMALL = LeafConfig(
    prompts_per_rollout=2,
    num_completions=3,
    max_new_tokens=4,
    lora_r=2,
    lora_dropout=0.0,
    device="cpu",
    max_steps=1,
    eval_every=0,
)


def trainer_of(model, processor=None, lora=None, **changes):
    return LeafTrainer(
        model, ["chrf"], replace(SMALL, **changes), rows(3), None, processor, lora, say=lambda line: None
    )


def test_the_projector_of_a_recipe_is_loaded_in_stage_rl(tmp_path):
    model, processor = tiny_model()
    other = Policy.wrap(*tiny_model(seed=1))
    save_projector(other, tmp_path / "projector.safetensors")
    one = trainer_of(model, processor, projector=str(tmp_path / "projector.safetensors"))
    for key, value in other.projector.state_dict().items():
        assert torch.equal(one.policy.projector.state_dict()[key], value)
    with pytest.raises(ConfigError, match=r"missing\.safetensors does not exist"):
        trainer_of(*tiny_model(), projector=str(tmp_path / "missing.safetensors"))


def test_a_policy_of_another_temperature_is_refused():
    policy = Policy.wrap(*tiny_model(), lora=peft.LoraConfig(r=2), temperature=1.0)
    with pytest.raises(ConfigError, match=r"The policy has temperature 1\.0 and the recipe 0\.5"):
        trainer_of(policy, temperature=0.5)


def test_dropout_of_the_adapter_itself_makes_the_update_off_policy():
    assert trainer_of(*tiny_model()).on_policy
    assert not trainer_of(*tiny_model(), peft.LoraConfig(r=2, lora_dropout=0.5)).on_policy


def test_the_gradient_does_not_depend_on_the_launchers_environment(monkeypatch, tmp_path):
    norms = []
    for steps in ("1", "4"):
        monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", steps)
        run = trainer_of(*tiny_model(), output_dir=str(tmp_path / steps)).train()
        norms += [record["grad_norm"] for record in run.lines("metrics.jsonl")]
    assert norms[0] == norms[1] > 0


def test_a_device_that_is_not_there_is_refused():
    for name, said in (
        ("cuda:7", "CUDA devices can be seen here"),
        ("mps", "runs on cpu and cuda"),
        ("x", "allowed are"),
    ):
        with pytest.raises(ConfigError, match=said):
            pick_device(name)


def test_rows_with_audio_in_their_messages_are_recorded_without_it():
    one = trainer_of(*tiny_model())
    rollout = one.rollout(1)
    parts = [{"type": "audio", "audio": torch.zeros(9)}, {"type": "text", "text": "Say it"}]
    row = {"prompt": [{"role": "user", "content": parts}], "reference": None}
    what = (rollout.groups[0], rollout.rewards[0], rollout.advantages[0], rollout.shares[0], one.policy.tokenizer)
    record = group_record(row, *what)
    assert json.loads(json.dumps(record))["prompt"] == [{"role": "user", "content": [{"type": "audio"}, parts[1]]}]
