"""Tones, as arrays and as files."""

from pathlib import Path

import numpy as np
import soundfile


def tone(seconds=1.0, rate=16000, hz=220.0, level=0.3):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path: Path, seconds=1.0, rate=16000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, rate), rate, **options)
    return path
