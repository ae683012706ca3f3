"""A user's own data: a JSONL, CSV or TSV manifest of audio files with prompts and references.

Every row and every file is checked before anything starts, so that a run does not fail hours later.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leaf.data.audio import file_problem
from leaf.data.cells import cell, folded, text_cell, with_language, with_references
from leaf.data.hashing import stable_fraction
from leaf.data.naming import as_on_disk
from leaf.data.recordings import names_of
from leaf.data.stretches import STRETCH, heard, stretch_of
from leaf.data.tables import read_table
from leaf.errors import AudioError, DataError, MissingFiles, did_you_mean, shown

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
            list of paths to be joined. `offset` and `duration`, in seconds, name the stretch of it that is heard.
        split: the split wanted.
        columns: ours → theirs, e.g. {"reference": "answer"}.

    Raises:
        MissingFiles: audio files are not there; all such rows are counted.
        DataError: unreadable manifest, missing columns, empty reference or prompt, or a row given twice.
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


def _rows_and_splits(path: Path, columns: dict[str, str]) -> tuple[list[dict[str, Any]], list[str]]:
    """Read and check all rows of a manifest, and decide the split of each."""
    mappable = (*REQUIRED, "split", *STRETCH)
    if unknown := sorted(set(columns) - set(mappable)):
        raise DataError(
            f"columns maps {', '.join(unknown)}.{did_you_mean(unknown[0], mappable)} "
            f"Only {', '.join(mappable)} can be mapped."
        )
    records = read_table(path, "manifest")
    # Where no row has a reference, nothing is wrong with any: some rewards read none, and those that do will say so.
    needed = REQUIRED if "reference" in columns or any(_has_reference(row) for row in records) else REQUIRED[:-1]
    rows = []
    folders: dict[str, str] = {}
    seen: dict[tuple[str, ...], int] = {}
    missing: dict[int, str] = {}  # row → why its audio is not there
    for number, record in enumerate(records, start=1):
        row = {**record, **{ours: _mapped(record, theirs) for ours, theirs in columns.items()}}
        row = _with_texts(row, needed, record, f"Row {number} of {path.name}")
        try:
            row["audio"] = _audio_files(row["audio"], number, path, folders)
        except MissingFiles as error:
            missing[number] = str(error)
            continue
        sounds = _stretch(row, number, path)
        row |= {"id": _text_or(number, row.get("id")), "utterance": _text_or(row["audio"][0], row.get("utterance"))}
        first = seen.setdefault((row["prompt"], row.get("reference", ""), *sounds), number)
        if first != number:
            raise DataError(f"Row {number} of {path.name} repeats row {first}: same prompt, audio and reference.")
        rows.append(row)
    if missing:
        first, *others = missing
        more = f" So it is with {len(others)} more: {', '.join(map(str, others[:10]))}" if others else ""
        more += ", ..." if len(others) > 10 else "." if others else ""
        raise MissingFiles(missing[first] + more)
    if "split" in columns or any("split" in row for row in rows):
        return rows, [_named_split(row, number, path) for number, row in enumerate(rows, start=1)]
    return rows, _hashed_splits(rows, path)


def _has_reference(record: dict[str, Any]) -> bool:
    return "reference" in record or "references" in record


def _mapped(record: dict[str, Any], theirs: str) -> Any:
    try:
        return cell(record, theirs)
    except KeyError:
        return None


# -- checks of one row -------------------------------------------------------------------------------------------------
def _with_texts(row: dict[str, Any], needed: Sequence[str], record: dict[str, Any], where: str) -> dict[str, Any]:
    """Read a row's texts as texts, and refuse a row that lacks one of the columns needed."""
    row = {**row, "prompt": text_cell(row.get("prompt"), "prompt", where)}
    if "text" in row:
        row["text"] = text_cell(row["text"], "text", where)
    row = with_language(row, where)
    if _has_reference(row):
        row = with_references(row, where)
    missing = [name for name in needed if row.get(name) in (None, "", [])]
    missing += ["prompt"] if (row["prompt"] or "").isspace() else []
    if missing:
        columns = ", ".join([repr(str(name)[:40]) for name in record][:20])
        hint = "" if missing[0] in record else did_you_mean(missing[0], set(record) - set(REQUIRED))
        raise DataError(
            f"{where} has no {' and no '.join(missing)}; it has the columns {columns}.{hint} "
            "Fill it, or map names with columns."
        )
    return row


def _stretch(row: dict[str, Any], number: int, path: Path) -> list[str]:
    """Make a row's offset and duration numbers of seconds, and name what is heard of its files."""
    given = [name for name in STRETCH if name in row]
    try:
        offset, duration = stretch_of(row)
        names = names_of(heard(row["audio"], row)) if offset or duration is not None else row["audio"]
    except AudioError as error:
        raise DataError(f"Row {number} of {path.name}: {error}") from error
    row.update({name: value for name, value in zip(STRETCH, (offset, duration), strict=True) if name in given})
    return names


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
            file = as_on_disk(file)
            problem = file_problem(file)
        if problem is not None:
            raise MissingFiles(f"Row {number} of {path.name} names the audio file {shown(file)}, which {problem}.")
        folder, last = os.path.split(file)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        file = os.path.join(folders[folder], last)
        files.append(os.path.realpath(file) if os.path.islink(file) else file)
    return files


# -- splits ------------------------------------------------------------------------------------------------------------
def _named_split(row: dict[str, Any], number: int, path: Path) -> str:
    split = row.get("split")
    found = folded(split)
    if found not in NAMED_SPLITS:
        raise DataError(
            f"Row {number} of {path.name} has split {shown(split)}.{did_you_mean(split, NAMED_SPLITS)} "
            f"Allowed are {', '.join(NAMED_SPLITS)}."
        )
    return found


def _hashed_splits(rows: list[dict[str, Any]], path: Path) -> list[str]:
    """Decide the split of each row by the hash of the first, by name, of all files that its recordings are tied to.

    Files of one row or of one utterance are tied, and so are those tied to a common file: whoever hears one of them in
    training may hear none of them elsewhere. This is union-find. Each file points to a smaller name it is tied to, or
    to itself, and the end of the chain stands for all of them.
    """
    tied: dict[str, str] = {}

    def first(file: str) -> str:
        while tied.setdefault(file, file) != file:
            tied[file] = tied[tied[file]]  # halves the chain on the way, so that long ones stay cheap
            file = tied[file]
        return file

    of_utterance: dict[str, str] = {}
    for row in rows:
        for file in (*row["audio"][1:], of_utterance.setdefault(row["utterance"], row["audio"][0])):
            a, b = sorted((first(row["audio"][0]), first(file)))
            tied[b] = a
    splits = []
    for row in rows:
        # Relative to the manifest: the same split wherever the folder is copied to.
        name = Path(os.path.relpath(first(row["audio"][0]), path.parent.resolve())).as_posix()
        fraction = stable_fraction(name)
        splits.append("train" if fraction < 0.9 else "validation" if fraction < 0.95 else "test")
    return splits
