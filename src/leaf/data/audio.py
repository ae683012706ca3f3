"""Load waveforms: join files, mix down to mono, resample, and refuse what is not usable speech audio."""

import os
import stat
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import soxr

from leaf.data.decoding import Encoded, Header, decode, read_header
from leaf.data.stretches import bounds, stretch_of
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
_FORMS = "'array' and 'sampling_rate', or 'bytes' or 'path'"


class AudioWarning(UserWarning):
    """Warns of a recording that can be used but is poor."""


def load_audio(audio: Audio, *, sampling_rate: int = 16000) -> np.ndarray:
    """Load a mono float32 waveform (samples,) in [−1, 1] at `sampling_rate` Hz.

    Args:
        audio: a file (wav, flac, ogg/opus, mp3, m4a, ...), a list of files to be joined with a short pause, or a
            mapping: {"array": (samples,) or (samples, channels), "sampling_rate": Hz} with int16, int32 or floating
            point in [−1, 1], {"bytes": an encoded file} or {"path": a file}. Of a mapping with "offset" or "duration"
            the stretch is heard that begins and lasts so many seconds.
        sampling_rate: of the result, in Hz.

    Raises:
        AudioError: missing, unreadable, empty, shorter than 0.05 s, silent, not finite, of an unknown scale or rate, or
            not as long as it states.

    Warns:
        AudioWarning: more than 1 % of the samples are at full scale, so the recording is clipped.
    """
    if _is_array(audio):
        array, rate = samples_and_rate(audio)
        return _checked_mono(array, rate, sampling_rate, "the array given")
    parts = [_read(sound, sampling_rate) for sound in encoded(audio)]
    if len(parts) == 1:
        return parts[0].copy()  # the cache's own array is read-only
    pause = np.zeros(round(JOIN_PAUSE * sampling_rate), dtype=np.float32)
    return np.concatenate([piece for part in parts for piece in (part, pause)][:-1])


def audio_seconds(audio: Audio) -> float:
    """Read from the file headers how long `load_audio` would be, in seconds; nothing is decoded.

    Raises:
        AudioError: a file is missing or its header cannot be read, or the mapping is not one.
    """
    if _is_array(audio):
        array, rate = samples_and_rate(audio)
        return len(array) / rate
    seconds = []
    for sound, header in headers(audio):
        start, end = sound.bounds(header.seconds)
        seconds.append(end - start)
    return sum(seconds) + JOIN_PAUSE * (len(seconds) - 1)


def headers(audio: Audio) -> list[tuple[Encoded, Header]]:
    """Read the header of every encoded recording that `audio` names; of an array there is none.

    Raises:
        AudioError: a file is missing or its header cannot be read.
    """
    check_files(audio)
    found = []
    for sound in encoded(audio):
        header = read_header(sound)
        _check_rate(header.rate, sound.name)
        found.append((sound, header))
    return found


def check_files(audio: Audio) -> None:
    """Check that the files which `audio` names exist; nothing is decoded.

    Raises:
        AudioError: a file does not exist or is no file.
    """
    for sound in encoded(audio):
        problem = None if sound.path is None else file_problem(sound.path)
        if problem is not None:
            raise AudioError(f"The audio file {sound.path} {problem}. Check the path, relative to the manifest.")


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


def encoded(audio: Any) -> list[Encoded]:
    """List the encoded recordings that `audio` names, at least one; an array is none.

    Raises:
        AudioError: it is no audio.
    """
    if isinstance(audio, Mapping):
        return [] if _is_array(audio) else [_encoded_mapping(audio)]
    names = [audio] if isinstance(audio, str | Path) else audio
    if not isinstance(names, list | tuple) or not all(isinstance(name, str | Path) for name in names):
        raise AudioError(f"Audio came as {shown(audio)}; give a path, a list of paths, or a mapping with {_FORMS}.")
    if not names:
        raise AudioError("Audio came as an empty list; name at least one file.")
    return [Encoded(str(name)) for name in names]


