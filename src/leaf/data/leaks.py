"""Check that no recording of the training rows is heard in another split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from leaf.data.recordings import sources_of


def check_leakage(
    splits: dict[str, Sequence[dict[str, Any]]], *, key: str = "utterance", training: str = "train"
) -> list[str]:
    """List what training shares with the other splits: one line per shared key or whole recording; empty if nothing.

    A row whose audio is a single file is a recording of its own, which no training row may contain, joined or alone.
    Recordings that `leaf data prepare` cut or unpacked are known by where it took them from.
    """
    keys = {row[key] for row in splits[training]}
    heard = {source for row in splits[training] for source in sources_of(row)}
    leaks = []
    for name, rows in splits.items():
        if name == training:
            continue
        leaks += [f"{name}: {row[key]!r} is in {training} too" for row in rows if row[key] in keys]
        leaks += [
            f"{name}: the recording {Path(sources[0]).name} is heard in {training} too"
            for sources in map(sources_of, rows)
            if len(sources) == 1 and sources[0] in heard
        ]
    return leaks
