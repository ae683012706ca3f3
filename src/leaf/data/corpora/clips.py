"""Audio of a corpus: refer to files that can stay as they are, write FLAC where they must be cut or unpacked."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from leaf.data.audio import audio_seconds, load_audio
from leaf.data.corpora.items import Clip
from leaf.errors import AudioError, ConfigError
from leaf.files import replace_file

RATE = 16000  # Hz, of what is written
_CONTAINERS = (".m4a", ".mp4", ".aac", ".webm")  # read with PyAV; libsndfile cannot


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
    if all(clip.whole and _suffix(clip) not in _CONTAINERS for clip in clips):
        paths = [str(Path(clip.path).absolute()) for clip in clips if clip.path is not None]
        if decode:
            return paths, len(load_audio(paths, sampling_rate=RATE)) / RATE
        return paths, audio_seconds(paths)
    heard = "\n".join(clip.source for clip in clips)  # names the file, so that items on the same clips share it
    target = folder / f"{hashlib.sha256(heard.encode()).hexdigest()[:32]}.flac"
    if target.is_file():
        return [str(target.absolute())], audio_seconds([str(target)])
    parts = [load_audio(_decoded(clip), sampling_rate=RATE) for clip in clips]
    wave = np.concatenate(parts)
    encoded = io.BytesIO()
    soundfile.write(encoded, wave, RATE, format="FLAC", subtype="PCM_16")
    replace_file(target, lambda partial: partial.write_bytes(encoded.getvalue()))
    return [str(target.absolute())], len(wave) / RATE


def _suffix(clip: Clip) -> str:
    return "" if clip.path is None else clip.path.suffix.lower()


def _decoded(clip: Clip) -> dict:
    """Decode a clip to {"array", "sampling_rate"}."""
    if clip.path is not None and not clip.path.is_file():
        raise AudioError(f"The audio file {clip.path} does not exist.")
    if _suffix(clip) in _CONTAINERS:
        return _with_av(clip)
    source = io.BytesIO(clip.data or b"") if clip.path is None else clip.path
    name = "the table's audio" if clip.path is None else f"the audio file {clip.path}"
    try:
        with soundfile.SoundFile(source) as file:
            rate = file.samplerate
            file.seek(min(round(clip.start * rate), file.frames))
            frames = -1 if clip.end is None else max(round((clip.end - clip.start) * rate), 0)
            wave = file.read(frames, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{name[0].upper()}{name[1:]} cannot be read: {error}.") from error
    _check_complete(clip, len(wave) / rate, name)
    return {"array": wave, "sampling_rate": rate}


def _with_av(clip: Clip) -> dict:
    """Decode AAC and similar formats with PyAV, from the start of the file to the end of the clip."""
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise ConfigError(
            f"{clip.path} is {_suffix(clip)} audio, which needs the package av: pip install 'leaf-speech[corpora]'."
        ) from error
    parts, rate = [], 0
    try:
        with av.open(str(clip.path)) as container:
            rate = int(container.streams.audio[0].rate)
            resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
            done = 0
            for frame in container.decode(audio=0):
                for piece in resampler.resample(frame):
                    parts.append(piece.to_ndarray()[0])
                    done += parts[-1].shape[0]
                if clip.end is not None and done >= clip.end * rate:
                    break
    except (FFmpegError, IndexError, OSError) as error:
        raise AudioError(f"The audio file {clip.path} cannot be read: {error}.") from error
    whole = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    end = len(whole) if clip.end is None else round(clip.end * rate)
    wave = whole[round(clip.start * rate) : end]
    _check_complete(clip, len(wave) / max(rate, 1), f"the audio file {clip.path}")
    return {"array": wave, "sampling_rate": rate}


def _check_complete(clip: Clip, seconds: float, name: str) -> None:
    """Refuse a cut that came out shorter than asked for: the file ends before the clip does."""
    if clip.end is not None and seconds < clip.end - clip.start - 0.1:
        raise AudioError(
            f"A clip should go from {clip.start} to {clip.end} s of {name}, which has only {seconds:.2f} s of it."
        )
