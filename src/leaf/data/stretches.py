"""Stretches of recordings: the columns `offset` and `duration`, in seconds, as in manifests of NeMo."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leaf.errors import AudioError, shown

STRETCH = ("offset", "duration")
SLACK = 0.05  # seconds by which any length may differ: tables round, and encoders pad


def stretch_of(row: Mapping[str, Any]) -> tuple[float, float | None]:
    """Read which stretch a row or an audio mapping asks for: where it begins, and how long it is, None for to the end.

    An empty cell is none, and (0, None) is the whole.

    Raises:
        AudioError: offset or duration is no number of seconds.
    """
    offset, duration = (_seconds(name, row.get(name)) for name in STRETCH)
    if duration is not None and duration <= 0:
        raise AudioError(
            f"The duration is {duration:g}; give seconds above 0, or leave it out for all of the recording."
        )
    return offset or 0.0, duration


def _seconds(name: str, value: Any) -> float | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):  # tables write NaN for nothing
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise AudioError(
            f"The {name} is {shown(value)}; it says where a recording is heard, so give seconds, at least 0, or rename "
            "the column."
        )
    return seconds


def bounds(offset: float, duration: float | None, seconds: float, name: str) -> tuple[float, float]:
    """Compute start and end of a stretch in a recording of so many seconds.

    Raises:
        AudioError: it begins or ends after the recording does.
    """
    end = seconds if duration is None else offset + duration
    if (offset and offset >= seconds) or end > seconds + SLACK:
        raise AudioError(
            f"The stretch from {offset:g} to {end:g} s is not in {name}, which lasts {seconds:.2f} s. Correct offset "
            "and duration."
        )
    return offset, min(end, seconds)


def heard(audio: Any, row: Mapping[str, Any]) -> Any:
    """Lay a row's `offset` and `duration` on its audio; without them it is returned as it is.

    Raises:
        AudioError: they are no seconds, or the row joins several files, whose stretch nothing says.
    """
    offset, duration = stretch_of(row)
    if not offset and duration is None:
        return audio
    if isinstance(audio, list | tuple):
        if len(audio) != 1:
            raise AudioError(
                f"A row has an offset or a duration and {len(audio)} files of audio; a stretch is of one file. Give "
                "each stretch a row of its own, or cut the files."
            )
        audio = audio[0]
    whole = {"path": str(audio)} if isinstance(audio, str | Path) else audio
    return {**whole, "offset": offset, "duration": duration} if isinstance(whole, Mapping) else whole
