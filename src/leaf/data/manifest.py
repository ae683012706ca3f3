"""A user's own data: a JSONL, CSV or TSV manifest of audio files with prompts and references."""

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaf.data.audio import file_problem
from leaf.errors import DataError, shown
from leaf.text import fold_whitespace

REQUIRED = ("prompt", "audio", "reference")
SPLITS = ("train", "validation", "test")
NAMED_SPLITS = (*SPLITS, "test_heldout")  # what a `split` column may say


def read_manifest(path: Path, split: str, columns: dict[str, str]) -> list[dict[str, Any]]:
    """Return the rows of one split, audio paths made absolute (relative ones count from the manifest).

    A column `split` names each row's split. Without one, rows go by a stable hash of their audio file's path relative
    to the manifest, 90 % train, 5 % validation, 5 % test. Rows that share a file, joined or alone, go together, so
    that no recording stands on both sides.

    Args:
        path: a .jsonl, .csv or .tsv file in UTF-8, with a header line if csv or tsv. `audio` is a path, or in JSONL
            also a list of paths to be joined.
        split: the split wanted.
        columns: ours → theirs, e.g. {"reference": "answer"}.

    Raises:
        DataError: unreadable manifest, missing columns, empty reference or prompt, a row given twice, or a missing
            audio file; every row and file is looked at before anything starts.
    """
    rows, splits = _rows(path, columns)
    chosen = [row for row, its in zip(rows, splits, strict=True) if its == split]
    if not chosen:
        there = ", ".join(f"{count} in {name}" for name, count in Counter(splits).items())
        raise DataError(
            f"The manifest {path.name} has no rows in split {split!r}; it has {there or 'no rows at all'}. "
            "Give rows that split in a column `split`, or name another one (train_split, eval_split); without "
            "validation (eval_every=0) training asks for no validation rows."
        )
    names = dict.fromkeys(name for row in rows for name in row)  # a column may be missing in the first rows
    return [{name: row.get(name) for name in names} for row in chosen]


def manifest_splits(path: Path, columns: dict[str, str]) -> tuple[str, ...]:
    """Return the splits that a manifest has rows in; what it takes and refuses is as for `read_manifest`."""
    _, splits = _rows(path, columns)
    return tuple(name for name in NAMED_SPLITS if name in splits)


