"""Runs of the tiny model that are interrupted and resumed, and what of their files has to be the same."""

import json
import os
from typing import Any

from leaf import LeafTrainer
from tests.helpers import resume_worker as worker
from tests.helpers import tiny


def finish(child):
    child.join(120)
    assert child.exitcode == 0


def trainer(path, say=lambda line: None, rewards=worker.letters, on_step=None, **changes) -> Any:
    model, processor = tiny.tiny_model()
    rows = tiny.rows(5)
    config = worker.recipe(path, **changes)
    on_step = on_step or (lambda record: None)
    return LeafTrainer(model, [rewards], config, rows, rows[:2], processor, say=say, on_step=on_step)


def letters_and(action):
    """Return the worker's reward under its own name, with something done on its n-th rollout (of one call each)."""
    calls = 0

    def letters(**columns):
        nonlocal calls
        if len(columns["completions"]) > 2:  # a validation has one of each of two rows
            calls += 1
            action(calls)
        return worker.letters(**columns)

    return letters


def send(*numbers, at):
    return letters_and(lambda call: [os.kill(os.getpid(), number) for number in numbers if call == at])


def records(path, name):
    """Return the records of a log without wall-clock times and memory; a step twice or a torn line shows."""
    found = [json.loads(line) for line in (path / name).read_text().splitlines()]
    return [{k: v for k, v in record.items() if not k.startswith(("seconds/", "memory/"))} for record in found]


def contents(path):
    """Return everything that has to be the same, bit for bit."""
    found: dict[str, Any] = {file.name: records(path, file.name) for file in path.glob("*.jsonl")}
    for file in sorted(path.rglob("*")):
        name = str(file.relative_to(path))
        if file.suffix == ".safetensors":
            found[name] = file.read_bytes()
        elif file.name == "state.json":
            found[name] = json.loads(file.read_text())
            del found[name]["recipe"]["output_dir"]
        elif file.is_file() and name not in found and file.name not in (".lock", "manifest.json", "recipe.yaml"):
            found[name] = file.read_text()
    return found


def same(path, whole):
    got, wanted = contents(path), contents(whole[0])
    assert got.keys() == wanted.keys()
    return all(got[name] == wanted[name] for name in wanted)
