import hashlib
import inspect
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path

import peft
import pytest
from tests.helpers import tiny
import torch
from safetensors.torch import load_file

from tests.helpers import resume_worker as worker
from leaf.commands import main as cli
from leaf.config import AlignConfig, SftConfig
from leaf.errors import ModelError, RunError, RunInterrupted
from leaf.model.policy import Policy
from leaf.rewards.judge import judge_reward
from leaf.runs.checkpoints import _WHEREABOUTS, Checkpoints, read_checkpoint
from leaf.runs.directory import RunDirectory, bring_back
from leaf.train.align import align
from leaf.train.sft import sft
from leaf.train.trainer import LeafTrainer


# -- runs in processes that can be killed ------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def fork():
    """Return a function that starts `function(*arguments)` in a fresh child with torch and the tiny model at hand."""
    patch = pytest.MonkeyPatch()
    # The process to fork from takes its path from the environment, not from here.
    patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    patch.setenv("OMP_NUM_THREADS", "1")
    patch.setenv("PYTHONWARNINGS", "ignore")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.resume_worker"])
    children = []

    def start(function, *arguments):
        child = context.Process(target=function, args=arguments)
        child.start()
        children.append(child)
        return child

    start(os.getpid).join()  # the imports, before anything is timed
    yield start
    for child in children:
        child.kill()
        child.join()
        child.close()
    patch.undo()


def finish(child):
    child.join(120)
    assert child.exitcode == 0


@pytest.fixture(scope="module")
def whole(fork, tmp_path_factory):
    """The run that nothing interrupts, and the seconds it took."""
    path = tmp_path_factory.mktemp("whole") / "run"
    began = time.perf_counter()
    finish(fork(worker.train, worker.recipe(path)))
    return path, time.perf_counter() - began


def records(path, name):
    """Return the records of a log without wall-clock times and memory; a step twice or a torn line shows."""
    found = [json.loads(line) for line in (path / name).read_text().splitlines()]
    return [{k: v for k, v in record.items() if not k.startswith(("seconds/", "memory/"))} for record in found]


def contents(path):
    """Return everything that has to be the same, bit for bit."""
    found = {file.name: records(path, file.name) for file in path.glob("*.jsonl")}
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


# -- signals -----------------------------------------------------------------------------------------------------------
def trainer(path, say=lambda line: None, rewards=worker.letters, on_step=None, **changes):
    model, processor = tiny.tiny_model()
    rows = tiny.rows(5)
    config = worker.recipe(path, **changes)
    on_step = on_step or (lambda record: None)
    return LeafTrainer(model, [rewards], config, rows, rows[:2], processor, report=say, on_step=on_step)


def letters_and(action):
    """Return the worker's reward under its own name, with something done on its n-th call (of one per rollout)."""
    calls = 0

    def letters(**columns):
        nonlocal calls
        calls += 1
        action(calls)
        return worker.letters(**columns)

    return letters


def send(*numbers, at):
    return letters_and(lambda call: [os.kill(os.getpid(), number) for number in numbers if call == at])


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
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

    def evaluate_and_stop(at):
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(at)

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


def test_the_command_exits_with_75(monkeypatch, capsys):
    def interrupted():
        raise RunInterrupted("SIGTERM asked to stop.")

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 75


# -- what a checkpoint holds -------------------------------------------------------------------------------------------
def test_everything_comes_back_bit_for_bit(tmp_path):
    first = trainer(tmp_path / "run", max_steps=4)
    first.train()
    said = []
    again = trainer(tmp_path / "run", max_steps=4, say=said.append)
    assert again.start(resume=True) == 4
    assert said == [f"resumed {tmp_path / 'run'} after step 4"]
    assert all(torch.equal(p, q) for p, q in zip(first.parameters, again.parameters, strict=True))
    wanted, got = first._optimizer.state_dict(), again._optimizer.state_dict()
    assert got["param_groups"] == wanted["param_groups"]
    assert got["state"].keys() == wanted["state"].keys()
    assert len(got["state"]) == len(first.parameters)
    for index, state in wanted["state"].items():
        for key, value in state.items():
            assert got["state"][index][key].dtype == value.dtype
            assert torch.equal(got["state"][index][key], value), (index, key)
    assert again.schedule.state_dict() == first.schedule.state_dict()
    assert again.best == first.best is not None
    assert again.streaks.lengths == first.streaks.lengths
    assert len(again.streaks.lengths) == 3
    assert again.policy.token_budget == first.policy.token_budget


