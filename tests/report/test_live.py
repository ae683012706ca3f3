"""The live view of a run that trains: what it shows, at every width, and that a pipe gets plain lines."""

import fcntl
import io
import json
import os
import pty
import re
import struct
import sys
import termios
from types import SimpleNamespace

import pytest
from rich.console import Console

from leaf.report import live
from leaf.runs.directory import RunDirectory
from leaf.runs.signals import StopSignals
from tests.helpers.screen import lines_shown
from tests.pages.shown import ROOT


def test_a_sparkline_runs_from_lowest_to_highest_with_gaps():
    assert live.sparkline([0.0, 0.5, 1.0]) == "▁▅█"
    assert live.sparkline([0.2, None, 0.1]) == "█ ▁"
    assert live.sparkline([3.0, 3.0]) == "▄▄"
    assert live.sparkline([0.0, 0.0, 1.0, 1.0], width=2) == "▁█"
    assert live.sparkline([]) == ""
    assert live.sparkline([None]) == " "


def metrics(step, **changes):
    values = {
        "step": step,
        "reward_mean": step / 10,
        "kl": 0.01,
        "grad_norm": 0.5,
        "length_mean": 8.0,
        "usable_fork_rate": 0.25,
        "memory/peak_gb": 2.0,
        "packed_tokens": 250,
        "plain_tokens": 1000,
        "seconds/sample": 1.0,
        "seconds/update": 2.0,
        "seconds/step": 4.0,
    }
    return values | changes


def test_the_stage_bar_is_as_long_as_the_stages_took():
    text = live.stage_bar([metrics(1), metrics(2)], width=8).plain
    assert text == "██▓▓▓▓▒▒  4.0 s a step:  █\u00a0sample\u00a01.0  ▓\u00a0update\u00a02.0  ▒\u00a0other\u00a01.0"
    assert live.stage_bar([]).plain == "  0.0 s a step:"


class FakeTrainer:
    """Two steps with a validation after each, as RLTrainer tells of them."""

    def __init__(self, path, say):
        self.run, self.say, self.on_step = RunDirectory(path), say, None
        self.length = SimpleNamespace(steps=3)
        self.accelerator = SimpleNamespace(is_main_process=True)
        self.stop = StopSignals()

    def train(self, resume_from_checkpoint=False):
        for step in (2, 3):
            with (self.run.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(metrics(step)) + "\n")
            if self.on_step is None:
                self.say(f"step {step}/3  reward {step / 10}")
            else:
                self.on_step(metrics(step))
            with (self.run.path / "validation.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "bleu": 10.0 * step}) + "\n")
            self.say(f"step {step}/3  validation  bleu {10.0 * step:.2f}")
        return self.run


def test_the_live_view_draws_a_step_whose_updates_were_all_skipped(tmp_path):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    view = live.TrainingView(3, console)
    record = metrics(1, kl=None, grad_norm=None, packed_tokens=None, plain_tokens=None, reward_mean=None)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    view.add(record, RunDirectory(tmp_path))
    console.print(view)
    assert "none scored" in file.getvalue()


def test_the_live_view_draws_rewards_that_not_every_validation_scored():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=100)
    view = live.TrainingView(3, console)
    view.records = [metrics(1)]
    view.validations = [{"step": 0, "bleu": 1.0}, {"step": 1, "bleu": 2.0, "reward": 0.3}, {"step": 2, "bleu": 3.0}]
    console.print(view)
    assert " ▄   0.300" in file.getvalue()


@pytest.mark.parametrize("width", [30, 100])
def test_the_live_view_shows_rewards_validation_stages_and_savings_of_the_whole_run(tmp_path, width):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(metrics(1)) + "\n")  # before it was resumed
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, height=40, highlight=False, markup=False)
    live.train(FakeTrainer(tmp_path, console.print), console)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    last = " ".join(text[text.rindex("3/3") :].split())
    for part in ("▁▅█ 0.300 (0.100 to 0.300)", "▁█ 30.00 (20.00 to 30.00)", "75% of the", "sample 1.0", "kl 0.0100"):
        assert part.replace(" ", "") in last.replace(" ", "")
    assert "step 2/3 validation bleu 20.00" in " ".join(text.split())


def test_a_pipe_gets_the_plain_lines_and_no_live_view(tmp_path):
    lines = []
    trainer = FakeTrainer(tmp_path, lines.append)
    file = io.StringIO()
    live.train(trainer, Console(file=file))
    assert file.getvalue() == ""
    assert lines[:2] == ["step 2/3  reward 0.2", "step 2/3  validation  bleu 20.00"]
    assert trainer.on_step is None


class Terminal:
    """A pseudo-terminal of 70 columns with a program in it."""

    def __init__(self, *command):
        self.process, self.file = pty.fork()
        if self.process == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 70, 0, 0))
            os.chdir(ROOT)
            os.execvp(command[0], command)
        self.written = ""

    def read_until(self, text):
        """Read until a text has been written."""
        while text not in self.written:
            assert self.read(), self.written

    def read(self):
        """Read what comes next; False at the end of the program, which Linux tells as an error."""
        try:
            self.written += os.read(self.file, 65536).decode()
        except OSError:
            return False
        return True


@pytest.fixture
def terminal(tmp_path):
    started = Terminal(sys.executable, "-m", "tests.helpers.live_worker", str(tmp_path))
    yield started
    os.close(started.file)


def test_ctrl_c_is_answered_at_once_and_the_picture_stays_whole(terminal, tmp_path):
    terminal.read_until("usable forks")
    os.write(terminal.file, b"\x03")
    terminal.read_until("press Ctrl-C")
    steps = len((tmp_path / "metrics.jsonl").read_text().splitlines())
    assert steps == 1  # the step is one long operation, and the answer does not wait for its end
    while terminal.read():
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.process, 0)[1]) == 75
    shown = lines_shown(terminal.written)
    assert shown[0] == "the run begins"
    for once in ("step", "reward", "time", "now", "SIGINT received", "leaf: SIGINT asked to stop"):
        assert sum(line.startswith(once) for line in shown) == 1, shown
    assert "press Ctrl-C again to stop at once" in " ".join(" ".join(shown).split())
    assert "^C" not in "".join(shown)
    assert (tmp_path / "saved").read_text() == str(len((tmp_path / "metrics.jsonl").read_text().splitlines()))