def _rows(path: Path, columns: dict[str, str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return all rows of a manifest, and the split of each."""
    records = _records(path)
    unknown = set(columns) - set(REQUIRED) - {"split"}
    if unknown:
        raise DataError(f"columns maps {sorted(unknown)}; only {', '.join(REQUIRED)} and split can be mapped.")
    rows = []
    folders: dict[str, str] = {}
    seen: dict[tuple[str, ...], int] = {}
    for number, record in enumerate(records, start=1):
        row = {**record, **{ours: record.get(theirs) for ours, theirs in columns.items()}}
        _check_texts(row, record, number, path)
        row["audio"] = _files(row["audio"], number, path, folders)
        row |= {"id": _text(row.get("id"), number), "utterance": _text(row.get("utterance"), row["audio"][0])}
        first = seen.setdefault((row["prompt"], row["reference"], *row["audio"]), number)
        if first != number:
            raise DataError(f"Row {number} of {path.name} repeats row {first}: same prompt, audio and reference.")
        rows.append(row)
    named = "split" in columns or any("split" in row for row in rows)
    if named:
        return rows, [_named_split(row, number, path) for number, row in enumerate(rows, start=1)]
    return rows, _hashed(rows, path)


def sources_of(row: Mapping[str, Any]) -> list[str]:
    """Return what a row's recordings are known by: where a prepared corpus took them from, else the audio files."""
    sources = row.get("audio_sources") or row["audio"]
    return [sources] if isinstance(sources, str) else list(sources)


def _check_texts(row: dict[str, Any], record: dict[str, Any], number: int, path: Path) -> None:
    missing = [name for name in REQUIRED if row.get(name) in (None, "", [])]
    missing += [name for name in ("prompt", "reference") if isinstance(row.get(name), str) and row[name].isspace()]
    if missing:
        raise DataError(
            f"Row {number} of {path.name} has no {' and no '.join(missing)}; it has the columns "
            f"{_listed(record)}. Fill it, or map names with columns."
        )
    for name in ("prompt", "reference"):
        if not isinstance(row[name], str):
            raise DataError(f"Row {number} of {path.name} has {name} {shown(row[name])}; it must be text.")
        if not _is_unicode(row[name]):
            raise DataError(
                f"Row {number} of {path.name} has {name} {shown(row[name])}, which holds half a character (a lone "
                "surrogate); write the file again in UTF-8."
            )


def _text(value: Any, otherwise: Any) -> str:
    """Return a value as text; an empty cell or a missing one gives way. 0 is a value."""
    return str(otherwise if value in (None, "") else value)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _files(audio: Any, number: int, path: Path, folders: dict[str, str]) -> list[str]:
    """Return the absolute paths of a row's audio, links followed, after looking for each.

    `folders` remembers where folders really are: with one look per file, 80,000 rows take seconds.
    """
    names = audio if isinstance(audio, list) else [audio]
    if not all(isinstance(name, str) and name for name in names):
        raise DataError(f"Row {number} of {path.name} has audio {shown(audio)}; it must be a path or a list of paths.")
    files = []
    for name in names:
        file = os.path.join(path.parent, name)
        problem = file_problem(file)
        if problem is not None:
            raise DataError(f"Row {number} of {path.name} names the audio file {_line(file)}, which {problem}.")
        folder, last = os.path.split(file)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        file = os.path.join(folders[folder], last)
        files.append(os.path.realpath(file) if os.path.islink(file) else file)
    return files


def _line(path: str) -> str:
    return path[:500].replace("\n", "\\n").replace("\r", "\\r")


def _listed(names: Any) -> str:
    return ", ".join([fold_whitespace(str(name)[:40]) for name in names][:20])


def _named_split(row: dict[str, Any], number: int, path: Path) -> str:
    if row.get("split") not in NAMED_SPLITS:
        raise DataError(
            f"Row {number} of {path.name} has split {shown(row.get('split'))}; allowed are {', '.join(NAMED_SPLITS)}."
        )
    return row["split"]


def _hashed(rows: list[dict[str, Any]], path: Path) -> list[str]:
    """Return a split per row from the hash of the first, by name, of all files its recordings are tied to."""
    tied: dict[str, str] = {}  # file → another file it shares a row with, down to the first by name

    def first(file: str) -> str:
        while tied.setdefault(file, file) != file:
            tied[file] = tied[tied[file]]
            file = tied[file]
        return file

    for row in rows:
        for file in row["audio"][1:]:
            a, b = sorted((first(row["audio"][0]), first(file)))
            tied[b] = a
    splits = []
    for row in rows:
        name = Path(os.path.relpath(first(row["audio"][0]), path.parent.resolve())).as_posix()
        fraction = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        splits.append("train" if fraction < 0.9 else "validation" if fraction < 0.95 else "test")
    return splits


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets put a byte-order mark first
    except UnicodeDecodeError as error:
        raise DataError(
            f"The manifest {path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}). Save it so."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise DataError(f"The manifest {path} cannot be read: {error}.") from error
    return _json_lines(text, path.name) if path.suffix.lower() == ".jsonl" else _table(text, path)


def _table(text: str, path: Path) -> list[dict[str, Any]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        records = list(reader)
        names = list(reader.fieldnames or [])
    except csv.Error as error:
        raise DataError(f"Line {reader.reader.line_num} of {path.name} cannot be read: {error}.") from error
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise DataError(f"The header of {path.name} has {shown(twice[0])} more than once; rename one.")
    for number, record in enumerate(records, start=1):
        if None in record or None in record.values():
            raise DataError(
                f"Row {number} of {path.name} has more or fewer cells than the header's {len(names)}; "
                "put quotes around cells with a delimiter in them."
            )
    return records


def _json_lines(text: str, name: str) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 may stand inside a string
        if line.strip():
            try:
                record = json.loads(line, object_pairs_hook=_object)
            except json.JSONDecodeError as error:
                raise DataError(f"Line {number} of {name} is not JSON: {error}.") from error
            except RecursionError as error:
                raise DataError(f"Line {number} of {name} is nested too deeply; a row is a flat object.") from error
            except ValueError as error:  # a whole number of thousands of digits
                raise DataError(f"Line {number} of {name} cannot be read: {error}.") from error
            if isinstance(record, _Repeated):
                raise DataError(f"Line {number} of {name} has the key {shown(record.key)} twice; leave one.")
            if not isinstance(record, dict):
                raise DataError(f"Line {number} of {name} holds a {type(record).__name__}; it must be an object.")
            records.append(record)
    return records


@dataclass(frozen=True)
class _Repeated:
    """Stands for a JSON object that has a key twice; json would keep the last value."""

    key: str


def _object(pairs: list[tuple[str, Any]]) -> "dict[str, Any] | _Repeated":
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    return _Repeated(next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1))
