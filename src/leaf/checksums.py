"""Sizes and checksums of files, written down beside them and compared before the files are used."""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from leaf.files import file_sha256
from leaf.text import fold_whitespace

CHECKSUMS = "checksums.json"


def listed(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """List size and SHA-256 of files of a folder, by name."""
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": file_sha256(folder / name)} for name in names}


def compare(files: Mapping[str, Any], folder: Path, names: Iterable[str]) -> None:
    """Compare files of a folder with the list that `listed` made of them.

    Raises:
        ValueError: one differs. KeyError, TypeError: it is no such list. OSError: a file is missing or unreadable.
    """
    for name in names:
        wanted, size = files[name], (folder / name).stat().st_size
        if size != wanted["bytes"]:
            raise ValueError(f"{name} has {size} bytes instead of {wanted['bytes']}")
        if file_sha256(folder / name) != wanted["sha256"]:
            raise ValueError(f"the checksum of {name} is wrong")


def write_checksums(folder: Path) -> None:
    """Write the checksums of an adapter's weights and settings beside them."""
    weights = sorted(file.name for file in folder.glob("*.safetensors"))
    files = listed(folder, [*weights, "adapter_config.json"])
    (folder / CHECKSUMS).write_text(json.dumps({"files": files}, indent=1) + "\n", encoding="utf-8")


def damage(folder: Path, names: Collection[str] = ()) -> str | None:
    """Say what is wrong with an adapter that `write_checksums` described; None if nothing is, or without checksums.

    Args:
        folder: holds the adapter.
        names: look at those files alone, as far as they are listed.
    """
    if not os.path.lexists(folder / CHECKSUMS):
        return None
    try:
        files = json.loads((folder / CHECKSUMS).read_bytes())["files"]
        if not isinstance(files, Mapping) or not files:
            raise TypeError(files)
        compare(files, folder, [name for name in files if not names or name in names])
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        return reason(error, CHECKSUMS)
    return None


def reason(error: Exception, list_name: str) -> str:
    """Say in words why a comparison failed, or the files behind it could not be read."""
    if isinstance(error, FileNotFoundError):
        return f"{Path(error.filename).name} is missing"
    if isinstance(error, KeyError | TypeError | AttributeError):
        return f"{list_name} holds no list of files"
    if isinstance(error, RecursionError):
        return "a file of JSON is nested too deeply"
    return fold_whitespace(str(error))
