"""The recording of a row: where it is, which stretch of it is heard, and whether it is as long as the row says."""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import numpy as np

from leaf.data.audio import audio_seconds, encoded, load_audio, samples_and_rate
from leaf.data.decoding import TOLERANCE
from leaf.data.rows import Example, row_name, stated_seconds
from leaf.data.stretches import SLACK, STRETCH, heard
from leaf.errors import AudioError, DataError, ModelError, shown

_SOURCE = re.compile(r"(?P<whole>.+)#(?P<start>\d[\d.]*(?:e-?\d+)?)-(?P<end>\d[\d.]*(?:e-?\d+)?)?", re.DOTALL)


def audio_of(example: Example) -> Any:
    """Find a row's audio: its column, or the audio part of its messages; the stretch that `offset` and `duration` name.

    Raises:
        AudioError: offset or duration is no number of seconds, or there are several files.
        DataError, ModelError: the row has no prompt, or not exactly one recording.
    """
    prompt = example.get("prompt")
    if prompt is None:
        raise DataError(f"A row has no prompt; it has the columns {shown(sorted(map(str, example)))}.")
    if example.get("audio") is not None:
        return heard(plain_audio(example["audio"]), example)
    found = [
        part[key] for part in _audio_parts(prompt) for key in ("audio", "path", "url") if part.get(key) is not None
    ]
    if len(found) != 1:
        raise ModelError(
            f"The row {row_name(example)!r} carries {len(found)} recordings; give it one, as `audio` or in the audio "
            "part of its messages."
        )
    return heard(plain_audio(found[0]), example)


def plain_audio(audio: Any) -> Any:
    """Turn an AudioDecoder, as `datasets` and torchcodec give it, and encoded bytes into what `load_audio` takes."""
    if isinstance(audio, bytes | bytearray):
        return {"bytes": bytes(audio)}
    if not hasattr(audio, "get_all_samples"):
        return audio
    samples = audio.get_all_samples()  # (channels, samples)
    return {"array": samples.data.cpu().numpy().T, "sampling_rate": samples.sample_rate}


def _audio_parts(prompt: Any) -> list[Mapping[str, Any]]:
    """List the audio parts of a prompt's messages; a text has none, and what is no message is refused elsewhere."""
    messages = prompt if isinstance(prompt, list | tuple) else ()
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, list | tuple) for part in content]
    return [part for part in parts if isinstance(part, Mapping) and part.get("type") == "audio"]


def with_audio(example: Example, audio: Any) -> dict[str, Any]:
    """Put another recording into a row, without what its columns say of the old one."""
    return {**example, "audio": audio, "seconds": None, **dict.fromkeys(STRETCH)}


def sources_of(row: Mapping[str, Any]) -> list[str]:
    """List what a row's recordings are known by.

    Of a prepared corpus that is where it took them from. Else it is the files, with the stretch that is heard, or the
    hash of what is in the row itself.
    """
    sources = row.get("audio_sources")
    if sources:
        return [sources] if isinstance(sources, str) else list(sources)
    return names_of(audio_of(row))


def stretch_of_source(source: str) -> tuple[str, float, float]:
    """Take apart what `Encoded.source` put together: the recording, and where a stretch of it begins and ends.

    A stretch to the end, as a whole recording is, has an infinite end.
    """
    found = _SOURCE.fullmatch(source)
    if found is None:
        return source, 0.0, math.inf
    return found["whole"], float(found["start"]), float(found["end"] or math.inf)


def names_of(audio: Any) -> list[str]:
    """Name every recording of a row's audio, so that the same recordings have the same names.

    Raises:
        AudioError: it is no audio.
    """
    if found := encoded(audio):
        return [sound.source for sound in found]
    array, rate = samples_and_rate(audio)
    wave = np.ascontiguousarray(array)
    return [f"sha256:{sha256(f'{rate} {wave.dtype} {wave.shape} '.encode() + wave.tobytes()).hexdigest()}"]


def row_seconds(example: Example, *, rate: int = 16000, longest: float = math.inf) -> float:
    """Read from headers how long a row's audio is, and hold it against the row's `seconds`; nothing is decoded.

    Args:
        example: the row.
        rate: of the model's audio, in Hz; one of its samples may be lost in resampling.
        longest: seconds that the model takes.

    Raises:
        AudioError: a file is missing or is no audio, it is too long, or the row says another length; the row is named.
        DataError, ModelError: see `audio_of`.
    """
    with named(example):
        seconds = audio_seconds(audio_of(example))
        if seconds - 1 / rate > longest:
            raise _too_long(seconds, longest)
        check_stated(example, seconds)
    return seconds


def hear(example: Example, *, rate: int = 16000, longest: float = math.inf) -> np.ndarray:
    """Load a row's audio (samples,) as a model takes it; what is too long is refused before it is decoded.

    Args and errors are those of `row_seconds`, and those of `load_audio`.
    """
    row_seconds(example, rate=rate, longest=longest)
    with named(example):
        wave = load_audio(audio_of(example), sampling_rate=rate)
        if len(wave) > longest * rate:  # a header may state less than there is
            raise _too_long(len(wave) / rate, longest)
        check_stated(example, len(wave) / rate)
    return wave


def _too_long(seconds: float, longest: float) -> AudioError:
    return AudioError(
        f"The audio lasts {seconds:.1f} s; this model takes at most {longest:g} s and would cut the rest. Shorten it "
        "or leave the row out."
    )


def check_stated(example: Example, seconds: float) -> None:
    """Refuse a row whose column `seconds` differs from the length of its audio by more than 1 %.

    Raises:
        AudioError: it does.
    """
    stated = stated_seconds(example)
    if stated and abs(stated - seconds) > max(TOLERANCE * stated, SLACK):
        raise AudioError(
            f"The audio lasts {seconds:.2f} s and the row states {stated:g} (seconds): a wrong file, one that is cut "
            "off, or another unit. Correct one of them, or leave the column out."
        )


@contextmanager
def named(example: Example) -> Iterator[None]:
    """Put the row's name in front of what is wrong with its audio."""
    try:
        yield
    except AudioError as error:
        raise AudioError(f"Row {row_name(example)!r}: {error}") from error
