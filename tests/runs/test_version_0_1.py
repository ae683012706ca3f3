"""Runs that version 0.1 began (tests/runs/version_0_1/make.py): today's code takes them to the end that 0.1 came to."""

import json
import math
import shutil
from hashlib import sha256
from pathlib import Path

import peft
import pytest
import torch
from typer.testing import CliRunner

from leaf import LeafTrainer
from leaf.commands.main import app
from leaf.config import LeafConfig, SftConfig
from leaf.model.policy import Policy
from leaf.runs.directory import RunDirectory
from leaf.train.sft import sft
from tests.helpers import tiny
from tests.helpers.resuming import records
from tests.runs.version_0_1 import make

BEGUN = Path(make.__file__).parent


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The runs with what their recipes name, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("rl", "script", "sft"):
        shutil.copytree(BEGUN / name, name)
    return tmp_path


def ends_as_in_0_1(name):
    """Compare what was learned and scored, step by step, with the records of the run that 0.1 took to its end."""
    assert len(records(Path(name), "metrics.jsonl")) == 4
    for log in ("metrics.jsonl", "validation.jsonl"):
        for got, wanted in zip(records(Path(name), log), records(BEGUN / name, log), strict=True):
            wanted.pop("seconds", None)
            # Later versions record more, and add up in another order.
            assert {key: got[key] for key in wanted} == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    return True


def test_a_run_of_the_command_line_is_resumed(project):
    make.sample_project(project, *tiny.tiny_model(), tiny.TEXTS)
    CliRunner().invoke(app, ["train", "rl/recipe.yaml", "--resume"], catch_exceptions=False)
    assert ends_as_in_0_1("rl")
    config = RunDirectory.open("rl").config()
    assert isinstance(config, LeafConfig)
    assert (config.tolerate, config.epochs) == ("skip", 2)


def rewrite_state(checkpoint, change):
    """Change the state of a checkpoint as if it had been written so."""
    state = json.loads((checkpoint / "state.json").read_text())
    change(state)
    (checkpoint / "state.json").write_text(json.dumps(state))
    files = json.loads((checkpoint / "manifest.json").read_text())
    content = (checkpoint / "state.json").read_bytes()
    files["files"]["state.json"] = {"bytes": len(content), "sha256": sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(files))


def test_a_run_whose_schedule_was_laid_out_for_other_steps_keeps_it(project, capsys):
    """As 0.1 did: a cosine over 8 steps, of which 4 are taken, resumed once and once more."""
    run = Path("sft")
    recipe = (run / "recipe.yaml").read_text()
    assert "schedule_steps: null" in recipe
    (run / "recipe.yaml").write_text(recipe.replace("schedule_steps: null", "schedule_steps: 8"))
    rewrite_state(run / "checkpoints/step-000002", lambda state: state["recipe"].update(schedule_steps=8))
    supervised(4)
    assert "the learning rate follows a cosine over 8 steps, the schedule_steps of" in capsys.readouterr().out
    supervised(6)
    assert "learning rate now follows" not in capsys.readouterr().out
    config = SftConfig(**make.SHARED, max_steps=8)
    for record in records(run, "metrics.jsonl")[2:]:
        cosine = 0.5 * (1 + math.cos(math.pi * (record["step"] - 1) / 7))  # after one step of warm-up
        wanted = config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)
        assert record["learning_rate"] == pytest.approx(wanted)
    assert len(records(run, "metrics.jsonl")) == 6


def test_a_run_with_two_rewards_of_one_name_is_resumed(project):
    """0.1 called the second `vowels#2`."""
    recipe = Path("script/recipe.yaml").read_text()
    assert "- vowels (from Python)\n" in recipe
    Path("script/recipe.yaml").write_text(recipe.replace("- vowels (from Python)\n", "- vowels (from Python)\n" * 2))

    def double(state):
        state["facts"]["rewards"] = ["vowels", "vowels#2"]
        state["recipe"]["rewards"] *= 2

    rewrite_state(Path("script/checkpoints/step-000002"), double)
    config = LeafConfig(**make.SHARED, **make.ROLLOUTS, max_steps=4, tolerate="skip", output_dir="script")
    model, processor = tiny.tiny_model()
    one = LeafTrainer(model, [make.vowels] * 2, config, tiny.rows(5), tiny.rows(2), processor)
    assert one.start(resume=True) == 2
    assert one.run is not None
    one.run.release()


def test_a_run_of_a_script_is_resumed(project):
    config = LeafConfig(**make.SHARED, **make.ROLLOUTS, max_steps=4, tolerate="skip", output_dir="script")
    model, processor = tiny.tiny_model()
    one = LeafTrainer(model, [make.vowels], config, tiny.rows(5), tiny.rows(2), processor)
    one.train(resume_from_checkpoint=True)
    assert ends_as_in_0_1("script")


def supervised(max_steps):
    shape = {"max_steps": max_steps, "batch_size": 2, "max_new_tokens": 3, "lora_dropout": 0.0, "output_dir": "sft"}
    config = SftConfig(**make.SHARED, **shape)
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=1, lora_dropout=0.0, target_modules=config.lora_layers)
    policy = Policy.wrap(*tiny.tiny_model(), lora=lora)
    run = RunDirectory.begin(config, resume=True)
    try:
        sft(config, policy, tiny.rows(5), tiny.rows(2), run, resume=True)
    finally:
        run.release()


def test_a_supervised_run_is_resumed(project):
    supervised(4)
    assert ends_as_in_0_1("sft")
