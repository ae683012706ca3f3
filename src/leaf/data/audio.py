"""Load waveforms: join files, mix down to mono, resample, and refuse what is not usable speech audio."""

import os
import stat
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

from leaf.errors import AudioError, shown

JOIN_PAUSE = 0.06  # seconds of silence between recordings joined to one utterance
SHORTEST = 0.05  # seconds; shorter files are broken, not speech
RATES = (2000, 768_000)  # Hz; a header with another rate is broken
CLIPPED = 0.01  # share of samples at full scale above which a recording is reported as clipped
CACHE_BYTES = 128 * 2**20  # of decoded recordings kept in memory; the asterisk task has 78 MiB at 16 kHz
_FULL_SCALE = 0.999
_SILENT = 1e-4  # peak amplitude below which a recording counts as silent (−80 dB of full scale)
_LOUDEST = 4.0  # peak (12 dB of overshoot) above which floating-point samples must be on another scale than [−1, 1]

Audio = str | Path | Sequence[str] | Mapping[str, Any]


class AudioWarning(UserWarning):
    """Warns of a recording that can be used but is poor."""


def load_audio(audio: Audio, *, sampling_rate: int = 16000) -> np.ndarray:
    """Load a mono float32 waveform (samples,) in [−1, 1] at `sampling_rate` Hz.

    Args:
        audio: a file (any format that libsndfile reads: wav, flac, ogg/opus, mp3, ...), a list of files to be joined
            with a short pause, or {"array": (samples,) or (samples, channels), "sampling_rate": Hz}. The array is
            int16, int32 or floating point in [−1, 1].
        sampling_rate: of the result, in Hz.

    Raises:
        AudioError: missing, unreadable, empty, shorter than 0.05 s, silent, not finite, or of an unknown scale or rate.

    Warns:
        AudioWarning: more than 1 % of the samples are at full scale, so the recording is clipped.
    """
    if isinstance(audio, Mapping):
        array, rate = _samples_and_rate(audio)
        return _checked_mono(array, rate, sampling_rate, "the array given")
    names = _file_names(audio)
    parts = [_read_file(name, sampling_rate) for name in names]
    if len(parts) == 1:
        return parts[0].copy()  # the cache's own array is read-only
    pause = np.zeros(round(JOIN_PAUSE * sampling_rate), dtype=np.float32)
    return np.concatenate([piece for part in parts for piece in (part, pause)][:-1])


def audio_seconds(audio: Audio) -> float:
    """Read from the file headers how long `load_audio` would be, in seconds; nothing is decoded.

    Raises:
        AudioError: a file is missing or its header cannot be read, or the mapping is not one.
    """
    if isinstance(audio, Mapping):
        array, rate = _samples_and_rate(audio)
        return len(array) / rate
    names = _file_names(audio)
    check_files(audio)
    seconds = 0.0
    for name in names:
        try:
            header = soundfile.info(name)
        except (soundfile.LibsndfileError, OSError, TypeError) as error:  # TypeError: a name that ends in .raw
            raise _unreadable(name, error) from error
        _check_rate(header.samplerate, f"the file {name}")
        seconds += header.frames / header.samplerate
    return seconds + JOIN_PAUSE * (len(names) - 1)


def check_files(audio: Audio) -> None:
    """Check that the files which `audio` names exist; nothing is decoded.

    Raises:
        AudioError: a file does not exist or is no file.
    """
    for name in [] if isinstance(audio, Mapping) else _file_names(audio):
        problem = file_problem(name)
        if problem is not None:
            raise AudioError(f"The audio file {name} {problem}. Check the path, relative to the manifest.")


