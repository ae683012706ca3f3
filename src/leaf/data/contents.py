"""What recordings hold: which of them are the same under other names, byte for byte or sample for sample.

Only what can be the same is looked into. Recordings with the same bytes have the same size, so only those of equal size
are hashed, each once. Recordings with the same samples in other containers (a WAV and its FLAC) have the same number of
samples, so only those without loss and of equal length are decoded: a piece of each, and all of it where the pieces are
the same. A sound that was encoded with loss, or at another rate, is another one here.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any, cast

from leaf.data.decoding import Encoded, decode, read_header
from leaf.errors import AudioError

_PIECE = 0.25  # seconds that are decoded to see whether two recordings may be the same


class Contents:
    """Tell which recordings hold the same.

    `contents[sound]` is the same for two recordings if they are; the stretch does not count, it is the whole that is
    compared.
    """

    def __init__(self, sounds: Iterable[Encoded]):
        """Compare recordings with one another; those that cannot be read are like no other."""
        wholes = list(dict.fromkeys(map(_whole, sounds)))
        self._first: dict[Encoded, Encoded] = {sound: sound for sound in wholes}
        self._join(wholes, _size, _digest)
        self._join([sound for sound in wholes if self._first[sound] == sound], _length, _piece, _samples)

    def __getitem__(self, sound: Encoded) -> Encoded:
        """Return the first of the recordings that hold the same as this one."""
        first = self._first[_whole(sound)]
        return first if self._first[first] == first else self._first[first]

    def _join(self, sounds: list[Encoded], *keys: Callable[[Encoded], Hashable | None]) -> None:
        """Join recordings for which all keys are the same; a key is computed only where the ones before it are."""
        groups = [sounds]
        for key in keys:
            finer: dict[tuple[int, Hashable], list[Encoded]] = defaultdict(list)
            for number, group in enumerate(groups):
                for sound in group if len(group) > 1 else ():
                    if (value := key(sound)) is not None:
                        finer[number, value].append(sound)
            groups = [group for group in finer.values() if len(group) > 1]
        for group in groups:
            for sound in group:
                self._first[sound] = group[0]


def _whole(sound: Encoded) -> Encoded:
    return replace(sound, offset=0.0, duration=None)


def _size(sound: Encoded) -> int | None:
    try:
        return len(sound.data or b"") if sound.path is None else os.stat(sound.path).st_size
    except (OSError, ValueError):
        return None


def _digest(sound: Encoded) -> bytes | None:
    try:
        with sound.open() as file:
            return hashlib.file_digest(cast(Any, file), "sha256").digest()  # typed narrower than what it reads
    except OSError:
        return None


def _length(sound: Encoded) -> tuple[float, int, int] | None:
    """Read length, rate and channels from the header; None where samples are not those that were encoded."""
    try:
        header = read_header(sound)
    except AudioError:
        return None
    return (round(header.seconds * header.rate), header.rate, header.channels) if header.lossless else None


def _piece(sound: Encoded) -> bytes | None:
    """Hash a piece from the middle, where there is more to tell recordings apart than at their ends."""
    try:
        seconds = read_header(sound).seconds
        return _samples(replace(sound, offset=seconds / 2, duration=min(_PIECE, seconds / 2)))
    except AudioError:
        return None


def _samples(sound: Encoded) -> bytes | None:
    try:
        wave, _ = decode(sound)
    except AudioError:
        return None
    return hashlib.sha256(wave.tobytes()).digest()
