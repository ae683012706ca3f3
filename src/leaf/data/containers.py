"""Containers whose decoders stop without a word: what ends too early, and what has another recording behind the first.

Each function looks at an open file and returns what is wrong with it, as the end of a sentence; None if nothing is.
"""

import io
import re
from typing import BinaryIO

import soundfile

_AGAIN = "Copy or export it again."
_SEVERAL = (
    "holds several recordings, one behind the other, and only the first would be heard. Cut them apart, or decode and "
    "join them."
)
_AT_ONCE = 2**16  # bytes; a page of Ogg has at most 65,307
_FLAC = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # how a FLAC file begins, with the block that every one has first


def lost_end_of_flac(file: BinaryIO) -> str | None:
    """Look at the last sample that a FLAC file states."""
    with soundfile.SoundFile(file) as opened:
        try:
            opened.seek(max(0, opened.frames - 1))
            there = not opened.frames or len(opened.read(1)) == 1
        except soundfile.LibsndfileError:
            there = False
    return None if there else f"has lost its end: it is cut off. {_AGAIN}"


def second_flac(file: BinaryIO) -> str | None:
    """Look for a second beginning in a FLAC file. That takes reading all of it: frames do not say how long they are."""
    file.seek(1)
    before = b""
    while some := file.read(_AT_ONCE):
        if _FLAC.search(before + some):
            return _SEVERAL
        before = some[-7:]
    return None


def fault_of_ogg(file: BinaryIO) -> str | None:
    """Walk over the pages of an Ogg file. It states no length, but its streams say where they begin and end."""
    size, at = file.seek(0, io.SEEK_END), 0
    begun: set[bytes] = set()
    inside = False  # behind the pages that begin streams: more of those begin another recording
    while at < size:
        file.seek(at)
        head = file.read(27)
        if head[:4] != b"OggS":
            if (at := _next_page(file, at + 1)) < 0:
                break
            continue
        lacing = file.read(head[26]) if len(head) == 27 else b""
        at += 27 + len(lacing) + sum(lacing)
        if len(head) < 27 or len(lacing) < head[26] or at > size:
            return f"ends inside a page: it is cut off. {_AGAIN}"
        begins, ends, stream = head[5] & 2, head[5] & 4, head[14:18]
        if begins and inside:
            return _SEVERAL
        begun |= {stream} if begins else set()
        begun -= {stream} if ends else set()
        inside = inside or not begins
    return f"has no last page: it is cut off. {_AGAIN}" if begun else None


def _next_page(file: BinaryIO, at: int) -> int:
    """Find where the next page begins; -1 where none does."""
    while True:
        file.seek(at)
        some = file.read(_AT_ONCE)
        if (found := some.find(b"OggS")) >= 0:
            return at + found
        if len(some) < _AT_ONCE:
            return -1
        at += len(some) - 3


def fault_of_mp4(file: BinaryIO) -> str | None:
    """Count the tables of contents of an MP4 file: FFmpeg reads the first and passes over what follows."""
    size, at, contents = file.seek(0, io.SEEK_END), 0, 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        contents += head[4:8] == b"moov"
        length = int.from_bytes(head[:4], "big")
        length = int.from_bytes(head[8:16], "big") if length == 1 else length
        if length < 8:  # 0: up to the end of the file
            break
        at += length
    return _SEVERAL if contents > 1 else None
