"""Data sets: load the rows (leaf.data.rows) of a task, of a user's own manifest or of a prepared corpus."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from leaf.data.asterisk import rows as asterisk
from leaf.data.leaks import check_leakage
from leaf.data.manifest import manifest_splits, read_manifest
from leaf.errors import DataError, did_you_mean
from leaf.text import fold_whitespace

__all__ = ["TASKS", "Task", "check_leakage", "load", "splits_of"]


@dataclass(frozen=True)
class Task:
    """One data set.

    Attributes:
        description: what it is, in a few words.
        licence: of its recordings and texts.
        splits: names of its splits.
        rows: makes the rows of a split.
    """

    description: str
    licence: str
    splits: tuple[str, ...]
    rows: Callable[[str], list[dict[str, Any]]]


_ASTERISK = {
    "qa": "spoken QA on telephone prompts, free-form English answers",
    "fr": "speech translation of telephone prompts, English to French",
    "it": "speech translation of telephone prompts, English to Italian",
    "asr": "transcription of telephone prompts",
}
TASKS: dict[str, Task] = {
    f"asterisk_{variant}": Task(text, asterisk.LICENCE, asterisk.SPLITS, partial(asterisk.rows, variant))
    for variant, text in _ASTERISK.items()
}


def load(name: str, split: str, *, limit: int | None = None, columns: dict[str, str] | None = None) -> Any:
    """Load a split as a `datasets.Dataset` with at least the columns prompt, audio and reference.

    Args:
        name: a task's name, the path of a JSONL, CSV or TSV manifest, or a folder that `leaf data prepare` wrote.
        split: one of the task's splits. A manifest has those of its `split` column, or train, validation and test.
        limit: keep only so many rows, the first ones; at least 1.
        columns: ours → theirs, e.g. {"reference": "answer"}, for a manifest.

    Raises:
        DataError: unknown task or split, a limit below 1, or a manifest that cannot be used.
    """
    from datasets import Dataset
    from pyarrow import ArrowException

    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; give at least 1, or leave it out for all rows.")
    name = os.path.expanduser(name)
    if name in TASKS:
        task = TASKS[name]
        if split not in task.splits:
            hint = did_you_mean(split, task.splits)
            raise DataError(f"The task {name} has no split {split!r}.{hint} Allowed are {', '.join(task.splits)}.")
        rows = task.rows(split)
    elif _is_manifest(name):
        rows = read_manifest(Path(name), split, columns or {})
    elif Path(name).is_dir():
        from leaf.data.corpora import load_prepared

        rows = load_prepared(Path(name), split)
    else:
        raise _unknown(name)
    try:
        return Dataset.from_list(rows[:limit])
    except (ArrowException, OverflowError, ValueError) as error:
        reason = fold_whitespace(str(error))[:300]
        raise DataError(
            f"A column of {name} cannot be stored: {reason}. Often it mixes kinds of values; make each column one kind."
        ) from error


def splits_of(name: str, *, columns: dict[str, str] | None = None) -> tuple[str, ...]:
    """List the splits that a task, manifest or prepared folder has; a manifest is read for it.

    Raises:
        DataError: unknown task, or a manifest or folder that cannot be used.
    """
    name = os.path.expanduser(name)
    if name in TASKS:
        return TASKS[name].splits
    if _is_manifest(name):
        return manifest_splits(Path(name), columns or {})
    if Path(name).is_dir():
        from leaf.data.corpora import prepared_splits

        return prepared_splits(Path(name))
    raise _unknown(name)


def _is_manifest(name: str) -> bool:
    return Path(name).suffix.lower() in (".jsonl", ".csv", ".tsv")


def _unknown(name: str) -> DataError:
    if Path(name).is_file():
        return DataError(
            f"The task {name!r} is a file of another kind than .jsonl, .csv and .tsv. `leaf data prepare hub --from "
            f"{name} --to FOLDER` makes a task of parquet, Arrow and JSON."
        )
    return DataError(
        f"The task {name!r} is unknown.{did_you_mean(name, TASKS)} Allowed are {', '.join(sorted(TASKS))}, the path "
        "of a .jsonl, .csv or .tsv manifest, or a folder that `leaf data prepare` wrote."
    )
