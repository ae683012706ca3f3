"""Runs that begin in one process, and commands that launch several."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from leaf.files import read_rows
from tests.helpers import processes_worker as worker

ROOT = Path(__file__).parents[2]


def launch(command, cwd=ROOT):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def begin_alone(folder):
    """Train `on_policy` in one process into FOLDER/begun_alone until it fails in step 3, after step 2 was saved."""

    def fail(record):
        if record["step"] == 3:
            raise RuntimeError("as if killed")

    begun = worker.trainer(folder, "begun_alone", worker.letters, replace(worker.SCENARIOS["on_policy"], save_every=1))
    begun.on_step = fail
    with pytest.raises(RuntimeError, match="as if killed"):
        begun.train()


def assert_trained_alike(one, two):
    """Compare the logs, validations and adapters of two runs of three steps, of which nothing but time may differ."""
    ours, theirs = read_rows(one / "metrics.jsonl"), read_rows(two / "metrics.jsonl")
    assert [record["step"] for record in theirs] == [1, 2, 3]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for key in mine:
            if not key.startswith(("seconds/", "memory/")):
                wanted = None if mine[key] is None else pytest.approx(mine[key], rel=1e-5, abs=1e-6)
                assert other[key] == wanted, key
    assert read_rows(one / "validation.jsonl") == read_rows(two / "validation.jsonl")
    mine, other = (load_file(folder / "last/adapter_model.safetensors") for folder in (one, two))
    assert mine.keys() == other.keys()
    for key in mine:
        torch.testing.assert_close(other[key], mine[key], rtol=1e-5, atol=1e-6)
    assert max(float(value.abs().max()) for key, value in mine.items() if "lora_B" in key) > 1e-4  # 0 at the start
