"""Every family through the stages: a saved checkpoint, supervised steps, RL steps with resume, an evaluation."""

import json

import pytest
import soundfile
import tiny
import yaml
from test_families import CASES
from typer.testing import CliRunner

from leaf.cli import app
from leaf.speech.audio import load_audio


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_stages_run_on_a_saved_checkpoint(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, processor = CASES[case]()
    model.save_pretrained("model")
    processor.save_pretrained("model")
    lines = []
    for split in ("train", "validation", "test"):
        for i, row in enumerate(tiny.rows(3)):
            soundfile.write(f"{split}{i}.wav", load_audio(row["audio"]), 16000)
            kept = {key: row[key] for key in ("prompt", "reference")}
            lines.append(json.dumps({**kept, "audio": f"{split}{i}.wav", "split": split}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    shared = {
        "model": "model", "task": "data.jsonl", "device": "cpu", "eval_items": 2, "lora_r": 2, "lora_dropout": 0.0,
        "max_new_tokens": 5, "train_projector": False,
    }  # fmt: skip
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump({**shared, "stage": "sft", "batch_size": 2, "max_steps": 1}))
    del shared["train_projector"]
    rl = {**shared, "prompts_per_rollout": 2, "num_completions": 3, "max_steps": 2, "save_every": 1}
    (tmp_path / "rl.yaml").write_text(yaml.safe_dump(rl))
    run("sft", "sft.yaml")
    assert "step 2/2" in run("train", "rl.yaml")
    assert "bleu" in run("evaluate", "rl.yaml", "--adapter", "runs/rl/last", "--greedy")
    records = [json.loads(line) for line in (tmp_path / "runs/rl/metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2]
    assert all(record["grad_norm"] >= 0 for record in records)