def file_problem(path: str) -> str | None:
    """Say why a path cannot be read as a file, as the end of a sentence; None if it can. One look at the disk."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except OSError as error:  # a loop of links, a folder that may not be entered, a name too long
        return f"cannot be reached ({error.strerror})"
    except ValueError:  # a NUL character, or one that no file name can hold
        return "cannot exist under such a name"
    return None if stat.S_ISREG(mode) else "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"


def _file_names(audio: Any) -> list[str]:
    """List the files that `audio` names, at least one."""
    names = [audio] if isinstance(audio, str | Path) else audio
    if not isinstance(names, list | tuple) or not all(isinstance(name, str | Path) for name in names):
        raise AudioError(
            f"Audio came as {shown(audio)}; give a path, a list of paths, or a mapping with 'array' and "
            "'sampling_rate'."
        )
    if not names:
        raise AudioError("Audio came as an empty list; name at least one file.")
    return [str(name) for name in names]


class _Cache:
    """Cache the most recently used waveforms, up to a number of bytes: joined utterances repeat the same recordings."""

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


def _read_file(path: str, sampling_rate: int) -> np.ndarray:
    check_files(path)
    file = Path(path).stat()
    key = (path, sampling_rate, file.st_mtime_ns, file.st_size)  # a file written anew is decoded anew
    wave = _cache.get(key)
    if wave is None:
        try:
            wave, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError, TypeError) as error:
            raise _unreadable(path, error) from error
        except MemoryError as error:
            raise AudioError(
                f"The audio file {path} is not what its header says, or does not fit into memory: {error}."
            ) from error
        wave = _checked_mono(wave, rate, sampling_rate, f"the file {path}")
        wave.setflags(write=False)  # the cache hands the same array to every caller
        _cache.put(key, wave)
    return wave


def _checked_mono(wave: np.ndarray, rate: int, wanted: int, name: str) -> np.ndarray:
    """Check that a waveform is usable, and convert it to mono float32 at the wanted rate."""
    _check_rate(rate, name)
    _check_rate(wanted, "what is wanted")
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
    if len(wave) < SHORTEST * rate:
        raise AudioError(f"The audio of {name} lasts {len(wave) / rate:.3f} s; at least {SHORTEST} s is needed.")
    if not np.isfinite(wave).all():
        raise AudioError(f"The audio of {name} has NaN or infinite samples; export it again.")
    peak = float(np.abs(wave).max())
    if peak > _LOUDEST:
        raise AudioError(
            f"The audio of {name} is floating point with a peak of {peak:.6g}, far outside [-1, 1]; "
            "divide 16-bit values by 32768, or pass them as int16."
        )
    wave = (wave.mean(axis=1) if wave.ndim == 2 else wave).astype(np.float32)
    if np.abs(wave).max() < _SILENT:
        raise AudioError(f"The audio of {name} is silent; leave the row out or record it again.")
    clipped = float((np.abs(wave) >= _FULL_SCALE).mean())
    if clipped > CLIPPED:
        warnings.warn(
            f"The audio of {name} is clipped: {clipped:.1%} of its samples are at full scale. It is used as it is.",
            AudioWarning,
            stacklevel=2,
        )
    if rate != wanted:
        wave = soxr.resample(wave, rate, wanted).astype(np.float32)
    return np.clip(wave, -1.0, 1.0)


def _check_rate(rate: int, name: str) -> None:
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(
            f"The audio of {name} has sampling rate {rate} Hz; allowed are {RATES[0]} to {RATES[1]} Hz. Its header is "
            "broken, or the rate was given in another unit."
        )


def _samples_and_rate(audio: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """Read samples and sampling rate out of a mapping, checked."""
    if "array" not in audio or "sampling_rate" not in audio:
        raise AudioError(
            f"Audio came as a mapping with {shown(sorted(map(str, audio)))}; it needs 'array' and 'sampling_rate'."
        )
    rate: Any = audio["sampling_rate"]
    whole = isinstance(rate, int | float | np.integer | np.floating) and not isinstance(rate, bool)
    if not whole or not abs(rate) < 1e9 or rate % 1 != 0:
        raise AudioError(f"Audio came with sampling_rate {shown(rate)}; give a whole number of Hz.")
    _check_rate(int(rate), "the array given")
    try:
        array = np.asarray(audio["array"])
    except (ValueError, TypeError) as error:  # nested lists of unequal length, a tensor on a GPU
        raise AudioError(f"Audio came with an array that is not one: {error}.") from error
    if array.ndim == 0:
        raise AudioError(f"Audio came with the array {shown(audio['array'])} of shape (); give (samples,).")
    return array, int(rate)


def _unreadable(path: str, error: Exception) -> AudioError:
    reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return AudioError(f"The audio file {path} cannot be read: {reason.rstrip('. ')}. Give wav, flac, ogg or mp3.")
