"""A user's own data: a JSONL, CSV or TSV manifest of audio files with prompts and references.

Every row and every file is checked before anything starts, so that a run does not fail hours later.
"""

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leaf.data.audio import file_problem
from leaf.data.hashing import stable_fraction
from leaf.errors import DataError, did_you_mean, shown

REQUIRED = ("prompt", "audio", "reference")
SPLITS = ("train", "validation", "test")
NAMED_SPLITS = (*SPLITS, "test_heldout")  # what a `split` column may say


def read_manifest(path: Path, split: str, columns: dict[str, str]) -> list[dict[str, Any]]:
    """Read the rows of one split and make their audio paths absolute; relative ones count from the manifest.

    A column `split` names each row's split. Without one, rows go by a stable hash of their audio file's path relative
    to the manifest: 90 % train, 5 % validation, 5 % test. Rows that share a file, joined or alone, go together, so that
    no recording is on both sides.

    Args:
        path: a .jsonl, .csv or .tsv file in UTF-8; csv and tsv have a header line. `audio` is a path, in JSONL also a
            list of paths to be joined.
        split: the split wanted.
        columns: ours → theirs, e.g. {"reference": "answer"}.

    Raises:
        DataError: unreadable manifest, missing columns, empty reference or prompt, a row given twice, or a missing
            audio file.
    """
    rows, splits = _rows_and_splits(path, columns)
    chosen = [row for row, its in zip(rows, splits, strict=True) if its == split]
    if not chosen:
        there = ", ".join(f"{count} in {name}" for name, count in Counter(splits).items())
        raise DataError(
            f"The manifest {path.name} has no rows in split {split!r}; it has {there or 'no rows at all'}."
            f"{did_you_mean(split, set(splits))} Give rows that split in a column `split`, or name another one "
            "(train_split, eval_split). Training needs no validation rows with eval_every=0."
        )
    names = dict.fromkeys(name for row in rows for name in row)  # a column may be missing in the first rows
    return [{name: row.get(name) for name in names} for row in chosen]


def manifest_splits(path: Path, columns: dict[str, str]) -> tuple[str, ...]:
    """List the splits that a manifest has rows in; arguments and errors are those of `read_manifest`."""
    _, splits = _rows_and_splits(path, columns)
    return tuple(name for name in NAMED_SPLITS if name in splits)


def sources_of(row: Mapping[str, Any]) -> list[str]:
    """List what a row's recordings are known by: where a prepared corpus took them from, else the audio files."""
    sources = row.get("audio_sources") or row["audio"]
    return [sources] if isinstance(sources, str) else list(sources)


