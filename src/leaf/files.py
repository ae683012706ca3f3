"""Write files and directories whole or not at all, append and read JSON lines, and compute checksums.

Whole or not at all: the content is filled in under another name, brought to the disk, and renamed into place. A reader
sees the old content or the new, and so does whoever looks after the process was killed or the machine lost power. Every
file that has to outlive its process is written here.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from leaf.errors import DataError, RunError

# Suffixes of what is beside a name while its content is replaced or removed, or after a kill. Nobody else ends a name
# like that: a user's `best.old` or `notes.partial` stays.
UNFINISHED, OLD, _REMOVED = ".leaf-unfinished", ".leaf-old", ".leaf-removed"


def file_sha256(file: Path) -> str:
    """Compute the SHA-256 of a file's content, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def file_mark(file: Path) -> str:
    """Name a file together with the start of its SHA-256, as `rewards.py#bdc7d5b9`."""
    return f"{file.name}#{file_sha256(file)[:8]}"


# -- whole or not at all -----------------------------------------------------------------------------------------------
def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; its folder is made where it is missing."""
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as an indented JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file, whole or not at all."""
    write_text(path, "".join(map(_line, rows)))


def replace_file(path: Path, fill: Callable[[Path], object]) -> None:
    """Fill a fresh file with `fill(path)` and put it in the place of `path`, or of what a symbolic link names.

    A pipe or a terminal, such as /dev/stdout, gets the content instead: it is no place for a file.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        _write_into(path, fill)
        return
    path = _real(path)
    partial = _beside(path, UNFINISHED)
    with writing(path, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(partial)
        _let_others_read(partial)
        sync(partial)
        os.replace(partial, path)
        sync(path.parent)  # the rename itself is content of the folder


def _write_into(node: Path, fill: Callable[[Path], object]) -> None:
    """Write into a pipe or a device what `fill` writes into a file."""
    if node.is_block_device():
        raise RunError(f"{node} is a disk, and leaf writes files only. Name a file.")
    with writing(node), tempfile.TemporaryDirectory() as folder:
        filled = Path(folder) / node.name
        fill(filled)
        with filled.open("rb") as content, node.open("wb", buffering=0) as opened:
            shutil.copyfileobj(content, opened)


def replace_directory(path: Path, fill: Callable[[Path], object]) -> None:
    """Fill a fresh directory with `fill(path)` and put it in the place of `path`, or of what a symbolic link names.

    No system call swaps two directories, so for an instant there is none under the name. After a kill at that instant
    `recover` brings the old one back. One process at a time may write to a path.
    """
    path = _real(path)
    fresh, old = _beside(path, UNFINISHED), _beside(path, OLD)
    with writing(path, fresh):
        _remove(fresh)
        _fill_directory(fresh, fill)
        if path.exists():
            if not path.is_dir():  # a file or a device of the user's
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
            _remove(old)
            path.rename(old)
        fresh.rename(path)
        sync(path.parent)
        _remove(old)


def new_directory(path: Path, fill: Callable[[Path], object]) -> None:
    """Fill a fresh directory with `fill(path)` and give it a name that is not taken.

    Several processes may try: the first one to finish has the name. What a killed one left is removed by the next.

    Raises:
        RunError: the directory cannot be written, or another process was faster.
    """
    _remove_abandoned(path)
    fresh = _beside(path, f".{secrets.token_hex(4)}{UNFINISHED}")
    with writing(path, fresh):
        fresh.mkdir(parents=True)
        with _held(fresh):
            _fill_directory(fresh, fill)
            fresh.rename(path)  # fails where a directory with content has the name
        sync(path.parent)


def _remove_abandoned(path: Path) -> None:
    """Remove what processes left that were killed in `new_directory`; those alive hold a lock."""
    if not path.parent.is_dir():
        return
    ours = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{8}}{re.escape(UNFINISHED)}")
    for left in path.parent.iterdir():
        if ours.fullmatch(left.name) and left.is_dir() and not left.is_symlink():
            with suppress(OSError), _held(left):  # held by another process, or gone: then it is not ours to remove
                shutil.rmtree(left)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, which ends with this process; an OSError says that another has it."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            # A file system without locks: nobody can tell that its owner is alive, so nothing may be removed either.
            if any(folder.iterdir()):
                raise
        yield
    finally:
        os.close(lock)


def remove_directory(path: Path) -> None:
    """Remove a directory; after a kill half-way it is gone from under its name all the same."""
    doomed = _beside(path, _REMOVED)
    with writing(path):
        _remove(doomed)
        path.rename(doomed)
        _remove(doomed)


def recover(path: Path) -> None:
    """Put right what a kill left at a path: bring the old content back, and clear what is unfinished or removed."""
    path = _real(path)
    old = _beside(path, OLD)
    with writing(path):
        if old.exists() and not path.exists():  # killed between the two renames of `replace_directory`
            old.rename(path)
        for suffix in (OLD, UNFINISHED, _REMOVED):
            _remove(_beside(path, suffix))


@contextmanager
def writing(path: Path, unfinished: Path | None = None) -> Iterator[None]:
    """Turn a failure to write `path` into a RunError that says what helps, and remove what is `unfinished`.

    safetensors reports failures of the file system as errors of its own, with their number in the text.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if unfinished is not None:
            with suppress(OSError):  # gives its space back; where that fails too, the first error is the one to tell
                _remove(unfinished)
        named = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(named[1]) if named else None
        reason = os.strerror(number) if number is not None else str(error)
        if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            help_ = "Free some space, or raise the quota or limit"
        elif number in (errno.EROFS, errno.EACCES, errno.EPERM):
            help_ = "Make it writable, or choose another place to write to"
        else:
            help_ = "Find out what is wrong with the file system, or choose another place to write to"
        raise RunError(
            f"{path} cannot be written: {reason}. What was saved before is intact. {help_}, then repeat the command; "
            "a run that had begun continues with `--resume`."
        ) from error


