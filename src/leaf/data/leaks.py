"""Check that no recording of the training rows is heard in another split, under whatever name."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaf.data.audio import encoded
from leaf.data.contents import Contents
from leaf.data.decoding import Encoded
from leaf.data.recordings import audio_of, sources_of
from leaf.errors import AudioError


@dataclass(frozen=True)
class Heard:
    """A stretch of a recording that a row hears.

    Attributes:
        recording: what is the same for all recordings that hold the same.
        start, end: of the stretch, in seconds; the end of a whole recording is infinite.
        name: of its file or hash, as a line for a person has it.
    """

    recording: Any
    start: float
    end: float
    name: str

    def overlaps(self, other: "Heard") -> bool:
        """Tell whether two stretches of one recording have some of it in common."""
        return self.start < other.end - 1e-6 and other.start < self.end - 1e-6


def check_leakage(
    splits: Mapping[str, Sequence[Mapping[str, Any]]], *, key: str = "utterance", training: str = "train"
) -> list[str]:
    """List what training shares with the other splits, one line per row; empty if nothing.

    A row whose audio is a single recording may be heard in no training row, joined or alone. Recordings are known by
    what they hold (leaf.data.contents), and those that `leaf data prepare` cut or unpacked also by where it took them
    from. Stretches of one file are the same where they overlap.
    """
    return leaks_among(splits, heard_in(splits), key=key, training=training)


def heard_in(splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[list["Heard"]]]:
    """List what every row of every split hears; recordings are compared over all splits."""
    heard = iter(heard_by_rows(row for rows in splits.values() for row in rows))
    return {name: [next(heard) for _ in rows] for name, rows in splits.items()}


def leaks_among(
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    sounds: Mapping[str, Sequence[Sequence["Heard"]]],
    *,
    key: str = "utterance",
    training: str = "train",
) -> list[str]:
    """List what training shares with the other splits, where it is known what every row hears; see `check_leakage`."""
    keys = {row[key] for row in splits[training] if row.get(key) is not None}
    known: dict[Any, list[Heard]] = {}
    for one in (one for row in sounds[training] for one in row):
        known.setdefault(one.recording, []).append(one)
    leaks = []
    for name, rows in splits.items():
        for row, its_sounds in zip(rows, sounds[name], strict=True) if name != training else ():
            whole = its_sounds if _is_one(row) else []
            same = next((o for one in whole for o in known.get(one.recording, ()) if o.overlaps(one)), None)
            if same is not None:
                other = f", as {same.name}" if same.name not in {one.name for one in whole} else ""
                leaks.append(f"{name}: the recording {whole[0].name} is heard in {training} too{other}")
            elif row.get(key) in keys:
                leaks.append(f"{name}: {row[key]!r} is in {training} too")
    return leaks


def heard_by_rows(rows: Iterable[Mapping[str, Any]]) -> list[list[Heard]]:
    """List what every row hears: its recordings by what they hold, and by where a prepared corpus took them from."""
    rows = list(rows)
    sounds = [_sounds(row) for row in rows]
    contents = Contents(sound for its in sounds for sound in its)
    found = []
    for row, its in zip(rows, sounds, strict=True):
        heard = [_heard(sound, contents) for sound in its]
        named = sources_of(row) if row.get("audio_sources") or not its else []
        found.append([*(Heard(name, 0.0, math.inf, Path(name).name) for name in named), *heard])
    return found


def _heard(sound: Encoded, contents: Contents) -> Heard:
    end = math.inf if sound.duration is None else sound.offset + sound.duration
    return Heard(contents[sound], sound.offset, end, Path(sound.source).name)


def _sounds(row: Mapping[str, Any]) -> list[Encoded]:
    """List a row's encoded recordings; one that is no audio is said where it is read."""
    try:
        return encoded(audio_of(row))
    except AudioError:
        return []


def _is_one(row: Mapping[str, Any]) -> bool:
    """Tell whether a row hears one recording, rather than several that are joined."""
    return len(sources_of(row)) == 1
