"""Runs that begin in one process, and commands that launch several."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

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
