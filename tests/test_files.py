"""Files and directories are written whole or not at all; the kills at every operation are in tests/runs."""

import os
import signal
import stat

import pytest
import torch
from safetensors.torch import save_file

from leaf import files
from leaf.errors import DataError, RunError


def fill(text):
    return lambda path: (path / "text").write_text(text)


def fail(path):
    (path / "half").write_text("x")
    raise OSError("the disk is gone")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_and_a_failure_leaves_the_old_one(tmp_path):
    file = tmp_path / "new/folder/a.txt"
    files.write_text(file, "one")
    files.write_text(file, "two")

    def half(path):
        path.write_text("th")
        raise OSError("the disk is gone")

    with pytest.raises(RunError, match=r"a\.txt cannot be written: the disk is gone\. What was saved before is intact"):
        files.replace_file(file, half)
    assert file.read_text() == "two"
    assert names(file.parent) == ["a.txt"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_umask_says_who_reads_what_is_written(tmp_path, umask, mode):
    """safetensors makes files that their owner alone reads; a server of another user could not read an adapter."""

    def tensors(path):
        save_file({"a": torch.zeros(2)}, path)

    def folder(path):
        (path / "inner").mkdir()
        tensors(path / "inner/b.safetensors")
        (path / "c.json").write_text("{}")

    before = os.umask(umask)
    try:
        files.replace_file(tmp_path / "a.safetensors", tensors)
        files.new_directory(tmp_path / "new", folder)
        files.replace_directory(tmp_path / "other", folder)
    finally:
        os.umask(before)
    made = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(made) == 5
    assert {stat.S_IMODE(file.stat().st_mode) for file in made} == {mode}


def test_a_pipe_gets_the_content_and_stays_a_pipe(tmp_path):
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for node in (pipe, link):
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        files.write_text(node, "one")
        assert os.read(reader, 9) == b"one"
        os.close(reader)
    assert pipe.is_fifo()
    assert names(tmp_path) == ["link", "pipe"]


def test_a_file_or_pipe_is_not_replaced_by_a_directory(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("mine")
    for name in ("pipe", "file"):
        with pytest.raises(RunError, match=f"{name} cannot be written: Not a directory"):
            files.replace_directory(tmp_path / name, fill("x"))
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == ["file", "pipe"]


def test_a_directory_is_replaced_whole_and_a_failure_leaves_the_old_one(tmp_path):
    for text in ("one", "two"):
        files.replace_directory(tmp_path / "a", fill(text))
    with pytest.raises(RunError, match="the disk is gone"):
        files.replace_directory(tmp_path / "a", fail)
    assert (tmp_path / "a/text").read_text() == "two"
    assert names(tmp_path) == ["a"]
    files.remove_directory(tmp_path / "a")
    assert names(tmp_path) == []


def test_of_several_that_make_a_new_directory_the_first_has_the_name(tmp_path):
    files.new_directory(tmp_path / "a", fill("one"))
    with pytest.raises(RunError, match="cannot be written"):
        files.new_directory(tmp_path / "a", fill("two"))
    with pytest.raises(RunError, match="the disk is gone"):
        files.new_directory(tmp_path / "b", fail)
    assert (tmp_path / "a/text").read_text() == "one"
    assert names(tmp_path) == ["a"]


def test_what_a_kill_left_is_put_right(tmp_path):
    users = ["b.old", "b.partial", "b.removed", "c.old"]
    for name in ("a.leaf-old", "a.leaf-unfinished", "b", "b.leaf-old", "b.leaf-removed", *users):
        fill(name)((tmp_path / name).mkdir() or tmp_path / name)
    for name in ("a", "b", "c"):
        files.recover(tmp_path / name)
    files.replace_directory(tmp_path / "c", fill("c"))
    assert names(tmp_path) == ["a", "b", *users[:3], "c", "c.old"]
    assert (tmp_path / "a/text").read_text() == "a.leaf-old"
    assert (tmp_path / "b/text").read_text() == "b"


def test_a_symbolic_link_is_written_through_and_stays(tmp_path):
    (tmp_path / "large/disk").mkdir(parents=True)
    (tmp_path / "last").symlink_to("large/disk")
    (tmp_path / "log").symlink_to("large/log")
    for text in ("one", "two"):
        files.replace_directory(tmp_path / "last", fill(text))
        files.write_text(tmp_path / "log", text)
    files.recover(tmp_path / "last")
    assert (tmp_path / "large/disk/text").read_text() == (tmp_path / "large/log").read_text() == "two"
    assert (names(tmp_path), names(tmp_path / "large")) == (["large", "last", "log"], ["disk", "log"])
    assert (tmp_path / "last").is_symlink()
    assert (tmp_path / "log").is_symlink()


def test_a_directory_that_a_killed_process_left_unfinished_is_removed_by_the_next(tmp_path):
    def killed(path):
        fill("half")(path)
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        files.new_directory(tmp_path / "a", killed)
    os.waitpid(child, 0)
    (left,) = names(tmp_path)
    users = [tmp_path / "a.copy.leaf-unfinished", tmp_path / "b.0123abcd.leaf-unfinished"]
    for folder in users:
        folder.mkdir()

    def beside_another(path):
        files.new_directory(tmp_path / "a", fill("faster"))
        fill("slower")(path)

    with pytest.raises(RunError, match="cannot be written"):
        files.new_directory(tmp_path / "a", beside_another)
    assert left.startswith("a.")
    assert names(tmp_path) == ["a", *(folder.name for folder in users)]
    assert (tmp_path / "a/text").read_text() == "faster"


def test_a_torn_line_is_neither_read_nor_continued(tmp_path):
    file = tmp_path / "a.jsonl"
    assert list(files.finished_lines(file)) == []
    files.drop_torn_line(file)
    assert not file.exists()
    files.append_row(file, {"text": "zwölf"})
    with file.open("a") as torn:
        torn.write('{"text": "th')
    assert [files.parsed_row(line) for line in files.finished_lines(file)] == [{"text": "zwölf"}]
    files.drop_torn_line(file)
    files.append_row(file, {"n": 2})
    assert files.read_rows(file) == [{"text": "zwölf"}, {"n": 2}]
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.append_row(file, {"n": float("nan")})


def test_a_last_line_of_another_program_needs_no_line_break(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n{"n": 2}')
    assert files.read_rows(tmp_path / "a.jsonl") == [{"n": 1}, {"n": 2}]
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n[2]\n')
    with pytest.raises(DataError, match=r"Line 2 of .*a\.jsonl is not a JSON object"):
        files.read_rows(tmp_path / "a.jsonl")
