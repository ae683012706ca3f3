"""Waveforms: load, join, mix down, resample, and refuse what is not usable speech audio."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from leaf.errors import AudioError

JOIN_PAUSE = 0.06  # seconds of silence between recordings joined to one utterance
SHORTEST = 0.05  # seconds; less is not speech but a broken file
CACHE_BYTES = 128 * 2**20  # decoded recordings kept in memory; the asterisk task holds 78 MiB at 16 kHz
_SILENT = 1e-4  # peak amplitude below which a recording counts as silent (−80 dB of full scale)
_LOUDEST = 4.0  # peak above which floating-point samples are not in [−1, 1] but on another scale (12 dB of overshoot)

Audio = str | Path | Sequence[str] | Mapping[str, Any]


def load_audio(audio: Audio, *, sampling_rate: int = 16000) -> np.ndarray:
    """Return a mono float32 waveform (samples,) in [−1, 1] at `sampling_rate` Hz.

    Args:
        audio: a file (any format libsndfile reads: wav, flac, ogg/opus, mp3, ...), a list of files to be joined with a
            short pause, or {"array": (samples,) or (samples, channels), "sampling_rate": Hz}, the array int16, int32
            or floating point in [−1, 1].
        sampling_rate: of the result, in Hz.

    Raises:
        AudioError: missing, unreadable, empty, shorter than 0.05 s, silent, not finite, or of an unknown scale.
    """
    if isinstance(audio, str | Path):
        return _read(str(audio), sampling_rate).copy()  # the cache's own array is read-only
    if isinstance(audio, Mapping):
        _require_array(audio)
        return _convert(np.asarray(audio["array"]), int(audio["sampling_rate"]), sampling_rate, "the array given")
    if len(audio) == 0:
        raise AudioError("Audio came as an empty list; name at least one file.")
    pause = np.zeros(round(JOIN_PAUSE * sampling_rate), dtype=np.float32)
    parts = [_read(str(name), sampling_rate) for name in audio]
    return np.concatenate([piece for part in parts for piece in (part, pause)][:-1])


def audio_seconds(audio: Audio) -> float:
    """Return the length of what `load_audio` would return, in seconds, from the file headers; nothing is decoded.

    Raises:
        AudioError: a file is missing or its header cannot be read, or the mapping is not one.
    """
    if isinstance(audio, Mapping):
        _require_array(audio)
        return len(audio["array"]) / int(audio["sampling_rate"])
    names = [str(audio)] if isinstance(audio, str | Path) else [str(name) for name in audio]
    if not names:
        raise AudioError("Audio came as an empty list; name at least one file.")
    check_files(names)
    seconds = 0.0
    for name in names:
        try:
            header = soundfile.info(name)
        except (soundfile.LibsndfileError, OSError) as error:
            raise _unreadable(name, error) from error
        seconds += header.frames / header.samplerate
    return seconds + JOIN_PAUSE * (len(names) - 1)


def check_files(audio: Audio) -> None:
    """Raise AudioError if a file that `audio` names does not exist; nothing is decoded."""
    names = [] if isinstance(audio, Mapping) else [audio] if isinstance(audio, str | Path) else audio
    for name in names:
        if not Path(str(name)).is_file():
            raise AudioError(f"The audio file {name} does not exist. Check the path, relative to the manifest.")


class _Cache:
    """Keep the most recently used waveforms, up to a number of bytes; joined utterances repeat the same recordings."""

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0
        self.waves: OrderedDict[tuple[str, int, int, int], np.ndarray] = OrderedDict()
        self.lock = threading.Lock()  # data loaders may read from several threads

    def get(self, key: tuple[str, int, int, int]) -> np.ndarray | None:
        with self.lock:
            if key in self.waves:
                self.waves.move_to_end(key)
            return self.waves.get(key)

    def put(self, key: tuple[str, int, int, int], wave: np.ndarray) -> None:
        with self.lock:
            if key in self.waves or wave.nbytes > self.limit // 8:  # one long file must not push all others out
                return
            self.waves[key] = wave
            self.size += wave.nbytes
            while self.size > self.limit:
                self.size -= self.waves.popitem(last=False)[1].nbytes


_cache = _Cache(CACHE_BYTES)


def _read(path: str, sampling_rate: int) -> np.ndarray:
    check_files(path)
    file = Path(path).stat()
    key = (path, sampling_rate, file.st_mtime_ns, file.st_size)  # a file written anew is decoded anew
    wave = _cache.get(key)
    if wave is None:
        try:
            wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError) as error:
            raise _unreadable(path, error) from error
        wave = _convert(wave, rate, sampling_rate, f"the file {path}")
        wave.setflags(write=False)  # the cache hands the same array to every caller
        _cache.put(key, wave)
    return wave


def _convert(wave: np.ndarray, rate: int, wanted: int, name: str) -> np.ndarray:
    """Return mono float32 at the wanted rate, after checking that it is usable."""
    if rate <= 0 or wanted <= 0:
        raise AudioError(
            f"The audio of {name} has sampling rate {rate} Hz and {wanted} Hz is wanted; both must be > 0."
        )
    if wave.dtype in (np.int16, np.int32):
        wave = wave / float(np.iinfo(wave.dtype).max + 1)
    if wave.ndim not in (1, 2) or not np.issubdtype(wave.dtype, np.floating):
        raise AudioError(
            f"The audio of {name} has shape {wave.shape} and type {wave.dtype}; give (samples,) or (samples, channels) "
            "as int16, int32 or floating point in [-1, 1]."
        )
    if wave.ndim == 2 and wave.shape[1] > 32 and wave.shape[0] < wave.shape[1]:
        raise AudioError(
            f"The audio of {name} has shape {wave.shape}, which looks like (channels, samples); give its transpose."
        )
    wave = wave.astype(np.float32)
    if wave.ndim == 2:
        wave = wave.mean(axis=1)
    if len(wave) < SHORTEST * rate:
        raise AudioError(f"The audio of {name} lasts {len(wave) / rate:.3f} s; at least {SHORTEST} s is needed.")
    if not np.isfinite(wave).all():
        raise AudioError(f"The audio of {name} holds NaN or infinite samples; export it again.")
    peak = float(np.abs(wave).max())
    if peak < _SILENT:
        raise AudioError(f"The audio of {name} is silent; leave the row out or record it again.")
    if peak > _LOUDEST:
        raise AudioError(
            f"The audio of {name} is floating point with a peak of {peak:.6g}, far outside [-1, 1]; "
            "divide 16-bit values by 32768, or pass them as int16."
        )
    if rate != wanted:
        wave = soxr.resample(wave, rate, wanted).astype(np.float32)
    return np.clip(wave, -1.0, 1.0)


def _require_array(audio: Mapping[str, Any]) -> None:
    if "array" not in audio or "sampling_rate" not in audio:
        raise AudioError(f"Audio came as a mapping with {sorted(audio)}; it needs 'array' and 'sampling_rate'.")


def _unreadable(path: str, error: Exception) -> AudioError:
    return AudioError(f"The audio file {path} cannot be read: {error}. Give wav, flac, ogg or mp3.")