def _is_array(audio: Any) -> TypeGuard[Mapping[str, Any]]:
    return (
        isinstance(audio, Mapping)
        and audio.get("bytes") is None
        and (audio.get("array") is not None or audio.get("path") is None)
    )


def _encoded_mapping(audio: Mapping[str, Any]) -> Encoded:
    """Read a mapping with bytes or a path, as `datasets` gives audio that it does not decode."""
    data, path = audio.get("bytes"), audio.get("path")
    if data is None and isinstance(path, str | Path):
        return Encoded(str(path), None, *stretch_of(audio))
    if not isinstance(data, bytes | bytearray | memoryview):
        raise AudioError(f"Audio came as the bytes {shown(data)}; give those of an encoded file, such as wav or mp3.")
    return Encoded(None, bytes(data), *stretch_of(audio))


class _Cache:
    """Cache the most recently used waveforms, up to a number of bytes: joined utterances repeat the same recordings."""

    def __init__(self, limit: int):
        self.limit, self.size = limit, 0
        self.waves: OrderedDict[tuple[Any, ...], np.ndarray] = OrderedDict()
        self.lock = threading.Lock()  # data loaders may read from several threads

    def get(self, key: tuple[Any, ...]) -> np.ndarray | None:
        with self.lock:
            if key in self.waves:
                self.waves.move_to_end(key)
            return self.waves.get(key)

    def put(self, key: tuple[Any, ...], wave: np.ndarray) -> None:
        with self.lock:
            if key in self.waves or wave.nbytes > self.limit // 8:  # one long file must not push all others out
                return
            self.waves[key] = wave
            self.size += wave.nbytes
            while self.size > self.limit:
                self.size -= self.waves.popitem(last=False)[1].nbytes


_cache = _Cache(CACHE_BYTES)


def _read(sound: Encoded, sampling_rate: int) -> np.ndarray:
    """Decode a recording, unless it is in the cache."""
    if sound.path is None:
        return _checked_mono(*decode(sound), sampling_rate, sound.name.removeprefix("the audio in "))
    check_files(sound.path)
    file = Path(sound.path).stat()
    key = (sound, sampling_rate, file.st_mtime_ns, file.st_size)  # a file written anew is decoded anew
    wave = _cache.get(key)
    if wave is None:
        wave = _checked_mono(*decode(sound), sampling_rate, f"the file {sound.path}")
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


def samples_and_rate(audio: Mapping[str, Any]) -> tuple[np.ndarray, int]:
    """Read the samples that are heard and their rate out of a mapping, checked.

    Raises:
        AudioError: they are missing or no samples.
    """
    if audio.get("array") is None or "sampling_rate" not in audio:
        raise AudioError(f"Audio came as a mapping with {shown(sorted(map(str, audio)))}; it needs {_FORMS}.")
    rate: Any = audio["sampling_rate"]
    whole = isinstance(rate, int | float | np.integer | np.floating) and not isinstance(rate, bool)
    if not whole or not abs(rate) < 1e9 or rate % 1 != 0:
        raise AudioError(f"Audio came with sampling_rate {shown(rate)}; give a whole number of Hz.")
    _check_rate(int(rate), "the array given")
    array = as_array(audio["array"])
    if array.ndim == 0:
        raise AudioError(f"Audio came with the array {shown(audio['array'])} of shape (); give (samples,).")
    start, end = bounds(*stretch_of(audio), len(array) / int(rate), "the array given")
    return array[round(start * rate) : round(end * rate)], int(rate)


def as_array(samples: Any) -> np.ndarray:
    """Make an array of samples: numbers in lists, an array, or a tensor of torch on any device.

    Raises:
        AudioError: they are none.
    """
    try:
        return np.asarray(samples.detach().cpu() if hasattr(samples, "detach") else samples)
    except (ValueError, TypeError) as error:  # nested lists of unequal length, a tensor of bfloat16
        raise AudioError(f"Audio came with an array that is not one: {str(error).rstrip('.')}.") from error
