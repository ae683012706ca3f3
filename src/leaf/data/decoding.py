"""Decode recordings, from files or bytes to samples, and refuse those that hold less or more than they state.

libsndfile reads what is not compressed, FLAC and Ogg; FFmpeg (PyAV) reads MP3, AAC, M4A and WebM. libsndfile guesses
the length of an MP3 without a table of contents from its first frame, and stops there. FFmpeg is told the container by
its first bytes: so a playlist that calls itself a recording opens no other file.
"""

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any, BinaryIO

import numpy as np
import soundfile

from leaf.data.containers import fault_of_mp4, fault_of_ogg, lost_end_of_flac, second_flac
from leaf.data.stretches import bounds
from leaf.errors import AudioError

TOLERANCE = 0.01  # share of the stated length by which a recording may differ from it
_PADDING = 4  # frames of its codec that an encoder may add at both ends together
_HEAD = 200  # bytes that tell containers apart
_CONTENTS = (b"Xing", b"Info", b"VBRI")  # how the table of contents of an MP3 begins, which has its true length
_LIBSNDFILE = (b"RIFF", b"RF64", b"FORM", b"OggS")  # how files begin that may have a tag before them
_UNKNOWN_BYTES = 0x7FFF_0000  # sizes from here on are written to pipes, where the size is not known
# What libsndfile notes of a chunk of samples, or of a file, that ends before its stated size.
_CUT = re.compile(r"^\s*(?:data|SSND|BODY|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)


@dataclass(frozen=True)
class Encoded:
    """A stretch of an encoded recording.

    Attributes:
        path: its file; None where it is bytes.
        data: its bytes.
        offset: where the stretch begins, in seconds.
        duration: how long it is, in seconds; None is to the end.
    """

    path: str | None = None
    data: bytes | None = None
    offset: float = 0.0
    duration: float | None = None

    @property
    def name(self) -> str:
        """Name it as the middle of a sentence does."""
        return "the audio in the table" if self.path is None else f"the audio file {self.path}"

    @property
    def source(self) -> str:
        """Identify what is heard, wherever it is written: the file, or the hash of the bytes, and the stretch."""
        whole = f"sha256:{sha256(self.data or b'').hexdigest()}" if self.path is None else os.path.abspath(self.path)
        if not self.offset and self.duration is None:
            return whole
        return f"{whole}#{self.offset}-{'' if self.duration is None else self.offset + self.duration}"

    def open(self) -> BinaryIO:
        """Open the encoded bytes."""
        return io.BytesIO(self.data or b"") if self.path is None else open(self.path, "rb")

    def bounds(self, seconds: float) -> tuple[float, float]:
        """Compute start and end of the stretch, where the whole recording lasts so many seconds.

        Raises:
            AudioError: it is not inside.
        """
        return bounds(self.offset, self.duration, seconds, self.name)


@dataclass(frozen=True)
class Header:
    """What a recording states of itself.

    Attributes:
        seconds: its length; of compressed audio that states none, counted from its packets.
        rate: samples a second.
        channels: how many.
        frame: seconds of one frame of its codec; 0 where it has none.
        lossless: whether its samples are those that were encoded.
    """

    seconds: float
    rate: int
    channels: int
    frame: float = 0.0
    lossless: bool = True

    def refuse_other(self, seconds: float, sound: Encoded) -> None:
        """Refuse a recording that holds so many seconds where they are not those stated.

        Raises:
            AudioError: they are fewer by more than 1 % and a frame, or more by 1 % and what an encoder pads.
        """
        fewer, more = (max(TOLERANCE * self.seconds, count * self.frame, 1 / self.rate) for count in (1, _PADDING))
        if not -fewer <= seconds - self.seconds <= more:
            raise AudioError(
                f"{_sentence(sound.name)} states {self.seconds:.2f} s and holds {seconds:.2f} s: it is cut off or "
                "damaged. Copy or export it again."
            )


def read_header(sound: Encoded) -> Header:
    """Read what the whole recording states; nothing is decoded. The packets of compressed audio are counted.

    Raises:
        AudioError: it cannot be read, or has fewer packets than it states.
    """
    if sound.path is None:
        return _read_header(sound)
    try:
        file = os.stat(sound.path)
    except (OSError, ValueError) as error:
        raise _unreadable(sound, error) from error
    return _header_of_file(sound.path, file.st_mtime_ns, file.st_size)


@lru_cache(maxsize=2**16)  # a joined utterance has the recordings of many others
def _header_of_file(path: str, _changed: int, _size: int) -> Header:
    return _read_header(Encoded(path))


def _read_header(sound: Encoded) -> Header:
    container = _container(sound)
    if container is None:
        with _soundfile(sound) as file:
            if file.format != "MP3":
                header = _stated(file, sound)
                if file.format == "FLAC":
                    _refuse_fault(sound, lost_end_of_flac)
                return header
        container = "mp3"
    if container == "mov":
        _refuse_fault(sound, fault_of_mp4)
    with _stream(sound, container) as (opened, stream):
        counted = sum(packet.duration or 0 for packet in opened.demux(stream)) * float(stream.time_base)
        return _counted(sound, opened, stream, counted, container)


def decode(sound: Encoded) -> tuple[np.ndarray, int]:
    """Decode a stretch to float32 samples (samples, channels) and its sampling rate.

    Raises:
        AudioError: it cannot be read, is not as long as it states, or is not inside the recording.
    """
    container = _container(sound)
    if container is None:
        with _soundfile(sound) as file:
            if file.format != "MP3":
                return _read(file, sound)
        container = "mp3"
    return _decode_packets(sound, container)


# -- libsndfile --------------------------------------------------------------------------------------------------------
@contextmanager
def _soundfile(sound: Encoded) -> Iterator[soundfile.SoundFile]:
    try:
        by_name = None if _head(sound)[0] else sound.path
        with soundfile.SoundFile(_untagged(sound) if by_name is None else by_name) as file:
            yield file
    except (soundfile.LibsndfileError, OSError, TypeError, ValueError) as error:
        # TypeError: a name that ends in .raw. ValueError: more samples than an array has room for. An AudioError is a
        # ValueError, too.
        raise error if isinstance(error, AudioError) else _unreadable(sound, error) from error
    except MemoryError as error:
        raise AudioError(
            f"{_sentence(sound.name)} is not what its header says, or does not fit into memory: {error}."
        ) from error


def _stated(file: soundfile.SoundFile, sound: Encoded) -> Header:
    """Read the header that libsndfile has opened.

    Raises:
        AudioError: the file ends before its samples do, or goes on behind them.
    """
    lossless = file.format != "OGG"
    header = Header(file.frames / max(file.samplerate, 1), max(file.samplerate, 1), file.channels, lossless=lossless)
    for stated, held in _CUT.findall(file.extra_info):
        if 0 < int(stated) < _UNKNOWN_BYTES:
            longer = header.seconds * int(stated) / max(int(held), 1)
            Header(longer, header.rate, header.channels).refuse_other(header.seconds, sound)
    if file.format == "OGG":
        _refuse_fault(sound, fault_of_ogg)
    return header


def _read(file: soundfile.SoundFile, sound: Encoded) -> tuple[np.ndarray, int]:
    header = _stated(file, sound)
    if file.format == "FLAC":
        _refuse_fault(sound, second_flac)
    start, end = sound.bounds(header.seconds)
    file.seek(round(start * header.rate))
    frames = round(end * header.rate) - round(start * header.rate)
    wave = file.read(frames, dtype="float32", always_2d=True)
    Header(frames / header.rate, header.rate, 1).refuse_other(len(wave) / header.rate, sound)
    return wave, header.rate


def _refuse_fault(sound: Encoded, fault_of: Callable[[BinaryIO], str | None]) -> None:
    with _untagged(sound) as file:
        fault = fault_of(file)
    if fault is not None:
        raise AudioError(f"{_sentence(sound.name)} {fault}")


def _untagged(sound: Encoded) -> BinaryIO:
    """Open the bytes behind the tags, for libsndfile counts from the beginning of the file."""
    begins, _ = _head(sound)
    if not begins:
        return sound.open()
    with sound.open() as file:
        file.seek(begins)
        return io.BytesIO(file.read())


# -- FFmpeg ------------------------------------------------------------------------------------------------------------
def _container(sound: Encoded) -> str | None:
    """Tell from its first bytes which of FFmpeg's readers takes a recording; None for libsndfile."""
    try:
        begins, head = _head(sound)
    except OSError as error:
        raise _unreadable(sound, error) from error
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"):
        return "mov"
    if head[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    if head[:4] == b"fLaC":  # a stream of unknown length, as it is written to a pipe
        return None if int.from_bytes(head[18:26], "big") & (2**36 - 1) else "flac"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x18 != 0x08:
        return "mp3" if head[1] & 0x06 else "aac"
    # FFmpeg looks for the first frame of an MP3 behind what fills a tag up.
    return "mp3" if begins and head[:4] not in _LIBSNDFILE else None


@contextmanager
def _stream(sound: Encoded, container: str) -> Iterator[tuple[Any, Any]]:
    """Open a recording with FFmpeg, and give its first audio stream."""
    import av  # slow to import, and most recordings are read without it
    from av.error import FFmpegError

    try:
        with sound.open() as file, av.open(file, format=container, metadata_errors="ignore") as opened:
            if not opened.streams.audio:
                raise AudioError(f"{_sentence(sound.name)} has no audio in it. Give a recording.")
            yield opened, opened.streams.audio[0]
    except (FFmpegError, OSError, ValueError) as error:  # ValueError: the rate changes on the way
        raise error if isinstance(error, AudioError) else _unreadable(sound, error) from error


def _counted(sound: Encoded, opened: Any, stream: Any, counted: float, container: str) -> Header:
    """Make the header of a recording whose packets last so long, once they are all there."""
    codec = stream.codec_context
    stated: float | None = None
    if container == "mov" and stream.duration:
        stated = float(stream.duration * stream.time_base)
    elif container == "matroska" and opened.duration:
        stated = opened.duration / 1e6
    elif container == "mp3" and stream.duration and any(mark in _head(sound)[1] for mark in _CONTENTS):
        stated = float(stream.duration * stream.time_base)
    rate = codec.rate or 1
    frame = (codec.frame_size or 1024) / rate
    header = Header(stated or counted, rate, codec.channels, frame, lossless=container == "flac")
    if counted:
        header.refuse_other(counted, sound)
    return header


def _head(sound: Encoded) -> tuple[int, bytes]:
    """Find where a recording begins, behind tags of title and pictures, and read its first bytes."""
    begins = 0
    with sound.open() as file:
        while (head := file.read(10))[:3] == b"ID3" and len(head) == 10:
            size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=True))
            begins += 10 + size + (10 if head[5] & 0x10 else 0)
            file.seek(begins)
        file.seek(begins)
        return begins, file.read(_HEAD)


