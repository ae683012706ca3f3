"""Every family through the stages: a saved checkpoint, supervised steps, RL steps with resume, an evaluation."""

import json

import pytest
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from leaf import LeafTrainer
from leaf.commands.main import app
from leaf.config import LeafConfig
from tests.helpers import tiny
from tests.helpers.families import CASES
from tests.helpers.project import save, write_manifest


def length_reward(completions, **columns):
    """Something that differs between random completions, which no score against a reference does."""
    return [len(text) / 20 for text in completions]


def assert_that_it_learned(folder):
    """Two steps with a gradient, and an adapter that is no longer the one it began with."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert all(record["grad_norm"] > 0 for record in records)
    saved = load_file(folder / "last/adapter_model.safetensors")
    assert any(bool(value.any()) for name, value in saved.items() if "lora_B" in name)


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


# The image part of these processors needs torchvision, which cannot be imported beside a CPU build of torch from PyPI:
# a saved one does not load here, so the model and its processor go to the trainer as objects.
NOT_RELOADED = {"gemma3n", "gemma3n wide", "nemotron_h_omni", "qwen2_5_omni", "qwen3_omni_moe"}


@pytest.mark.parametrize("case", sorted(NOT_RELOADED), ids=lambda case: case.replace(" ", "-"))
def test_training_runs_on_a_model_object(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, processor = CASES[case]()
    args = LeafConfig(
        lora_r=2,
        lora_dropout=0.1,
        max_new_tokens=5,
        prompts_per_rollout=2,
        num_completions=3,
        max_steps=2,
        device="cpu",
        output_dir="runs/rl",
        eval_every=0,
    )
    LeafTrainer(model, [length_reward], args, tiny.rows(3), processing_class=processor).train()
    assert_that_it_learned(tmp_path / "runs/rl")


@pytest.mark.parametrize("case", sorted(set(CASES) - NOT_RELOADED), ids=lambda case: case.replace(" ", "-"))
def test_stages_run_on_a_saved_checkpoint(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, processor = CASES[case]()
    save(model, processor, "model")
    write_manifest(tmp_path / "data.jsonl", count=3)
    shared = {
        "model": "model",
        "task": "data.jsonl",
        "device": "cpu",
        "eval_items": 2,
        "lora_r": 2,
        "lora_dropout": 0.0,
        "max_new_tokens": 5,
        "train_projector": False,
    }
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump({**shared, "stage": "sft", "batch_size": 2, "max_steps": 1}))
    del shared["train_projector"]
    rl = {
        **shared,
        "rewards": [f"{__file__}:length_reward"],
        "prompts_per_rollout": 2,
        "num_completions": 3,
        "max_steps": 2,
        "save_every": 1,
    }
    (tmp_path / "rl.yaml").write_text(yaml.safe_dump(rl))
    run("sft", "sft.yaml")
    assert "step 2/2" in run("train", "rl.yaml")
    assert "bleu" in run("evaluate", "rl.yaml", "--adapter", "runs/rl/last", "--greedy")
    assert_that_it_learned(tmp_path / "runs/rl")
