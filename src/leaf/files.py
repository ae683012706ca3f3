"""Write files whole or not at all, read JSON lines, and compute checksums."""

import errno
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from leaf.errors import DataError, RunError


def file_sha256(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hex."""
    import hashlib

    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file under another name and rename it, so that a reader sees the old or the new content."""
    partial = path.with_name(path.name + ".partial")
    with writing(path, partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file.

    Raises:
        DataError: the file cannot be read, or a line is not a JSON object.
    """
    rows = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise DataError(f"Line {number} of {path} is not a JSON object.")
                rows.append(row)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    return rows


@contextmanager
def writing(path: Path, unfinished: Path | None = None) -> Iterator[None]:
    """Turn a failure to write into a RunError that says what helps, and clear what was left unfinished.

    safetensors reports failures of the file system as errors of its own, with their number in the text.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if unfinished is not None:
            with suppress(OSError):  # gives its space back; `recover` does so where this cannot
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
            f"{path} cannot be written: {reason}. What was saved before is intact. {help_}, then give the same "
            "command again, for a run that had begun with `--resume`."
        ) from error


def _sync(path: Path) -> None:
    """Bring a file or directory to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # directories cannot be opened there
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
