"""Data sets: rows {prompt, audio, reference, ...} by task name, or from a user's own manifest."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from leaf.config import refuse_from_python
from leaf.errors import DataError
from leaf.tasks import asterisk
from leaf.tasks.manifest import SPLITS, read_manifest

__all__ = ["TASKS", "Task", "check_leakage", "load", "splits_of"]


@dataclass(frozen=True)
class Task:
    """Describe one data set: what it is, its licence, its splits, and the function that makes the rows of a split."""

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
    """Return a split as a `datasets.Dataset` with at least the columns prompt, audio and reference.

    Args:
        name: a task's name, the path of a JSONL, CSV or TSV manifest, or a folder that `leaf data prepare` wrote.
        split: one of the task's splits; of a manifest: its `split` column, or train/validation/test by audio file.
        limit: keep the first rows only, at least 1.
        columns: of a manifest: ours → theirs, e.g. {"reference": "answer"}.

    Raises:
        DataError: unknown task or split, a limit below 1, or a manifest that cannot be used.
        ConfigError: the name stands for rows that a script gave a run.
    """
    from datasets import Dataset
    from pyarrow import ArrowException

    refuse_from_python("task", name)
    if limit is not None and limit < 1:
        raise DataError(f"limit is {limit}; give at least 1, or leave it out for all rows.")
    if name in TASKS:
        task = TASKS[name]
        if split not in task.splits:
            close = difflib.get_close_matches(split, task.splits, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise DataError(f"The task {name} has no split {split!r}; allowed are {', '.join(task.splits)}.{hint}")
        rows = task.rows(split)
    elif Path(name).suffix.lower() in (".jsonl", ".csv", ".tsv"):
        rows = read_manifest(Path(name), split, columns or {})
    elif Path(name).is_dir():
        from leaf.tasks.corpora import load_prepared

        rows = load_prepared(Path(name), split)
    else:
        close = difflib.get_close_matches(name, TASKS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(
            f"The task {name!r} is unknown.{hint} Allowed are {', '.join(sorted(TASKS))}, the path of a .jsonl, .csv "
            "or .tsv manifest, or a folder that `leaf data prepare` wrote."
        )
    try:
        return Dataset.from_list(rows[:limit])
    except UnicodeEncodeError as error:
        raise DataError(f"A column of {name} holds half a character (a lone surrogate): {error}.") from error
    except (ArrowException, OverflowError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"A column of {name} mixes kinds of values: {reason}. Make each column one kind.") from error


def splits_of(name: str) -> tuple[str, ...]:
    """Return the splits of a task or prepared folder; of a manifest, the three that it is cut into."""
    if name in TASKS:
        return TASKS[name].splits
    if Path(name).is_dir():
        return tuple(split for split in SPLITS if (Path(name) / f"{split}.arrow").is_file())
    return SPLITS


def check_leakage(
    splits: dict[str, Sequence[dict[str, Any]]], *, key: str = "utterance", training: str = "train"
) -> list[str]:
    """Return what training shares with the other splits: one line per shared key or shared whole recording.

    A row whose audio is a single file is a recording of its own; it may be heard in no training row at all, joined
    or alone. An empty list means no leak.
    """
    keys = {row[key] for row in splits[training]}
    heard = {path for row in splits[training] for path in _files(row)}
    leaks = []
    for name, rows in splits.items():
        if name == training:
            continue
        leaks += [f"{name}: {row[key]!r} is in {training} too" for row in rows if row[key] in keys]
        leaks += [
            f"{name}: the recording {Path(_files(row)[0]).name} is heard in {training} too"
            for row in rows
            if len(_files(row)) == 1 and _files(row)[0] in heard
        ]
    return leaks


def _files(row: dict[str, Any]) -> list[str]:
    audio = row["audio"]
    return [audio] if isinstance(audio, str) else list(audio)
