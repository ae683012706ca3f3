"""A run killed at any moment ends like the run that nothing interrupts, and a directory has one process at a time."""

import json
import multiprocessing
import os
import random
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from leaf.errors import RunError
from leaf.runs.checkpoints import read_checkpoint
from leaf.runs.directory import RunDirectory
from tests.helpers import resume_worker as worker
from tests.helpers.resuming import finish, records, same, trainer


def kill_again_and_again(fork, whole, folder, kills):
    seed = random.randrange(2**32)
    print(f"seed of the kill points: {seed}")  # pytest shows it with a failure
    draw = random.Random(seed)
    run, survived = 0, 0
    while kills > 0:
        path = folder / str(run)
        child = fork(worker.train, worker.recipe(path))
        child.join(draw.uniform(0, whole[1]))
        child.kill()
        child.join()
        if child.exitcode == 0:
            survived += 1
            assert same(path, whole), f"run {run}"
            shutil.rmtree(path)
            run += 1
        else:
            assert child.exitcode == -signal.SIGKILL
            kills -= 1
    finish(fork(worker.train, worker.recipe(folder / str(run))))
    assert same(folder / str(run), whole), f"run {run}"


def test_killed_at_twenty_random_moments_the_run_ends_the_same(fork, whole, tmp_path):
    assert [record["step"] for record in records(whole[0], "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert [record["step"] for record in records(whole[0], "validation.jsonl")] == [0, 2, 4, 5]
    kill_again_and_again(fork, whole, tmp_path, 20)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_three_hundred_random_moments(fork, whole, tmp_path):
    kill_again_and_again(fork, whole, tmp_path, 300)


def test_killed_at_every_file_operation_of_a_save_all_three_stay_whole(fork, whole, tmp_path):
    """best/ and last/ are the old adapter or the new one, and the newest checkpoint is whole, whatever was reached."""
    shutil.copytree(whole[0], tmp_path / "run")
    old = load_file(tmp_path / "run/last/adapter_model.safetensors")
    best = load_file(tmp_path / "run/best/adapter_model.safetensors")
    left = tmp_path / "left"
    left.mkdir()
    finish(fork(worker.saves_killed_everywhere, worker.recipe(tmp_path / "run", max_steps=6), left))
    count = len(list(left.iterdir()))
    assert count > 40
    outcomes = []
    for number in range(1, count + 1):
        path = left / str(number)
        run = RunDirectory.begin(worker.recipe(path, max_steps=6), resume=True)
        assert {file.name for file in path.iterdir()} == {file.name for file in whole[0].iterdir()}
        steps = sorted(int(file.name.removeprefix("step-")) for file in (path / "checkpoints").iterdir())
        _, tensors = read_checkpoint(path / f"checkpoints/step-{steps[-1]:06d}")
        assert steps[-2:] in ([4, 5], [5, 6])
        outcome = [steps[-1] == 6]
        for name, before in (("best", best), ("last", old)):
            found = load_file(path / name / "adapter_model.safetensors")
            outcome.append(all(torch.equal(value, old[key] + 1) for key, value in found.items()))
            assert outcome[-1] or all(torch.equal(value, before[key]) for key, value in found.items())
            json.loads((path / name / "adapter_config.json").read_text())
        added = float(outcome[0])
        name = "base_model.model.model.language_model.layers.0.mlp.down_proj.lora_A"
        assert torch.equal(tensors[f"parameter/model.{name}.default.weight"], old[f"{name}.weight"] + added)
        run.release()
        outcomes.append(outcome)
    # In this order, and never back: best/, last/, the checkpoint.
    assert outcomes[0] == [False, False, False]
    assert outcomes[-1] == [True, True, True]
    for column in zip(*outcomes, strict=True):
        assert list(column) == sorted(column)


def kill_while_saving(fork, whole, folder, numbers):
    for number in numbers:
        path = folder / str(number)
        child = fork(worker.train_killed_while_saving, worker.recipe(path), number)
        child.join(60)
        if child.exitcode == 0:
            return number
        assert child.exitcode == -signal.SIGKILL
        finish(fork(worker.train, worker.recipe(path)))
        assert same(path, whole), f"killed at operation {number}"
    return None


def test_killed_inside_a_save_the_run_ends_the_same(fork, whole, tmp_path):
    assert kill_while_saving(fork, whole, tmp_path, range(2, 50, 9)) is None


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_every_file_operation_of_a_save_the_run_ends_the_same(fork, whole, tmp_path):
    assert kill_while_saving(fork, whole, tmp_path, range(1, 1000)) is not None


def test_killed_while_the_directory_is_made_the_run_starts_at_step_0(fork, tmp_path):
    config = worker.recipe(tmp_path / "run")
    left = tmp_path / "left"
    left.mkdir()
    finish(fork(worker.beginnings_killed_everywhere, config, left))
    made = sorted(left.iterdir(), key=lambda path: int(path.name))
    assert len(made) > 6
    for path in made:
        run = RunDirectory.begin(worker.recipe(path), resume=True)
        assert {file.name for file in path.iterdir()} == {".lock", "recipe.yaml", "versions.json"}
        assert run.config().output_dir in (str(tmp_path / "run"), str(path))
        run.release()


def test_a_second_process_is_refused_until_the_first_is_dead(fork, tmp_path):
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = fork(worker.train_beside_a_child, worker.recipe(tmp_path / "run"), sender)
    grandchild = receiver.recv()
    try:
        with pytest.raises(RunError, match=f"is being trained into by process {child.pid} on .*another output_dir"):
            trainer(tmp_path / "run").train(resume_from_checkpoint=True)
        RunDirectory.open(tmp_path / "run")  # to read is allowed
        child.kill()
        child.join()
        # What the dead process had forked lives on, without the lock.
        os.kill(grandchild, 0)
        trainer(tmp_path / "run", max_steps=5).start(resume=True)
    finally:
        os.kill(grandchild, signal.SIGKILL)