def sync(path: Path) -> None:
    """Bring a file, or the names in a directory, to the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _fill_directory(fresh: Path, fill: Callable[[Path], object]) -> None:
    """Make a directory, fill it, and bring all of it to the disk before it gets its name."""
    fresh.mkdir(parents=True, exist_ok=True)
    fill(fresh)
    for file in fresh.rglob("*"):
        _let_others_read(file)
        sync(file)
    sync(fresh)


def _let_others_read(file: Path) -> None:
    """Give a file that only its owner reads the mode of a new file: the user's umask decides.

    safetensors writes such files, and a server under another user has to read adapters.
    """
    if file.is_symlink() or not file.is_file() or stat.S_IMODE(file.stat().st_mode) & 0o077:
        return
    new = file.with_name(f"{file.name}.mode")
    try:
        new.touch()
        file.chmod(stat.S_IMODE(new.stat().st_mode))
    finally:
        new.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# -- JSON lines --------------------------------------------------------------------------------------------------------
def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one line to a JSON-lines file; NaN is refused, because no other program reads it.

    A kill may tear the line. `finished_lines` and `drop_torn_line` know such a line by its missing line break.
    """
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(_line(row))


def finished_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file without a last one that is torn or still being written; none if there is no file.

    Raises:
        RunError: it cannot be read, or is a folder.
    """
    if not path.exists():
        return
    try:
        with path.open("rb") as opened:
            yield from (line for line in opened if line.endswith(b"\n"))
    except OSError as error:
        raise RunError(
            f"{path} cannot be read: {os.strerror(error.errno or 0)}. Restore it from a copy, or move it away."
        ) from error


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that an interruption tore, so that what is appended begins a line of its own."""
    if path.exists():
        with writing(path):
            os.truncate(path, path.read_bytes().rfind(b"\n") + 1)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object from a file; None where there is no file, or one that cannot be read as an object."""
    try:
        return parsed_row(path.read_bytes())
    except OSError:
        return None


def parsed_row(line: bytes | str) -> dict[str, Any] | None:
    """Parse a line that should be a JSON object; None if it is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # the latter of what is nested too deeply
        return None
    return row if isinstance(row, dict) else None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a JSON-lines file; its last line needs no line break, as other programs may leave it out.

    A byte order mark, as editors of Windows write it, is no part of the first line.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object.
    """
    rows = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                row = parsed_row(line)
                if row is None:
                    raise DataError(f"Line {number} of {path} is not a JSON object.")
                rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
