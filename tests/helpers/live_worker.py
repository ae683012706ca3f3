"""A run of steps that take no model, in the live view of a terminal: `python -m tests.helpers.live_worker FOLDER`."""

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

from rich.console import Console

from leaf.config import LeafConfig
from leaf.errors import RunInterrupted
from leaf.report import live
from leaf.runs.directory import RunDirectory
from leaf.runs.signals import StopSignals
from leaf.train.schedule import Length
from leaf.train.steps import take_steps

STEPS, ROUNDS = 50, 2_000_000


class Waiting:
    """A stage whose steps do nothing but wait; loop, signals and view are those of leaf."""

    def __init__(self, folder: Path, say):
        self.config, self.length = LeafConfig(eval_every=0, save_every=STEPS), Length(STEPS, STEPS)
        self.stop, self.done, self.validation_due = StopSignals(), 0, False
        self.run, self.say, self.on_step = RunDirectory(folder), say, None
        self.accelerator = SimpleNamespace(is_main_process=True)

    def train(self, resume_from_checkpoint=False):
        self.say("the run begins")
        with self.stop:
            take_steps(self)
        return self.run

    def step(self, number):
        # One long operation, in which Python handles no signal. The second step is the one that is interrupted; it is
        # long enough for a busy machine to draw the answer before its end.
        hashlib.pbkdf2_hmac("sha256", b"", b"", ROUNDS * (1 if number == 1 else 6))
        record = {"step": number, "reward_mean": number / 10, "kl": 0.01, "grad_norm": 0.5, "length_mean": 8.0}
        record |= {"usable_fork_rate": 0.25, "memory/peak_gb": 2.0, "packed_tokens": 250, "plain_tokens": 1000}
        record |= {"seconds/sample": 0.2, "seconds/step": 0.6}
        with (self.run.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        assert self.on_step is not None
        self.on_step(record)

    def validate(self):
        raise AssertionError("eval_every is 0")

    def save(self):
        (self.run.path / "saved").write_text(str(self.done))

    def asked_to_stop(self):
        return self.stop.asked


if __name__ == "__main__":
    console = Console(highlight=False, soft_wrap=True, markup=False)
    try:
        live.train(Waiting(Path(sys.argv[1]), console.print), console)
    except RunInterrupted as stopped:
        console.print(f"leaf: {stopped}")
        sys.exit(stopped.exit_code)
