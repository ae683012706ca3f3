"""Tones, as arrays and as files."""

import warnings
import zlib
from pathlib import Path

import av
import numpy as np
import soundfile


def tone(seconds=1.0, rate=16000, hz=220.0, level=0.3):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path: Path, seconds=1.0, rate=16000, **options):
    """Write a tone whose level is its file's own, for recordings of other names are not the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    level = 0.28 + 0.04 * zlib.crc32("/".join(path.parts[-4:]).encode()) / 2**32
    soundfile.write(path, tone(seconds, rate, level=level), rate, **options)
    return path


def aac(path, seconds):
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        container = av.open(str(path), "w")
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(seconds)[None], format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
        container.close()
