"""Audio cells of somebody else's tables: bytes, or plain paths inside the data set. Nothing else is opened.

A cell may hold any text. As the address of another file system it could read the files of whoever prepares the data
set, ask another server, or, with an old fsspec, run a command.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from leaf.data.corpora.items import Clip
from leaf.data.naming import as_on_disk
from leaf.data.stretches import stretch_of
from leaf.errors import DataError, shown


def clip_of(cell: object, source: Path, row: Mapping[str, Any], where: str) -> Clip | None:
    """Read an audio cell as a clip; None where it is empty, or a data set of the hub has no such file.

    Args:
        cell: {"bytes", "path"}, or a path.
        source: the folder that paths count from, or the id of a data set on the hub.
        row: with the stretch that is heard, as `offset` and `duration`.
        where: names the row in messages.

    Raises:
        AudioError: offset or duration is no number of seconds.
        DataError: the cell is anything else, or its file cannot be fetched.
    """
    offset, duration = stretch_of(row)
    stretch = (offset, None if duration is None else offset + duration)
    if isinstance(cell, Mapping) and cell.get("bytes"):
        return Clip(None, *stretch, data=cell["bytes"])
    path = path_of(cell)
    if path is None:
        return None
    remote = not source.is_dir()
    address = _address(path, source.as_posix()) if remote else None
    if address is None and not _is_inside(path):
        raise DataError(
            f"{where} names the audio {shown(path)}; allowed are bytes in the table and plain paths inside the data "
            "set, such as clips/1.wav. Copy the recordings there, or write a manifest of your own."
        )
    if not remote:
        return Clip(Path(as_on_disk(str(source / path))), *stretch)
    return _fetched(address or f"hf://datasets/{source.as_posix()}/{path}", stretch)


def recording_of(cell: object, clip: Clip) -> str:
    """Name what has to stay in one split: a file by its path, bytes by their hash. Many tables call all bytes alike."""
    path = path_of(cell)
    inside = isinstance(cell, Mapping) and cell.get("bytes")
    return Clip(data=clip.data).source if inside or path is None else path


def path_of(cell: object) -> str | None:
    """Read the path in an audio cell, None where there is none."""
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    return path if isinstance(path, str) and path else None


def _is_inside(path: str) -> bool:
    """Tell whether a path is relative and stays below where it counts from, on any system."""
    parts = re.split(r"[/\\]", path)
    return "::" not in path and "://" not in path and parts[0] != "" and ":" not in parts[0] and ".." not in parts


def _address(path: str, name: str) -> str | None:
    """Return a path that is the address of a file of the data set on the hub, as `datasets` writes it; else None."""
    own = re.fullmatch(rf"hf://datasets/{re.escape(name)}(?:@[^/:]+)?/(?P<path>.+)", path)
    return path if own is not None and _is_inside(own["path"]) else None


def _fetched(address: str, stretch: tuple[float, float | None]) -> Clip | None:
    try:
        with fsspec.open(address, "rb") as file:
            return Clip(None, *stretch, data=cast(BinaryIO, file).read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{address} cannot be fetched: {error}. Repeat the command to continue from here.") from error
