"""Audio of a corpus: refer to files that can stay as they are, write FLAC where they must be cut or unpacked."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from leaf.data.audio import audio_seconds, load_audio
from leaf.data.corpora.items import Clip
from leaf.data.stretches import SLACK
from leaf.files import replace_file

RATE = 16000  # Hz, of what is written


def place(clips: Sequence[Clip], folder: Path, *, decode: bool = False) -> tuple[list[str], float]:
    """Find or write an item's audio: absolute paths, and its length in seconds.

    Args:
        clips: what is heard, in order.
        folder: where cut or unpacked audio is written, as 16 kHz mono FLAC, once for all items on the same clips.
        decode: decode referenced files too, instead of trusting their headers.

    Raises:
        AudioError: audio that is missing, unreadable, empty, silent or not finite.
        RunError: the file cannot be written.
    """
    clips = [_without_needless_end(clip) for clip in clips]
    if all(clip.whole for clip in clips):
        paths = [str(Path(clip.path).absolute()) for clip in clips if clip.path is not None]
        if decode:
            return paths, len(load_audio(paths, sampling_rate=RATE)) / RATE
        return paths, audio_seconds(paths)
    heard = "\n".join(clip.source for clip in clips)  # names the file, so that items on the same clips share it
    target = folder / f"{hashlib.sha256(heard.encode()).hexdigest()[:32]}.flac"
    if target.is_file():
        return [str(target.absolute())], audio_seconds([str(target)])
    parts = [load_audio(_audio(clip), sampling_rate=RATE) for clip in clips]
    wave = np.concatenate(parts)
    encoded = io.BytesIO()
    soundfile.write(encoded, wave, RATE, format="FLAC", subtype="PCM_16")
    replace_file(target, lambda partial: partial.write_bytes(encoded.getvalue()))
    return [str(target.absolute())], len(wave) / RATE


def _without_needless_end(clip: Clip) -> Clip:
    """Make a clip that ends where its file does the whole file, so that nothing need be cut."""
    if clip.path is None or clip.start or clip.end is None:
        return clip
    return Clip(clip.path) if abs(audio_seconds(clip.path) - clip.end) <= SLACK else clip


def _audio(clip: Clip) -> dict[str, Any]:
    """Write a clip as `load_audio` takes it."""
    path = None if clip.path is None else str(clip.path.absolute())
    return {"path": path, "bytes": clip.data, "offset": clip.start, "duration": clip.seconds or None}
