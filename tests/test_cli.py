import json

import pytest
import tiny
import yaml
from typer.testing import CliRunner

from leaf import cli
from leaf.cli import app
from leaf.errors import ConfigError, LeafError
from leaf.speech.audio import load_audio


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A tiny checkpoint, a manifest of wave files, and recipes for the three stages."""
    import soundfile

    monkeypatch.chdir(tmp_path)
    model, processor = tiny.tiny_model()
    model.save_pretrained("model")
    processor.save_pretrained("model")
    lines = []
    for split in ("train", "validation", "test"):
        for i, row in enumerate(tiny.rows(4)):
            soundfile.write(f"{split}{i}.wav", load_audio(row["audio"]), 16000)
            kept = {key: row[key] for key in ("prompt", "reference")}
            lines.append(json.dumps({**kept, "audio": f"{split}{i}.wav", "split": split}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    shared = {"model": "model", "task": "data.jsonl", "device": "cpu", "max_steps": 2, "eval_items": 2}
    lora = {"lora_r": 2, "lora_dropout": 0.0, "max_new_tokens": 5}
    rl = {**shared, **lora, "prompts_per_rollout": 2, "num_completions": 3}
    for name, values in {
        "rl": rl,
        "sft": {**shared, **lora, "stage": "sft", "batch_size": 2},
        "align": {**shared, "stage": "align", "batch_size": 2},
    }.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_the_three_stages_and_an_evaluation(project):
    run("align", "align.yaml")
    assert (project / "runs/align/projector.safetensors").is_file()
    run("sft", "sft.yaml", "projector=runs/align/projector.safetensors")
    assert (project / "runs/sft/last/adapter_model.safetensors").is_file()
    assert "step 2/2" in run("train", "rl.yaml", "credit=grpo", "seed=1")
    assert "credit: grpo" in (project / "runs/rl/recipe.yaml").read_text()
    shown = run("evaluate", "rl.yaml", "--adapter", "runs/rl/last", "--passes", "2", "--out", "scored")
    assert "bleu" in shown
    assert "2 passes" in shown
    predictions = [json.loads(line) for line in (project / "scored/rl-last.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in predictions] == [42] * 4 + [43] * 4


def test_resume_continues_a_finished_run_without_harm(project):
    run("train", "rl.yaml")
    before = (project / "runs/rl/metrics.jsonl").read_text()
    assert "resumed" in run("train", "rl.yaml", "--resume")
    assert (project / "runs/rl/metrics.jsonl").read_text() == before


def test_demo_prints_the_table_and_keeps_the_predictions(project):
    shown = run("demo", "--recipe", "rl.yaml", "--items", "3")
    assert "held-out test, greedy decoding" in shown
    assert "The run is in runs/rl" in shown
    assert len((project / "runs/rl/test_after.jsonl").read_text().splitlines()) == 3


def test_data_and_recipe_listings():
    assert "asterisk_qa" in run("data")
    assert "asterisk_fr, test: " in run("data", "show", "asterisk_fr", "--split", "test", "--rows", "1")
    assert "prompts_per_rollout" in run("recipe", "rl")


def test_mistakes_of_stage_and_name(project):
    with pytest.raises(ConfigError, match="of stage rl"):
        run("sft", "rl.yaml")
    with pytest.raises(ConfigError, match="Did you mean 'max_steps'"):
        run("train", "rl.yaml", "max_step=3")
    with pytest.raises(ConfigError, match="allowed are base and demo"):
        run("demo-model", "--stage", "final")
    with pytest.raises(ConfigError, match="allowed are rl, sft, align"):
        run("recipe", "ppo")


def test_main_turns_a_mistake_into_one_line_and_exit_2(monkeypatch, capsys):
    def fail():
        raise LeafError("What came, what is allowed, what to do.")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == "leaf: What came, what is allowed, what to do.\n"
