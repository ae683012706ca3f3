"""Every file in examples/ runs, as a user would run it."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.helpers import tiny
from tests.helpers.project import save, write_manifest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A tiny checkpoint in model/ and a manifest of wave files, data.jsonl."""
    path = tmp_path_factory.mktemp("examples")
    model, processor = tiny.tiny_model()
    save(model, processor, path / "model")
    write_manifest(path / "data.jsonl", splits=("train", "validation"))
    return path


@pytest.fixture
def run(monkeypatch, capsys):
    """Run an example in a folder with arguments, as a script, and return what it printed."""

    def start(name, *arguments, cwd):
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return start


def test_there_is_a_test_for_every_example():
    assert {path.name for path in EXAMPLES.glob("*.py")} == {
        "credit_in_your_loop.py",
        "minimal_loop.py",
        "train_my_data.py",
        "trl_leaf.py",
    }


def test_credit_in_your_loop_learns_with_both_rules(run, tmp_path):
    shown = run("credit_in_your_loop.py", "--steps", "120", cwd=tmp_path)
    assert [line.split(":")[0] for line in shown.splitlines()] == ["leaf", "grpo"]


def test_the_minimal_loop_trains_and_saves_an_adapter(run, project):
    shown = run(
        "minimal_loop.py",
        "--model",
        "model",
        "--task",
        "data.jsonl",
        "--steps",
        "2",
        "--max-new-tokens",
        "6",
        "--completions",
        "3",
        "--dtype",
        "float32",
        "--reward",
        "chrf",
        cwd=project,
    )
    assert [line.split("  ")[0] for line in shown.splitlines()[:2]] == ["step 1", "step 2"]
    assert (project / "runs/minimal_loop/adapter_model.safetensors").is_file()


def test_a_model_learns_with_leafs_credit_in_trl(run, tmp_path):
    pytest.importorskip("trl", reason="TRL is not installed: pip install '.[trl]'")
    shown = run("trl_leaf.py", "--steps", "20", cwd=tmp_path)
    ((first, last),) = re.findall(r"leaf: mean reward ([\d.]+) at first, ([\d.]+) at last", shown)
    assert 0 < float(first) < float(last)
    assert (tmp_path / "runs/trl_leaf/model.safetensors").is_file()


def test_training_on_a_manifest_with_an_own_reward(run, project):
    shown = run(
        "train_my_data.py",
        "--model",
        "model",
        "--manifest",
        "data.jsonl",
        "--steps",
        "2",
        "--max-new-tokens",
        "6",
        "--dtype",
        "float32",
        cwd=project,
    )
    assert "the run is in runs/my_data" in shown
    assert "step 2/2" in shown
    assert (project / "runs/my_data/last/adapter_model.safetensors").is_file()


def test_the_manifest_that_is_written_without_one_can_be_read(tmp_path):
    from leaf.data import load
    from leaf.plugins import import_module

    example = import_module(str(EXAMPLES / "train_my_data.py"))
    example.write_manifest(tmp_path / "made" / "my.jsonl", rows=5)
    assert len(load(str(tmp_path / "made" / "my.jsonl"), "train")) == 5
    scores = example.brief(["a b", "a b c", "a b c d e", ""], ["x y"] * 4)
    assert scores == [1.0, 0.5, 0.0, 0.0]
