"""What the child processes of test_resume.py run.

Imported once, by the process the children are forked from (multiprocessing's forkserver): a child is ready to train in
milliseconds. Nothing here runs a backward pass at import: autograd does not survive a fork.
"""

import os
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import serialize_file

from leaf import LeafTrainer
from leaf.config import LeafConfig
from leaf.errors import LeafError
from leaf.runs.directory import RunDirectory
from tests.helpers import tiny

torch.set_num_threads(1)
MODEL, PROCESSOR = tiny.tiny_model()
ROWS = tiny.rows(5)
# Every call that changes a file or directory or brings it to the disk, safetensors' writer included.
OPERATIONS = {("posix", name) for name in ("fsync", "mkdir", "rename", "replace", "rmdir", "unlink")}
OPERATIONS |= {("_io", "open"), (serialize_file.__module__, "serialize_file")}


def letters(completions, **columns):
    """Reward something that differs between random completions."""
    return [sum(letter in "aeiou" for letter in text) / 10 for text in completions]


def recipe(path, **changes):
    """Every source of randomness and of state: dropout, several updates a rollout, a schedule, validation, best/."""
    values = {
        "output_dir": str(path),
        "max_steps": 5,
        "prompts_per_rollout": 2,
        "num_completions": 3,
        "max_new_tokens": 5,
        "learning_rate": 3e-2,
        "lora_r": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.1,
        "completions_per_update": 4,
        "eval_every": 2,
        "save_every": 2,
        "record_every": 1,
        "device": "cpu",
        "eval_items": 2,
        "warmup_steps": 3,
        "best_metric": "chrf",
    }
    return LeafConfig(**(values | changes))


def trainer(config, say=lambda line: None) -> Any:
    """Build a trainer on this process's own model: call it once."""
    return LeafTrainer(
        MODEL, [letters], config, ROWS, ROWS[:2], PROCESSOR, say=say, on_step=lambda record: say(str(record["step"]))
    )


def train(config, resume=True):
    """Train to the end."""
    trainer(config).train(resume_from_checkpoint=resume)


def kill_at_operation(number):
    """Let this process die by SIGKILL right before the n-th file operation from here."""
    count = 0

    def look(frame, event, called):
        nonlocal count
        if event == "c_call" and (called.__module__, called.__name__) in OPERATIONS:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(look)


def saves_killed_everywhere(config, into):
    """Write best/, last/ and the next checkpoint again and again, killed at the 1st, 2nd, ... file operation.

    The run directory as the n-th kill left it is moved to `into`/n; the last one is the one that lived.
    """
    leaf_trainer = trainer(config)
    leaf_trainer.start(resume=True)
    with torch.no_grad():
        for parameter in leaf_trainer.parameters:
            parameter.add_(1.0)
    leaf_trainer.done += 1
    path = leaf_trainer.run.path
    leaf_trainer.policy.save_adapter(path.with_name("first"))  # what peft imports on its first time
    shutil.copytree(path, path.with_name("template"))

    def save():
        leaf_trainer.run.replace_directory("best", leaf_trainer.policy.save_adapter)
        leaf_trainer.save()

    killed_everywhere(save, path, into)


def beginnings_killed_everywhere(config, into):
    """Make a run directory again and again, killed as above."""
    path = Path(config.output_dir)
    path.with_name("template").mkdir()
    killed_everywhere(lambda: RunDirectory.begin(config, resume=True, say=lambda line: None), path, into)


def killed_everywhere(action, path, into):
    for number in range(1, 1000):
        child = os.fork()
        if child == 0:
            kill_at_operation(number)
            action()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if path.exists():
            path.rename(into / str(number))
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))
        shutil.copytree(path.with_name("template"), path)


def train_killed_while_saving(config, number):
    """Train, and die at the n-th file operation between the record of step 4 and its checkpoint's being whole."""
    leaf_trainer = trainer(config)
    log, save = leaf_trainer._log, leaf_trainer.save

    def log_and_count(step, *rest):
        if step == 4:
            kill_at_operation(number)
        log(step, *rest)

    def save_and_stop_counting():
        save()
        sys.setprofile(None)

    leaf_trainer._log, leaf_trainer.save = log_and_count, save_and_stop_counting
    leaf_trainer.train(resume_from_checkpoint=True)


def train_beside_a_child(config, pipe):
    """Train, say so, and wait; a process forked from the trainer waits too, as a data loader's would."""
    leaf_trainer = trainer(config)
    leaf_trainer.start(resume=True)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    pipe.send(child)
    time.sleep(60)


def train_and_tell(config, pipe, limit=None):
    """Train; send the name and text of the error that ended it, with files limited to so many bytes after step 2."""
    leaf_trainer = trainer(config)
    log = leaf_trainer._log

    def log_and_limit(step, *rest):
        log(step, *rest)
        if step == 2 and limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    leaf_trainer._log = log_and_limit
    try:
        leaf_trainer.train(resume_from_checkpoint=True)
    except LeafError as error:
        pipe.send((type(error).__name__, str(error)))
    else:
        pipe.send(("none", ""))