def test_the_files_hold_no_code(whole):
    files = [file for file in (whole[0] / "checkpoints").rglob("*") if file.is_file()]
    assert {file.name for file in files} == {"tensors.safetensors", "state.json", "manifest.json"}
    assert len(files) == 6
    for file in files:
        assert not file.read_bytes().startswith((b"PK", b"\x80"))  # of torch.save, of pickle


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_are_kept_as_the_recipe_says(tmp_path, keep):
    trainer(tmp_path / "run", keep_checkpoints=keep, save_every=1, max_steps=4, eval_every=0).train()
    steps = sorted(file.name for file in (tmp_path / "run/checkpoints").iterdir())
    assert steps == [f"step-{step:06d}" for step in range(5 - keep, 5)]


def flip(file, at):
    content = bytearray(file.read_bytes())
    content[at % len(content)] ^= 0x01  # a digit or letter stays one: 0x10 made a quote of a 2, one time in sixteen
    file.write_bytes(content)


DAMAGES = {
    "tensors flipped": (lambda path: flip(path / "tensors.safetensors", -5), "the checksum of tensors.safetensors"),
    "header flipped": (lambda path: flip(path / "tensors.safetensors", 20), "the checksum of tensors.safetensors"),
    "state flipped": (lambda path: flip(path / "state.json", 40), "the checksum of state.json"),
    "manifest flipped": (lambda path: flip(path / "manifest.json", 0), "is damaged"),
    "checksum flipped": (lambda path: flip(path / "manifest.json", -20), "the checksum of state.json"),
    "truncated": (lambda path: os.truncate(path / "tensors.safetensors", 100), "has 100 bytes instead of"),
    "emptied": (lambda path: os.truncate(path / "manifest.json", 0), "is damaged"),
    "another manifest": (lambda path: (path / "manifest.json").write_text("[]"), "manifest.json is not a manifest"),
    "tensors gone": (lambda path: (path / "tensors.safetensors").unlink(), "tensors.safetensors is missing"),
    "all gone": (lambda path: [file.unlink() for file in path.iterdir()], "manifest.json is missing"),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(whole, tmp_path, name):
    damage, message = DAMAGES[name]
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    damage(path / "checkpoints/step-000005")
    said = []
    again = trainer(path, say=said.append)
    assert again.start(resume=True) == 4
    again.run.release()
    assert len(said) == 2
    assert said[0].startswith(f"The checkpoint {path}/checkpoints/step-000005 is damaged: ")
    assert message in said[0]
    assert said[0].endswith(". The one before it is used.")
    if name in ("truncated", "all gone"):
        trainer(path).train(resume_from_checkpoint=True)
        assert same(path, whole)


def test_any_flipped_byte_is_found_or_without_effect(whole, tmp_path):
    source = whole[0] / "checkpoints/step-000005"
    path = tmp_path / "checkpoint"
    state, tensors = read_checkpoint(source)
    draw = random.Random(1)
    unharmed = 0
    for name in ("tensors.safetensors", "state.json", "manifest.json"):
        size = (source / name).stat().st_size
        for at in range(size) if name == "manifest.json" else draw.sample(range(size), 40):
            shutil.copytree(source, path, dirs_exist_ok=True)
            flip(path / name, at)
            try:
                got, others = read_checkpoint(path)
            except RunError:
                continue
            unharmed += 1
            assert name == "manifest.json"  # a space, or the letter of a key that nobody reads
            assert got == state
            assert all(torch.equal(value, tensors[key]) for key, value in others.items())
    assert unharmed < 40


def test_no_intact_checkpoint_left_is_one_error(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    for file in path.rglob("state.json"):
        flip(file, 9)
    with pytest.raises(RunError, match=r"No intact checkpoint is left in .*checkpoints \(steps 4, 5\)\. Bring one"):
        trainer(path).start(resume=True)
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(RunError, match="recorded steps but no checkpoints/"):
        trainer(path).start(resume=True)
    assert records(path, "metrics.jsonl") == records(whole[0], "metrics.jsonl")


def test_a_later_checkpoint_that_was_passed_over_does_not_come_back(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    flip(path / "checkpoints/step-000005/state.json", 9)
    with pytest.raises(RunInterrupted, match="after step 4 of 5"):  # nothing new to save
        trainer(path, rewards=send(signal.SIGTERM, at=1)).train(resume_from_checkpoint=True)
    trainer(path, max_steps=8).train(resume_from_checkpoint=True)
    steps = sorted(file.name for file in (path / "checkpoints").iterdir())
    assert steps == ["step-000006", "step-000008"]


# -- which run it is ---------------------------------------------------------------------------------------------------
def test_another_recipe_is_refused_with_the_fields_that_differ(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    with pytest.raises(
        RunError, match="Allowed are larger values of max_steps, epochs, max_prompt_tokens and other ones of attention"
    ) as error:
        trainer(path, seed=1, clip=0.3, credit_options={"max_boundaries": 3}).start(resume=True)
    text = str(error.value)
    assert "clip is 0.3, was 0.2" in text
    assert "seed is 1, was 0" in text
    assert "credit_options is {'max_boundaries': 3}, was {}" in text
    assert "learning_rate" not in text
    assert "Put back what differs, or start another run in another output_dir" in text
    with pytest.raises(RunError, match="max_steps is 4, was 5"):
        trainer(path, max_steps=4).start(resume=True)
    with pytest.raises(RunError, match="lora_r is 4, was 2"):
        trainer(path, lora_r=4).start(resume=True)
    with pytest.raises(RunError, match=r"with rewards: \['letters'\], now \['bleu'\], but they decide"):
        trainer(path, rewards="bleu").start(resume=True)
    trainer(path).train(resume_from_checkpoint=True)
    assert same(path, whole)


def test_another_number_of_rows_is_refused(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    one = trainer(path)
    training = (one.trained, one._optimizer, one.schedule)
    for key, was, now, why in (("training rows", 5, 6, "their order depends on how many there are"),):
        with pytest.raises(RunError, match=f"was trained with {key}: {was}, now {now}, but {why}"):
            Checkpoints(RunDirectory(path), one.args, *training, facts={key: now}).restore()


def test_a_judge_may_have_moved_but_not_have_become_another(tmp_path):
    """What is kept in the recipe is compared; the reward itself is another here."""
    path = tmp_path / "run"
    judge = {"url": "http://localhost:8000/v1", "model": "judge"}
    one = trainer(path, max_steps=1, eval_every=0)
    training = (one.trained, one._optimizer, one.schedule)
    config = replace(one.args, reward_options={"judge": judge})
    Checkpoints(RunDirectory.begin(config), config, *training, facts={}).save(1, validation_due=False)
    moved = {**judge, "url": "http://elsewhere:8000/v1", "concurrency": 2}
    config = replace(one.args, reward_options={"judge": moved})
    assert Checkpoints(RunDirectory(path), config, *training, facts={}).restore()["step"] == 1
    config = replace(one.args, reward_options={"judge": {**moved, "model": "other"}})
    with pytest.raises(RunError, match=r"reward_options is .*'model': 'other'.*, was .*'model': 'judge'"):
        Checkpoints(RunDirectory(path), config, *training, facts={}).restore()


def test_what_may_change_of_a_judge_are_options_that_it_takes():
    assert inspect.signature(judge_reward).parameters.keys() >= _WHEREABOUTS


def test_another_number_of_processes_is_said(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    checkpoint = path / "checkpoints/step-000005"
    text = (checkpoint / "state.json").read_text().replace('"processes": 1', '"processes": 4')
    (checkpoint / "state.json").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"]["sha256"] = digest
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    said = []
    again = trainer(path, say=said.append)
    again.start(resume=True)
    again.run.release()
    assert said[-1] == "1 processes, was 4: the last bits will differ, as will the noise of LoRA dropout"


def test_a_model_with_other_parameters_is_refused(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    one = trainer(path)
    name = next(iter(one.trained))
    rest = {key: value for key, value in one.trained.items() if key != name}
    with pytest.raises(RunError, match=rf"does not fit what is trained here: {name} is None, was \(torch.float32"):
        Checkpoints(RunDirectory(path), one.args, rest, one._optimizer, one.schedule, facts={}).restore()


def test_what_does_not_change_the_run_may_change(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    said = []
    changes = {"save_every": 7, "keep_checkpoints": 3, "token_budget": 99, "max_steps": 7, "eval_every": 0}
    again = trainer(path, say=said.append, **changes)
    again.train(resume_from_checkpoint=True)
    assert again.policy.token_budget == 99
    assert [record["step"] for record in records(path, "metrics.jsonl")] == [1, 2, 3, 4, 5, 6, 7]
    assert said[0] == "the learning rate now follows a cosine over 7 steps instead of 5"
    assert said[1] == "changed: token_budget; the last bits will differ from the uninterrupted run's"
    assert again.run.config() == again.args
    # Two updates a step: after step 6 the schedule for 7 steps is at update 12 of 14, three of them warm-up.
    rate = records(path, "metrics.jsonl")[5]["learning_rate"]
    assert rate == again.schedule.base_lrs[0] * again.schedule.lr_lambdas[0](12)


def test_a_prompt_that_was_too_long_may_be_allowed_and_the_run_goes_on(whole, tmp_path):
    """Row 2 has 60 tokens, the others fewer, and step 3 is the first to meet it."""
    path, said = tmp_path / "run", []
    with pytest.raises(ModelError, match=r"The prompt of '2' has 60 tokens.*at most 50 are allowed"):
        trainer(path, max_prompt_tokens=50).train()
    with pytest.raises(RunError, match="max_prompt_tokens is 49, was 50"):
        trainer(path, max_prompt_tokens=49).start(resume=True)
    raised = trainer(path, max_prompt_tokens=60, say=said.append)
    raised.start(resume=True)
    raised.run.release()
    assert said == [
        "max_prompt_tokens is now 60 instead of 50; what was accepted so far still is",
        f"resumed {path} after step 2",
    ]
    trainer(path).train(resume_from_checkpoint=True)
    assert same(path, whole)
    with pytest.raises(RunError, match="max_prompt_tokens is 60, was None"):
        trainer(path, max_prompt_tokens=60).start(resume=True)


def test_a_constant_schedule_extended_is_the_longer_run(tmp_path):
    """A longer run that stops early and one that is told later to go on are the same."""
    settled = {"schedule_steps": 6, "eval_every": 3}
    trainer(tmp_path / "a", max_steps=6, **settled).train()
    trainer(tmp_path / "b", max_steps=3, **settled).train()
    trainer(tmp_path / "b", max_steps=6, **settled).train(resume_from_checkpoint=True)
    assert records(tmp_path / "a", "metrics.jsonl") == records(tmp_path / "b", "metrics.jsonl")
    name = "checkpoints/step-000006/tensors.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_other_versions_are_said(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    versions = json.loads((path / "versions.json").read_text())
    (path / "versions.json").write_text(json.dumps({**versions, "torch": "1.0"}))
    said = []
    trainer(path, say=said.append).start(resume=True)
    assert said[0] == f"not what the run began with: torch {versions['torch']}, was 1.0; the last bits may differ"


# -- logs --------------------------------------------------------------------------------------------------------------
def test_a_line_torn_at_any_byte_is_dropped(tmp_path):
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.append("metrics.jsonl", {"step": step, "text": "zwölf – 12"})
    file = tmp_path / "metrics.jsonl"
    text = file.read_bytes()
    lines = text.splitlines(keepends=True)
    for end in range(len(lines[0] + lines[1]), len(text)):
        file.write_bytes(text[:end])
        assert [record["step"] for record in run.lines("metrics.jsonl")] == [1, 2]
        assert run.forget_after("metrics.jsonl", 5) == 0
        assert file.read_bytes() == lines[0] + lines[1]
    file.write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[2])
    with pytest.raises(RunError, match=r"Line 2 of .*metrics.jsonl is not a JSON object"):
        list(run.lines("metrics.jsonl"))
    assert run.forget_after("metrics.jsonl", 3) == 1
    assert file.read_bytes() == lines[0] + lines[2]


def test_lost_and_unreadable_lines_are_said(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join([lines[0], "{]\n", *lines[3:]]))
    said = []
    trainer(path, say=said.append).start(resume=True)
    assert said[0] == f"1 lines of {path / 'metrics.jsonl'} could not be read and were dropped"
    assert said[1] == "metrics.jsonl lacks 2 of 5 steps, from step 2 on; they are lost"


def test_best_and_last_caught_between_two_renames_are_brought_back(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    wanted = contents(path)
    (path / "best").rename(path / "best.old")
    (path / "last.partial").mkdir()
    shutil.copytree(path / "last", path / "last.old")
    (path / "checkpoints/step-000005").rename(path / "checkpoints/step-000005.old")
    (path / "mine.old").mkdir()  # not ours
    run = RunDirectory.begin(worker.recipe(path), resume=True)
    run.release()
    assert (path / "mine.old").is_dir()
    assert contents(path) == wanted


def test_an_adapter_caught_between_two_renames_is_found_by_who_asks_for_it(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    wanted = contents(path)
    bring_back(path / "best")
    bring_back(path / "nothing")
    (path / "best").rename(path / "best.old")
    holder = RunDirectory(path)
    holder.lock()
    with pytest.raises(RunError, match="is being trained into by process"):
        bring_back(path / "best")
    holder.release()
    bring_back(path / "best")
    assert contents(path) == wanted


def test_an_old_checkpoint_that_a_kill_left_is_dropped(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    shutil.copytree(path / "checkpoints/step-000004", path / "checkpoints/step-000002")
    trainer(path).train(resume_from_checkpoint=True)
    assert same(path, whole)


# -- one process at a time ---------------------------------------------------------------------------------------------
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


# -- disks -------------------------------------------------------------------------------------------------------------
def test_too_little_space_is_said_before_anything_is_made(tmp_path):
    with pytest.raises(RunError, match=r"needs about \d+ MB for 1000000000 checkpoints .* has \d+ MB left\. Free some"):
        trainer(tmp_path / "run", keep_checkpoints=10**9).train()
    assert not (tmp_path / "run").exists()


def test_a_limit_on_file_size_stops_the_run_and_leaves_the_checkpoint_before(fork, whole, tmp_path):
    config = worker.recipe(tmp_path / "run", save_every=1)
    receiver, sender = multiprocessing.Pipe(duplex=False)
    finish(fork(worker.train_and_tell, config, sender, 30_000))
    kind, text = receiver.recv()
    assert kind == "RunError"
    assert "cannot be written: File too large. What was saved before is intact. Free some space" in text
    assert not list((tmp_path / "run").rglob("*.partial"))
    config = worker.recipe(tmp_path / "run")
    finish(fork(worker.train, config))
    assert same(tmp_path / "run", whole)


@pytest.fixture
def disk(tmp_path):
    """A file system of its own, small enough to fill."""
    path = tmp_path / "disk"
    path.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", path], capture_output=True, check=False)
    if made.returncode != 0:
        pytest.skip("mounting a small file system takes root")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(disk, whole):
    def fill(call):
        with (disk / "ballast").open("wb", buffering=0) as ballast:
            while call == 4 and shutil.disk_usage(disk).free:
                ballast.write(bytes(4096))

    with pytest.raises(RunError, match=r"cannot be written: No space left on device\. What was saved .* Free some"):
        trainer(disk / "run", rewards=letters_and(fill)).train()
    with pytest.raises(RunError, match="has 0 MB left"):
        trainer(disk / "run").train(resume_from_checkpoint=True)
    (disk / "ballast").unlink()
    trainer(disk / "run").train(resume_from_checkpoint=True)
    assert same(disk / "run", whole)


def test_a_disk_that_cannot_be_written_is_named(disk):
    trainer(disk / "run", max_steps=1, eval_every=0).train()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for path, resume in ((disk / "run", True), (disk / "other", False)):
        with pytest.raises(RunError, match=r"cannot be written: Read-only file system\. .*Make it writable, or choose"):
            trainer(path).train(resume_from_checkpoint=resume)


# -- the other stages --------------------------------------------------------------------------------------------------
STAGES = {
    "sft": (sft, SftConfig, {"lora_r": 2, "lora_dropout": 0.1, "max_new_tokens": 3}),
    "align": (align, AlignConfig, {}),
}


def run_stage(stage, path, interrupt=None, resume=False):
    """Run a stage on the tiny model; `interrupt` is called with the record of every step before it is logged."""
    function, config_class, options = STAGES[stage]
    shared = {"max_steps": 5, "batch_size": 2, "save_every": 2, "eval_every": 3, "eval_items": 2, "warmup_steps": 2}
    config = config_class(output_dir=str(path), learning_rate=1e-2, stage=stage, **shared, **options)
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=2, lora_dropout=0.1) if stage == "sft" else None
    policy = Policy.wrap(*tiny.tiny_model(), lora=lora)
    run = RunDirectory.begin(config, resume, say=lambda line: None)
    append = run.append

    def append_and_interrupt(name, record):
        if interrupt is not None and name == "metrics.jsonl":
            interrupt(record["step"])
        append(name, record)

    run.append = append_and_interrupt
    try:
        function(config, policy, tiny.rows(5), tiny.rows(2), run, lambda line: None, resume=resume)
    finally:
        run.release()


def timeless(path):
    found = contents(path)
    for record in found["metrics.jsonl"]:
        del record["seconds"]
    return found


@pytest.mark.parametrize("stage", list(STAGES))
@pytest.mark.parametrize("step", [1, 3, 4])
def test_sft_and_align_resume_exactly_after_a_crash_and_after_a_signal(tmp_path, stage, step):
    def crash(at):
        if at == step:
            raise RuntimeError("killed")

    def terminate(at):
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)

    run_stage(stage, tmp_path / "whole")
    wanted = timeless(tmp_path / "whole")
    assert [record["step"] for record in wanted["validation.jsonl"]] == [3, 5]
    with pytest.raises(RuntimeError, match="killed"):
        run_stage(stage, tmp_path / "crashed", crash)
    with pytest.raises(RunInterrupted, match=f"after step {step} of 5"):
        run_stage(stage, tmp_path / "stopped", terminate)
    for name in ("crashed", "stopped"):
        run_stage(stage, tmp_path / name, resume=True)
        got = timeless(tmp_path / name)
        assert got == wanted


def test_a_fresh_adapter_is_a_function_of_the_seed(tmp_path):
    """Killed before its first checkpoint, a run of stage sft begins again with the same adapter."""
    model, processor = tiny.tiny_model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    drawn = []
    for torch_seed, seed in ((1, 3), (2, 3), (2, 4)):
        torch.manual_seed(torch_seed)
        policy = cli._policy(SftConfig(model=str(tmp_path), seed=seed, device="cpu", lora_r=2))
        drawn.append(torch.cat([p.flatten() for n, p in policy.named_parameters() if "lora_A" in n]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