def _rows_and_splits(path: Path, columns: dict[str, str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Read and check all rows of a manifest, and decide the split of each."""
    mappable = (*REQUIRED, "split")
    if unknown := sorted(set(columns) - set(mappable)):
        raise DataError(
            f"columns maps {', '.join(unknown)}.{did_you_mean(unknown[0], mappable)} "
            f"Only {', '.join(mappable)} can be mapped."
        )
    rows = []
    folders: dict[str, str] = {}
    seen: dict[tuple[str, ...], int] = {}
    for number, record in enumerate(_records(path), start=1):
        row = {**record, **{ours: record.get(theirs) for ours, theirs in columns.items()}}
        _check_texts(row, record, number, path)
        row["audio"] = _audio_files(row["audio"], number, path, folders)
        row |= {"id": _text_or(number, row.get("id")), "utterance": _text_or(row["audio"][0], row.get("utterance"))}
        first = seen.setdefault((row["prompt"], row["reference"], *row["audio"]), number)
        if first != number:
            raise DataError(f"Row {number} of {path.name} repeats row {first}: same prompt, audio and reference.")
        rows.append(row)
    if "split" in columns or any("split" in row for row in rows):
        return rows, [_named_split(row, number, path) for number, row in enumerate(rows, start=1)]
    return rows, _hashed_splits(rows, path)


# -- checks of one row -------------------------------------------------------------------------------------------------
def _check_texts(row: dict[str, Any], record: dict[str, Any], number: int, path: Path) -> None:
    missing = [name for name in REQUIRED if row.get(name) in (None, "", [])]
    missing += [name for name in ("prompt", "reference") if isinstance(row.get(name), str) and row[name].isspace()]
    if missing:
        columns = ", ".join([repr(str(name)[:40]) for name in record][:20])
        hint = "" if missing[0] in record else did_you_mean(missing[0], set(record) - set(REQUIRED))
        raise DataError(
            f"Row {number} of {path.name} has no {' and no '.join(missing)}; it has the columns {columns}.{hint} "
            "Fill it, or map names with columns."
        )
    for name in ("prompt", "reference"):
        if not isinstance(row[name], str):
            raise DataError(f"Row {number} of {path.name} has {name} {shown(row[name])}; it must be text.")


def _text_or(otherwise: Any, value: Any) -> str:
    """Write a value as text, or another one where the cell is empty or missing. 0 is a value."""
    return str(otherwise if value in (None, "") else value)


def _audio_files(audio: Any, number: int, path: Path, folders: dict[str, str]) -> list[str]:
    """Find the files of a row's audio, and make their paths absolute with links followed.

    `folders` remembers where folders really are. So a file takes one look at the disk, and 80,000 rows take seconds.
    """
    names = audio if isinstance(audio, list) else [audio]
    if not all(isinstance(name, str) and name for name in names):
        raise DataError(f"Row {number} of {path.name} has audio {shown(audio)}; it must be a path or a list of paths.")
    files = []
    for name in names:
        file = os.path.join(path.parent, name)
        problem = file_problem(file)
        if problem is not None:
            raise DataError(f"Row {number} of {path.name} names the audio file {shown(file)}, which {problem}.")
        folder, last = os.path.split(file)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        file = os.path.join(folders[folder], last)
        files.append(os.path.realpath(file) if os.path.islink(file) else file)
    return files


# -- splits ------------------------------------------------------------------------------------------------------------
def _named_split(row: dict[str, Any], number: int, path: Path) -> str:
    split = row.get("split")
    if split not in NAMED_SPLITS:
        raise DataError(
            f"Row {number} of {path.name} has split {shown(split)}.{did_you_mean(split, NAMED_SPLITS)} "
            f"Allowed are {', '.join(NAMED_SPLITS)}."
        )
    return split


def _hashed_splits(rows: list[dict[str, Any]], path: Path) -> list[str]:
    """Decide the split of each row by the hash of the first, by name, of all files that its recordings are tied to.

    Files of one row are tied, and so are those tied to a common file: whoever hears one of them in training may hear
    none of them elsewhere. This is union-find. Each file points to a smaller name it is tied to, or to itself, and the
    end of the chain stands for all of them.
    """
    tied: dict[str, str] = {}

    def first(file: str) -> str:
        while tied.setdefault(file, file) != file:
            tied[file] = tied[tied[file]]  # halves the chain on the way, so that long ones stay cheap
            file = tied[file]
        return file

    for row in rows:
        for file in row["audio"][1:]:
            a, b = sorted((first(row["audio"][0]), first(file)))
            tied[b] = a
    splits = []
    for row in rows:
        # Relative to the manifest: the same split wherever the folder is copied to.
        name = Path(os.path.relpath(first(row["audio"][0]), path.parent.resolve())).as_posix()
        fraction = stable_fraction(name)
        splits.append("train" if fraction < 0.9 else "validation" if fraction < 0.95 else "test")
    return splits


# -- files -------------------------------------------------------------------------------------------------------------
def _records(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a manifest as they are."""
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
                f"Row {number} of {path.name} has more or fewer cells than the header's {len(names)}. "
                "Put quotes around cells with a delimiter in them."
            )
    return records


def _json_lines(text: str, name: str) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: a string may contain U+2028
        if line.strip():
            try:
                record = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:  # RecursionError: lists in lists, a thousand deep
                raise DataError(f"Line {number} of {name} cannot be read as JSON: {error}.") from error
            if not isinstance(record, dict):
                raise DataError(f"Line {number} of {name} is a {type(record).__name__}; it must be an object.")
            records.append(record)
    return records


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the dictionary of a JSON object; json itself would keep the last of several values without a word."""
    counts = Counter(key for key, _ in pairs)
    if len(counts) < len(pairs):
        raise ValueError(f"it has the key {shown(counts.most_common(1)[0][0])} twice; leave one")
    return dict(pairs)