def _decode_packets(sound: Encoded, container: str) -> tuple[np.ndarray, int]:
    """Decode with FFmpeg, up to the end of the stretch. What comes behind a damaged packet would be heard too early."""
    import av
    from av.error import InvalidDataError

    parts: list[np.ndarray] = []
    rate, done, counted, finished, damaged = 0, 0, 0, True, False
    if container == "mov":
        _refuse_fault(sound, fault_of_mp4)
    with _stream(sound, container) as (opened, stream):
        resampler = av.AudioResampler(format="fltp")
        for packet in opened.demux(stream):
            counted += packet.duration or 0
            try:
                frames = packet.decode()
            except InvalidDataError:  # a damaged packet, or a tag behind the last one
                damaged = True
                continue
            if damaged and frames and packet.size:
                raise AudioError(
                    f"{_sentence(sound.name)} is damaged after {done / max(rate, 1):.2f} s: a packet cannot be "
                    "decoded. Copy or export it again."
                )
            for piece in (piece for frame in frames for piece in resampler.resample(frame)):
                parts.append(piece.to_ndarray())
                rate, done = piece.sample_rate, done + piece.samples
            if sound.duration is not None and done >= (sound.offset + sound.duration) * rate > 0:
                finished = False
                break
        if not parts:
            raise AudioError(f"{_sentence(sound.name)} cannot be read: none of it can be decoded. Export it again.")
        if finished:
            header = _counted(sound, opened, stream, counted * float(stream.time_base), container)
            header.refuse_other(done / rate, sound)
    wave = np.concatenate(parts, axis=1).T
    start, end = sound.bounds(done / rate)
    return np.ascontiguousarray(wave[round(start * rate) : round(end * rate)]), rate


# -- words -------------------------------------------------------------------------------------------------------------
def _unreadable(sound: Encoded, error: Exception) -> AudioError:
    reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    reason = " ".join(reason.split()).rstrip(". ") or "it is cut off or damaged"
    return AudioError(f"{_sentence(sound.name)} cannot be read: {reason}. Give wav, flac, ogg, mp3 or m4a.")


def _sentence(name: str) -> str:
    return name[0].upper() + name[1:]
