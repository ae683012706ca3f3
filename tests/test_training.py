"""Schedules and epochs."""

import json

import pytest
import torch
from tiny import rows, tiny_model

from leaf.config import LeafConfig
from leaf.trainer import LeafTrainer
from leaf.training import build_schedule, in_steps, is_warm_restart


def rates(config, updates, **options):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = build_schedule(optimizer, config, **options)
    seen = []
    for _ in range(updates):
        seen.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return seen


def test_epochs_are_steps_of_whole_passes_with_a_schedule_each():
    config = in_steps(LeafConfig(epochs=3, prompts_per_rollout=4), num_rows=9)
    assert (config.max_steps, config.schedule_steps) == (9, 3)
    assert [step for step in range(1, 10) if is_warm_restart(config, step)] == [4, 7]
    once = rates(config, 6, updates_per_step=2)
    again = rates(config, 18, updates_per_step=2, restarts=True)
    assert again == once * 3
    assert once[0] == 1.0
    assert min(once) > 0.1
    assert in_steps(LeafConfig(max_steps=7), 9).max_steps == 7
    assert not any(is_warm_restart(LeafConfig(), step) for step in range(1, 200))


def test_the_schedule_without_restarts_stays_where_it_ends():
    config = LeafConfig(max_steps=4, schedule="linear", min_lr_ratio=0.5)
    assert rates(config, 7) == pytest.approx([1.0, 0.875, 0.75, 0.625, 0.5, 0.5, 0.5])


def test_an_epoch_begins_with_the_adapter_it_has_and_a_fresh_optimiser(tmp_path):
    model, processor = tiny_model()
    args = LeafConfig(
        epochs=2, prompts_per_rollout=2, num_completions=3, max_new_tokens=4, lora_r=2, lora_dropout=0.0, device="cpu",
        output_dir=str(tmp_path / "run"), eval_every=0, learning_rate=1e-2, kl_coef=0.0,
    )  # fmt: skip
    trainer = LeafTrainer(model, ["chrf"], args, rows(3), processing_class=processor, report=lambda line: None)
    counts = []
    update = trainer.update

    def watched(rollout):
        stats = update(rollout)
        counts.append(next(int(state["step"]) for state in trainer._optimizer.state.values()))
        return stats

    trainer.update = watched
    trainer.train()
    assert counts == [1, 2, 1, 2]  # AdamW's own count of updates
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["learning_rate"] for line in lines[:2]] == [line["learning_rate"] for line in lines[2:]]
