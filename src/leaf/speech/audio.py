"""Waveforms: load, join, mix down, resample, and refuse what is not usable speech audio."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from leaf.errors import AudioError

JOIN_PAUSE = 0.06  # seconds of silence between recordings joined to one utterance
SHORTEST = 0.05  # seconds; less is not speech but a broken file
_SILENT = 1e-4  # peak amplitude below which a recording counts as silent (−80 dB of full scale)

Audio = str | Path | Sequence[str] | Mapping[str, Any]


def load_audio(audio: Audio, *, sampling_rate: int = 16000) -> np.ndarray:
    """Return a mono float32 waveform (samples,) in [−1, 1] at `sampling_rate` Hz.

    Args:
        audio: a file (any format libsndfile reads: wav, flac, ogg/opus, mp3, ...), a list of files to be joined with a
            short pause, or {"array": (samples,) or (samples, channels), "sampling_rate": Hz}.
        sampling_rate: of the result, in Hz.

    Raises:
        AudioError: missing, unreadable, empty, shorter than 0.05 s, silent, or not finite.
    """
    if isinstance(audio, str | Path):
        wave = _read(str(audio), sampling_rate)
    elif isinstance(audio, Mapping):
        if "array" not in audio or "sampling_rate" not in audio:
            raise AudioError(f"Audio came as a mapping with {sorted(audio)}; it needs 'array' and 'sampling_rate'.")
        wave = _convert(np.asarray(audio["array"]), int(audio["sampling_rate"]), sampling_rate, "the array given")
    elif len(audio) == 0:
        raise AudioError("Audio came as an empty list; name at least one file.")
    else:
        pause = np.zeros(round(JOIN_PAUSE * sampling_rate), dtype=np.float32)
        parts = [_read(str(name), sampling_rate) for name in audio]
        wave = np.concatenate([piece for part in parts for piece in (part, pause)][:-1])
    return wave


def check_files(audio: Audio) -> None:
    """Raise AudioError if a file that `audio` names does not exist; nothing is decoded."""
    names = [] if isinstance(audio, Mapping) else [audio] if isinstance(audio, str | Path) else audio
    for name in names:
        if not Path(str(name)).is_file():
            raise AudioError(f"The audio file {name} does not exist. Check the path, relative to the manifest.")


@lru_cache(maxsize=1024)
def _read(path: str, sampling_rate: int) -> np.ndarray:
    check_files(path)
    try:
        wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"The audio file {path} cannot be read: {error}. Give wav, flac, ogg or mp3.") from error
    wave = _convert(wave, rate, sampling_rate, f"the file {path}")
    wave.setflags(write=False)  # the cache hands the same array to every caller
    return wave


def _convert(wave: np.ndarray, rate: int, wanted: int, name: str) -> np.ndarray:
    """Return mono float32 at the wanted rate, after checking that it is usable."""
    if np.issubdtype(wave.dtype, np.integer):
        wave = wave / float(np.iinfo(wave.dtype).max + 1)
    if wave.ndim > 2 or not np.issubdtype(wave.dtype, np.floating):
        raise AudioError(f"The audio of {name} has shape {wave.shape} and type {wave.dtype}; give (samples,) numbers.")
    wave = wave.astype(np.float32)
    if wave.ndim == 2:
        wave = wave.mean(axis=1)
    if len(wave) < SHORTEST * rate:
        raise AudioError(f"The audio of {name} lasts {len(wave) / rate:.3f} s; at least {SHORTEST} s is needed.")
    if not np.isfinite(wave).all():
        raise AudioError(f"The audio of {name} holds NaN or infinite samples; export it again.")
    if np.abs(wave).max() < _SILENT:
        raise AudioError(f"The audio of {name} is silent; leave the row out or record it again.")
    if rate != wanted:
        wave = soxr.resample(wave, rate, wanted).astype(np.float32)
    return np.clip(wave, -1.0, 1.0)
