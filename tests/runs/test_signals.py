"""A signal saves what is done, and the resumed run ends like the run that nothing interrupts."""

import errno
import multiprocessing
import os
import random
import signal
import threading
import time

import pytest

from leaf.errors import RunInterrupted
from tests.helpers import resume_worker as worker
from tests.helpers.resuming import finish, letters_and, records, same, send, trainer


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"])
def test_a_signal_saves_what_is_done_and_the_run_goes_on_as_if_nothing_happened(whole, tmp_path, name, capfd):
    """It comes within the rollout of step 4: that rollout is given up, and step 3, not on the schedule, is saved."""
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with pytest.raises(RunInterrupted, match=f"{name} asked to stop: the run is saved after step 3 of 5.*--resume"):
        trainer(tmp_path / "run", rewards=send(number, at=4)).train()
    assert signal.getsignal(number) is before
    assert RunInterrupted.exit_code == 75
    assert f"{name} received, saving as soon as it is safe" in capfd.readouterr().err
    assert sorted(file.name for file in (tmp_path / "run/checkpoints").iterdir()) == ["step-000002", "step-000003"]
    trainer(tmp_path / "run").train(resume_from_checkpoint=True)
    assert same(tmp_path / "run", whole)


@pytest.mark.parametrize(("step", "saved"), [(0, 0), (4, 4), (5, 5)])
def test_a_signal_in_the_middle_of_a_validation_leaves_it_for_the_resumed_run(whole, tmp_path, step, saved):
    stopped = trainer(tmp_path / "run")
    evaluate = stopped.evaluate

    def evaluate_and_stop():
        if stopped.done == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate()

    stopped.evaluate = evaluate_and_stop
    with pytest.raises(RunInterrupted, match=f"after step {saved} of 5"):
        stopped.train()
    validated = tmp_path / "run/validation.jsonl"
    assert not validated.exists() or step not in [r["step"] for r in records(tmp_path / "run", "validation.jsonl")]
    trainer(tmp_path / "run").train(resume_from_checkpoint=True)
    assert same(tmp_path / "run", whole)


def test_signals_at_random_moments_from_outside(fork, whole, tmp_path):
    draw = random.Random(0)
    outcomes = []
    for i in range(4):
        path = tmp_path / str(i)
        receiver, sender = multiprocessing.Pipe(duplex=False)
        child = fork(worker.train_and_tell, worker.recipe(path), sender)
        while not (path / "checkpoints/step-000000").exists():
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.5) * whole[1])
        child.terminate()  # SIGTERM, unless it has ended
        child.join()
        outcomes.append(receiver.recv()[0] if child.exitcode == 0 else "killed before the steps began")
        finish(fork(worker.train, worker.recipe(path)))
        assert same(path, whole)
    assert "RunInterrupted" in outcomes


def test_a_second_ctrl_c_stops_at_once_and_the_run_can_still_be_resumed(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "run", rewards=send(signal.SIGINT, signal.SIGINT, at=4)).train()
    assert sorted(file.name for file in (tmp_path / "run/checkpoints").iterdir()) == ["step-000000", "step-000002"]
    trainer(tmp_path / "run").train(resume_from_checkpoint=True)
    assert same(tmp_path / "run", whole)


def test_lines_that_nobody_can_read_any_more_stop_the_run_and_it_is_saved(whole, tmp_path, capfd):
    def say(line):
        if line.startswith("step 3/"):
            raise OSError(errno.ENOSPC, "No space left on device")

    stopped = trainer(tmp_path / "run", say=say)
    stopped.on_step = None  # a step is said by a line
    with pytest.raises(RunInterrupted, match=r"output cannot be written \(No space left on device\): .*step 3 of 5"):
        stopped.train()
    assert capfd.readouterr().err.count("the output cannot be written (No space left on device), saving") == 1
    trainer(tmp_path / "run").train(resume_from_checkpoint=True)
    assert same(tmp_path / "run", whole)


def test_handlers_are_for_the_main_thread_and_ignored_signals_stay_ignored(tmp_path):
    seen = []
    look = letters_and(lambda call: seen.append([signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGUSR1)]))
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        trainer(tmp_path / "main", rewards=look, max_steps=1, eval_every=0).train()
        thread = threading.Thread(target=trainer(tmp_path / "b", rewards=look, max_steps=1, eval_every=0).train)
        thread.start()
        thread.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert callable(seen[0][0])
    assert seen[0][1] is signal.SIG_IGN
    assert seen[1] == [signal.SIG_DFL, signal.SIG_IGN]
