"""Recordings inside the page: small clips with a waveform, and a store that keeps them within a budget of bytes.

The page loads nothing, so a recording is in the page or cannot be heard. Clips are mono MP3, the one format that plays
in Chromium, Firefox and Safari and has speech at 3 kB a second. On the page, `leaf.player(clip)` of `assets/audio.js`
makes the element; its style is `assets/audio.css`.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from leaf.data.audio import JOIN_PAUSE, Audio, audio_seconds, load_audio
from leaf.data.recordings import audio_of
from leaf.data.rows import prompt_text
from leaf.errors import AudioError, ConfigError, DataError, ModelError
from leaf.evaluation.predictions import kept_items
from leaf.plugins import load_plugins

RATE = 16_000  # Hz, as speech encoders get it: the page plays what the model heard
PEAKS = 160  # bars of a waveform
CLIP_BYTES = 96_000  # of a clip's data URI: about 25 s of speech
SECTION_BYTES = 1_200_000  # of a section's clips together
_QUALITY = {"bitrate_mode": "VARIABLE", "compression_level": 0.7}  # about 22 kbit/s for speech
_TYPE = "data:audio/mpeg;base64,"
_REFUSED = 20  # after so many recordings in a row that do not fit, the store looks for no shorter one
_Split = tuple[Any, dict[str, tuple[int, dict[str, Any]]]]  # rows, and id → number and text columns
_SHORTEST = 0.25  # seconds; a limit that leaves less is a mistake


def clip(source: Audio, *, max_bytes: int = CLIP_BYTES) -> dict[str, Any]:
    """Encode a row's audio for `leaf.player`, as JSON values.

    A list of recordings becomes one clip, joined as the model hears them. If the clip is too long for `max_bytes`, its
    end is cut off, and the player says so.

    Args:
        source: what `leaf.data.audio.load_audio` reads: a path, a list of paths, or a mapping with `array` and
            `sampling_rate`.
        max_bytes: of the data URI.

    Returns:
        `src`: data URI of mono 16 kHz MP3. `seconds`: length of the whole audio. `kept`: seconds in the clip.
        `peaks`: 160 whole numbers from 0 to 100, the largest amplitude of each stretch of the clip relative to the
        largest of all. `joins`: seconds at which the second and later recordings begin, within the clip.

    Raises:
        AudioError: as `load_audio`.
        ConfigError: the limit leaves less than 0.25 s.
    """
    wave = load_audio(source, sampling_rate=RATE)
    kept = wave
    src = _uri(kept)
    while len(src) > max_bytes:
        # Bytes are nearly proportional to seconds, so one or two turns are enough. With 0.98 every turn shortens.
        kept = kept[: int(len(kept) * 0.98 * max_bytes / len(src))]
        if len(kept) < _SHORTEST * RATE:
            raise ConfigError(f"A clip of {max_bytes} bytes holds less than {_SHORTEST} s. Allow at least 10,000.")
        src = _uri(kept)
    seconds = len(kept) / RATE
    return {
        "src": src,
        "seconds": round(len(wave) / RATE, 2),
        "kept": round(seconds, 2),
        "peaks": peaks(kept),
        "joins": [join for join in _joins(source) if join < seconds],
    }


def peaks(wave: np.ndarray, count: int = PEAKS) -> list[int]:
    """Compute (count,) the largest amplitude of each stretch of a waveform (samples,), the loudest as 100."""
    edges = np.arange(count) * len(wave) // count  # every stretch has a sample if there are `count` or more
    highest = np.maximum.reduceat(np.abs(wave), edges)
    return np.rint(100 * highest / highest.max()).astype(int).tolist()


class ClipStore:
    """Clips within a number of bytes. A file, or a list of files, that is added twice is stored once.

    Attributes:
        clips: the clips, in the order of their numbers: `leaf.player(data.clips[number])`.
        left_out: how many recordings did not fit.
    """

    def __init__(self, *, max_bytes: int = SECTION_BYTES, clip_bytes: int = CLIP_BYTES):
        self.max_bytes, self.clip_bytes = max_bytes, clip_bytes
        self.clips: list[dict[str, Any]] = []
        self.bytes = 0
        self.left_out = 0
        self._known: dict[str, int | None] = {}
        self._refused = 0

    def add(self, source: Audio) -> int | None:
        """Store an audio as a clip, and return the clip's number; None if it does not fit any more.

        Add what matters most first. After 20 in a row that did not fit, the store is full and decodes nothing more.

        Raises:
            AudioError: the audio cannot be read; the store is as before.
        """
        if isinstance(source, Mapping) and not isinstance(source.get("path"), str):  # samples have no name
            return self._stored(source)
        key = str(source)
        if key not in self._known:
            self._known[key] = self._stored(source)
        return self._known[key]

    def _stored(self, source: Audio) -> int | None:
        made = clip(source, max_bytes=self.clip_bytes) if self._refused < _REFUSED else None
        if made is None or self.bytes + len(made["src"]) > self.max_bytes:
            self._refused += 1
            self.left_out += 1
            return None
        self._refused = 0
        self.bytes += len(made["src"])
        self.clips.append(made)
        return len(self.clips) - 1


class Recordings:
    """The audio of a task's rows, found by their ids: records and prediction files have no paths."""

    def __init__(self, task: str, columns: Mapping[str, str] | None = None, plugins: Sequence[str] = ()):
        """Name a task, manifest or prepared folder as a recipe does, and the plugins that may define it.

        Splits are loaded when they are first needed, and plugins only if nothing else has the task's name.
        """
        self.task, self.columns, self.plugins = task, dict(columns or {}), list(plugins)
        self._splits: dict[str, _Split | DataError] = {}

    def find(self, item: Mapping[str, Any], split: str | None = None) -> Audio | None:
        """Find what the task's row has as audio; None if no split has such a row.

        Args:
            item: a row of a record or prediction file: its `id`, and `prompt` and `reference` if they are known. A row
                of the task that differs in these is another one.
            split: where the row is; None to look in all splits, the training split last.

        Raises:
            AudioError: the row has no recording, or several.
            DataError: the split, or every split of the task, cannot be loaded.
            ConfigError: a plugin that may define the task cannot be imported.
        """
        from leaf.data import TASKS

        if self.task not in TASKS and not Path(self.task).exists():
            load_plugins(self.plugins)
        wanted = {key: item[key] for key in ("prompt", "reference") if item.get(key) is not None}
        if "prompt" in wanted:
            wanted["prompt"] = prompt_text(wanted["prompt"])
        names = [split] if split else self._names
        problems = []
        for name in names:
            found = self._split(name)
            if isinstance(found, DataError):
                problems.append(found)
                continue
            rows, known = found
            number, kept = known.get(str(item["id"]), (None, {}))
            if number is not None and wanted.items() <= kept.items():
                return _audio_of(rows[number])
        if len(problems) == len(names):
            raise problems[0]
        return None

    @cached_property
    def _names(self) -> list[str]:
        """List the task's splits, the training split last."""
        from leaf.data import splits_of

        return sorted(splits_of(self.task, columns=self.columns), key=lambda name: (name == "train", name))

    def _split(self, name: str) -> _Split | DataError:
        """Load a split's rows with their places by id, once; or keep the reason why they cannot be loaded."""
        from leaf.data import load

        if name not in self._splits:
            try:
                rows = load(self.task, name, columns=self.columns)
            except DataError as error:
                self._splits[name] = error
            else:
                texts = rows.select_columns([column for column in rows.column_names if column != "audio"])
                kept = kept_items(texts)  # without the audio column, so that nothing is decoded
                self._splits[name] = rows, {item["id"]: (i, item) for i, item in enumerate(kept)}
        return self._splits[name]


def _audio_of(row: dict[str, Any]) -> Audio:
    try:
        return audio_of(row)
    except ModelError as error:
        raise AudioError(str(error)) from error


def _uri(wave: np.ndarray) -> str:
    file = io.BytesIO()
    soundfile.write(file, wave, RATE, format="MP3", subtype="MPEG_LAYER_III", **_QUALITY)
    return _TYPE + base64.b64encode(file.getvalue()).decode()


def _joins(source: Audio) -> list[float]:
    """Compute where the second and later recordings of a list begin, in seconds."""
    if isinstance(source, Mapping | str) or not isinstance(source, list | tuple):
        return []
    lengths = np.array([audio_seconds(name) + JOIN_PAUSE for name in source])
    return [round(float(end), 2) for end in lengths.cumsum()[:-1]]


__all__ = ["CLIP_BYTES", "PEAKS", "RATE", "SECTION_BYTES", "ClipStore", "Recordings", "clip", "peaks"]
