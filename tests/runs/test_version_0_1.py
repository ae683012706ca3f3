"""Runs that version 0.1 began (tests/runs/version_0_1/make.py): today's code takes them to the end that 0.1 came to."""

import json
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
from leaf.errors import RunError
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
            # Later versions record more.
            assert {key: got[key] for key in wanted} == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    return True


def test_a_run_of_the_command_line_is_resumed(project):
    make.sample_project(project, *tiny.tiny_model(), tiny.TEXTS)
    CliRunner().invoke(app, ["train", "rl/recipe.yaml", "--resume"], catch_exceptions=False)
    assert ends_as_in_0_1("rl")
    config = RunDirectory.open("rl").config()
    assert isinstance(config, LeafConfig)
    assert (config.tolerate, config.epochs) == ("skip", 2)


def test_a_run_whose_schedule_was_laid_out_for_more_steps_is_refused(project):
    """The schedule of today covers all steps, so such a run would take another course."""
    run = Path("sft")
    for file in (run / "recipe.yaml", run / "checkpoints/step-000002/state.json"):
        was = "schedule_steps: null" if file.suffix == ".yaml" else '"schedule_steps": null'
        assert was in file.read_text()
        file.write_text(file.read_text().replace(was, was.replace("null", "8")))
    state = (run / "checkpoints/step-000002/state.json").read_bytes()
    manifest = json.loads((run / "checkpoints/step-000002/manifest.json").read_text())
    manifest["files"]["state.json"] = {"bytes": len(state), "sha256": sha256(state).hexdigest()}
    (run / "checkpoints/step-000002/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match=r"schedule_steps 8, a key of version 0\.1.*which is 4\. Set max_steps=8"):
        supervised(4)
    supervised(8)
    assert len(records(run, "metrics.jsonl")) == 8


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
