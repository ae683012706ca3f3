"""A user's own data: a JSONL, CSV or TSV manifest of audio files with prompts and references."""

import csv
import hashlib
import json
from pathlib import Path
from typing import Any

from leaf.errors import DataError

REQUIRED = ("prompt", "audio", "reference")
SPLITS = ("train", "validation", "test")


def read_manifest(path: Path, split: str, columns: dict[str, str]) -> list[dict[str, Any]]:
    """Return the rows of one split, audio paths made absolute (relative ones count from the manifest).

    A column `split` names each row's split. Without one, rows go by a stable hash of their audio file, 90 % train, 5 %
    validation, 5 % test, so that no recording stands on both sides.

    Raises:
        DataError: unreadable manifest, missing columns, empty reference or prompt, or a missing audio file; every file
            is looked for before anything starts.
    """
    records = _records(path)
    unknown = set(columns) - set(REQUIRED) - {"split"}
    if unknown:
        raise DataError(f"columns maps {sorted(unknown)}; only {', '.join(REQUIRED)} and split can be mapped.")
    rows = []
    for number, record in enumerate(records, start=1):
        row = {**record, **{ours: record.get(theirs) for ours, theirs in columns.items()}}
        missing = [name for name in REQUIRED if row.get(name) in (None, "")]
        if missing:
            raise DataError(
                f"Row {number} of {path.name} has no {' and no '.join(missing)}; it has the columns "
                f"{', '.join(map(str, record))}. Fill it, or map names with columns."
            )
        audio = row["audio"] if isinstance(row["audio"], list) else [row["audio"]]
        files = [(path.parent / str(name)).resolve() for name in audio]
        for file in files:
            if not file.is_file():
                raise DataError(f"Row {number} of {path.name} names the audio file {file}, which does not exist.")
        row |= {"audio": [str(file) for file in files], "id": str(row.get("id") or number)}
        row["utterance"] = str(row.get("utterance") or files[0])
        if _split_of(row, files[0].name, number, path) == split:
            rows.append(row)
    if not rows:
        raise DataError(f"The manifest {path.name} has no rows in split {split!r} of {len(records)} rows in all.")
    return rows


def _split_of(row: dict[str, Any], name: str, number: int, path: Path) -> str:
    if "split" in row:
        if row["split"] not in (*SPLITS, "test_heldout"):
            raise DataError(f"Row {number} of {path.name} has split {row['split']!r}; allowed are {', '.join(SPLITS)}.")
        return row["split"]
    fraction = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "train" if fraction < 0.9 else "validation" if fraction < 0.95 else "test"


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The manifest {path} cannot be read: {error}.") from error
    if path.suffix != ".jsonl":
        delimiter = "\t" if path.suffix == ".tsv" else ","
        return list(csv.DictReader(text.splitlines(), delimiter=delimiter, strict=True))
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"Line {number} of {path.name} is not JSON: {error}.") from error
            if not isinstance(record, dict):
                raise DataError(f"Line {number} of {path.name} holds a {type(record).__name__}; it must be an object.")
            records.append(record)
    return records
