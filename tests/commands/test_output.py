"""Standard output that cannot be written, and text that would steer a terminal."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.commands.output import Output, OutputLost, _Stream
from leaf.runs.signals import StopSignals
from tests.commands.test_cli import project  # noqa: F401  (a fixture)
from tests.helpers.resuming import records

ROOT = Path(__file__).parents[2]


def started(*arguments) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "leaf", *arguments]
    return {"args": command, "env": environment, "stderr": subprocess.PIPE, "text": True}


def leaf(*arguments, stdout):
    return subprocess.run(**started(*arguments), stdout=stdout, check=False)


@pytest.fixture
def full():
    with Path("/dev/full").open("w") as file:
        yield file


@pytest.fixture
def closed():
    """A pipe whose reader has gone, as of `| head`."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


def test_a_command_whose_output_is_lost_says_so(full, closed):
    for stdout, why in ((full, "No space left on device"), (closed, "Broken pipe")):
        done = leaf("--version", stdout=stdout)
        assert (done.returncode, done.stderr) == (2, f"leaf: the output cannot be written: {why}.\n")


def test_every_line_from_then_on_says_that_the_output_is_lost(full):
    """A thread that says how far the work is may have been the first to hear of it."""
    stream = _Stream(full, says_so=True)
    for _ in range(2):
        with pytest.raises(OutputLost, match="No space left on device"):
            print("line", file=stream, flush=True)
    stream.flush()  # as Python does at its end


def test_training_whose_output_is_lost_saves_and_goes_on_later(project):  # noqa: F811
    steps = ["max_steps=200", "save_every=200", "eval_every=0"]
    with subprocess.Popen(**started("train", "rl.yaml", *steps), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while not process.stdout.readline().startswith("step 1/"):  # as `| head` does
            pass
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 75, said
    assert "the output cannot be written (Broken pipe), saving as soon as it is safe" in said
    assert "Traceback" not in said
    (saved,) = [int(found) for found in re.findall(r"the run is saved after step (\d+) of 200", said)]
    newest = max(path.name for path in (project / "runs/rl/checkpoints").iterdir())
    assert newest == f"step-{saved:06d}"
    assert saved == len(records(project / "runs/rl", "metrics.jsonl")) < 200


def test_no_text_steers_the_terminal():
    steering = "\x1b[2J\x9b1m\u202e"
    table = Table("name")
    table.add_row(steering)
    said, file = [], io.StringIO()
    for printed in (steering, table):
        Output(file=file, force_terminal=True, color_system=None, width=40).print(printed)
    StopSignals().heard(said.append)(f"row {steering}")
    for text in (file.getvalue(), *said):
        assert not set(steering) & (set(text) - set("[2J1m"))
        assert "␛[2J\\u{9b}1m\\u{202e}" in text


def test_rows_and_names_from_data_are_printed_harmless(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = {"prompt": "p\x1b[2J", "audio": "a.wav", "reference": "r", "split": "train"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "a.wav").write_bytes(b"x")
    for command in (["data", "show", "a.jsonl"], ["data", "show", "a\x1b[2J.jsonl"], ["train", "\x1b[2J.yaml"]):
        result = CliRunner().invoke(app, command)
        assert "\x1b" not in result.output
