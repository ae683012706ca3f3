"""Damaged checkpoints, torn logs and full disks: what is still whole is used, and the rest is named."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess

import pytest
import torch

from leaf.checksums import damage
from leaf.errors import RunError, RunInterrupted
from leaf.runs.checkpoints import read_checkpoint
from leaf.runs.directory import RunDirectory, bring_back
from leaf.runs.lost import lost_adapter
from tests.helpers import resume_worker as worker
from tests.helpers.resuming import contents, finish, letters_and, records, same, send, trainer


def test_everything_comes_back_bit_for_bit(tmp_path):
    first = trainer(tmp_path / "run", max_steps=4)
    first.train()
    said = []
    again = trainer(tmp_path / "run", max_steps=4, say=said.append)
    assert again.start(resume=True) == 4
    assert said == [f"resumed {tmp_path / 'run'} after step 4"]
    assert all(torch.equal(p, q) for p, q in zip(first.parameters, again.parameters, strict=True))
    wanted, got = first.optimizer.state_dict(), again.optimizer.state_dict()
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


DEEP = "[" * 100_000 + "\n"
DAMAGES = {
    "tensors flipped": (lambda path: flip(path / "tensors.safetensors", -5), "the checksum of tensors.safetensors"),
    "header flipped": (lambda path: flip(path / "tensors.safetensors", 20), "the checksum of tensors.safetensors"),
    "state flipped": (lambda path: flip(path / "state.json", 40), "the checksum of state.json"),
    "manifest flipped": (lambda path: flip(path / "manifest.json", 0), "is damaged"),
    "checksum flipped": (lambda path: flip(path / "manifest.json", -20), "the checksum of state.json"),
    "truncated": (lambda path: os.truncate(path / "tensors.safetensors", 100), "has 100 bytes instead of"),
    "emptied": (lambda path: os.truncate(path / "manifest.json", 0), "is damaged"),
    "another manifest": (
        lambda path: (path / "manifest.json").write_text("[]"),
        "manifest.json holds no list of files",
    ),
    "nested": (lambda path: (path / "manifest.json").write_text(DEEP), "JSON is nested too deeply"),
    "tensors gone": (lambda path: (path / "tensors.safetensors").unlink(), "tensors.safetensors is missing"),
    "all gone": (lambda path: [file.unlink() for file in path.iterdir()], "manifest.json is missing"),
}


@pytest.mark.parametrize("name", list(DAMAGES))
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(whole, tmp_path, name):
    harm, message = DAMAGES[name]
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    harm(path / "checkpoints/step-000005")
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
    with pytest.raises(RunError, match=r"No intact checkpoint is left in .*checkpoints \(steps 4, 5\)\. Restore one"):
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


def test_what_is_lost_is_said_and_the_run_goes_on(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    (path / "versions.json").write_text("{")
    for log in ("metrics.jsonl", "validation.jsonl", "groups.jsonl"):
        (path / log).write_text("")
    shutil.rmtree(path / "best")
    (path / "last").rename(path / "mine")
    said = []
    again = trainer(path, say=said.append, max_steps=6)
    again.train(resume_from_checkpoint=True)
    assert said[1:6] == [
        "versions.json is missing or damaged, so it is not known with which versions the run began",
        "metrics.jsonl lacks 5 of 5 steps, from step 1 on; they are lost",
        "validation.jsonl lacks 4 of 4 lines; they are lost",
        "groups.jsonl lacks 10 of 10 lines; they are lost",
        f"resumed {path} after step 5",
    ]
    assert "last/ is missing; it is written again, from the checkpoint" in said
    assert "best/ is missing; the best adapter from here on takes its place" in said
    assert (path / "best/adapter_config.json").is_file()
    assert [record["step"] for record in records(path, "metrics.jsonl")] == [6]


@pytest.mark.parametrize("text", ["[1]\n", DEEP, '{"signatures": 3}\n'], ids=["list", "nested", "other"])
def test_small_files_that_hold_something_else_do_not_end_a_resume(whole, tmp_path, text):
    path, said = tmp_path / "run", []
    shutil.copytree(whole[0], path)
    wanted = (path / "signatures.json").read_text()
    for name in ("versions.json", "signatures.json"):
        (path / name).write_text(text)
    with (path / "metrics.jsonl").open("a") as log:
        log.write('{"step": "x"}\n')
    trainer(path, say=said.append, max_steps=6, save_every=1, eval_every=1).train(resume_from_checkpoint=True)
    assert f"1 lines of {path / 'metrics.jsonl'} could not be read and were dropped" in said
    assert any("versions.json is missing or damaged" in line for line in said) == (not text.startswith("{"))
    assert (path / "signatures.json").read_text() == wanted
    assert [record["step"] for record in records(path, "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_a_log_that_is_a_folder_is_named(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    (path / "groups.jsonl").unlink()
    (path / "groups.jsonl").mkdir()
    again = trainer(path)
    with pytest.raises(RunError, match=r"groups\.jsonl cannot be read: Is a directory\. Restore it from a copy"):
        again.start(resume=True)


@pytest.mark.parametrize(
    "text",
    ["[1]", DEEP, "{", '{"files": []}', '{"files": {}}', '{"files": {"x": 1}}', None],
    ids=["list", "nested", "torn", "no names", "empty", "no sizes", "folder"],
)
def test_checksums_that_list_nothing_do_not_count_as_verified(whole, tmp_path, text):
    folder = tmp_path / "best"
    shutil.copytree(whole[0] / "best", folder)
    assert damage(folder) is None
    (folder / "checksums.json").unlink()
    assert damage(folder) is None  # of version 0.1
    if text is None:
        (folder / "checksums.json").mkdir()
    else:
        (folder / "checksums.json").write_text(text)
    assert damage(folder)
    assert "best/ is damaged (" in str(lost_adapter(folder))


def test_names_of_what_a_script_passed_that_cannot_be_read_are_an_error(tmp_path):
    (tmp_path / "recipe.yaml").write_text("stage: rl\n")
    for text in ("[1]", DEEP, "{"):
        (tmp_path / "provenance.json").write_text(text)
        with pytest.raises(RunError, match=r"provenance\.json cannot be read as a JSON object\. Restore it"):
            RunDirectory(tmp_path).script_values()


def test_an_adapter_that_is_lost_after_the_last_step_is_written_again(whole, tmp_path):
    path, said = tmp_path / "run", []
    shutil.copytree(whole[0], path)
    flip(path / "last/adapter_model.safetensors", -5)
    trainer(path, say=said.append).train(resume_from_checkpoint=True)
    assert "last/ is damaged (the checksum of adapter_model.safetensors is wrong); it is written again" in said[1]
    assert same(path, whole)


def test_best_and_last_caught_between_two_renames_are_brought_back(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    wanted = contents(path)
    (path / "best").rename(path / "best.leaf-old")
    (path / "last.leaf-unfinished").mkdir()
    shutil.copytree(path / "last", path / "last.leaf-old")
    (path / "checkpoints/step-000005").rename(path / "checkpoints/step-000005.leaf-old")
    run = RunDirectory.begin(worker.recipe(path), resume=True)
    run.release()
    assert contents(path) == wanted


def test_what_a_user_put_into_a_run_directory_stays(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    users = ["best.old", "last.partial", "checkpoints/step-000004.old", "checkpoints/step-000009.removed"]
    users += ["checkpoints/step-3", "checkpoints/step-000009-good", "checkpoints/step-٣"]
    files = [path / name / "notes" for name in users] + [path / "metrics.jsonl.partial", path / "recipe.yaml.old"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    trainer(path, max_steps=6).train(resume_from_checkpoint=True)
    assert all(file.read_text() == "mine" for file in files)


def test_adapters_and_checkpoints_that_are_links_are_written_through(whole, tmp_path):
    path, large = tmp_path / "run", tmp_path / "large"
    shutil.copytree(whole[0], path)
    large.mkdir()
    for name in ("last", "best", "checkpoints"):
        (path / name).rename(large / name)
        (path / name).symlink_to(large / name)
    trainer(path, max_steps=6).train(resume_from_checkpoint=True)
    assert sorted(file.name for file in large.iterdir()) == ["best", "checkpoints", "last"]
    assert (path / "last").is_symlink()
    assert max(records(path, "metrics.jsonl"), key=lambda record: record["step"])["step"] == 6


def test_an_adapter_caught_between_two_renames_is_found_by_who_asks_for_it(whole, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(whole[0], path)
    wanted = contents(path)
    bring_back(path / "best")
    bring_back(path / "nothing")
    (path / "best").rename(path / "best.leaf-old")
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
    assert not list((tmp_path / "run").rglob("*.leaf-*"))
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
