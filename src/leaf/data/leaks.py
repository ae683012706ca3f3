"""Check that no recording of the training rows is heard in another split, under whatever name."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaf.data.audio import encoded
from leaf.data.contents import Contents
from leaf.data.decoding import Encoded
from leaf.data.recordings import audio_of, sources_of, stretch_of_source
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


def check_leakage(
    splits: Mapping[str, Sequence[Mapping[str, Any]]], *, key: str = "utterance", training: str = "train"
) -> list[str]:
    """List what training shares with the other splits, one line per row; empty if nothing.

    What a row hears may be heard in no training row, alone, joined, or as another stretch of the same recording.
    Recordings are known by what they hold (leaf.data.contents), and those that `leaf data prepare` cut or unpacked also
    by where it took them from.

    Rows that join recordings and state an `utterance` of their own recombine them: the recordings are on both sides,
    and only the same ones in the same order are a leak.
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
    known: dict[Any, Heard] = {}
    for one in (one for row in sounds[training] for one in row):
        known.setdefault(one.recording, one)
    sequences = {_sequence(row) for row in sounds[training]}
    leaks = []
    for name, rows in splits.items():
        for row, its_sounds in zip(rows, sounds[name], strict=True) if name != training else ():
            sources, its_key = sources_of(row), row.get(key)
            if its_key in keys and len(sources) > 1:
                leaks.append(f"{name}: {its_key!r} is in {training} too")
                continue
            # Rows that recombine recordings have them on both sides. What `leaf data prepare` wrote has one side.
            recombines = len(sources) > 1 and not row.get("audio_sources") and its_key not in (None, *sources)
            checked = [] if recombines and _sequence(its_sounds) not in sequences else its_sounds
            found = next((one for one in checked if one.recording in known), None)
            if found is not None:
                same = known[found.recording]
                other = f", as {same.name}" if same.name not in {one.name for one in its_sounds} else ""
                leaks.append(f"{name}: the recording {found.name} is heard in {training} too{other}")
            elif its_key in keys:
                leaks.append(f"{name}: {its_key!r} is in {training} too")
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
        found.append([*(Heard(*stretch_of_source(name), Path(name).name) for name in named), *heard])
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


def _sequence(sounds: Iterable[Heard]) -> tuple[Any, ...]:
    return tuple((one.recording, one.start, one.end) for one in sounds)
