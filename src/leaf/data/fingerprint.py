"""A fingerprint of rows: equal rows have equal ones on every machine, whatever folder their recordings are in."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from leaf.data.audio import as_array, encoded
from leaf.data.decoding import Encoded
from leaf.data.recordings import audio_of, names_of
from leaf.data.stretches import STRETCH
from leaf.errors import AudioError, DataError, ModelError
from leaf.files import file_sha256

_TEXTS = ("id", "prompt", "reference", "references", "reference_language", "text", "kind", "utterance", *STRETCH)
_NAMES_OF_FILES = ("Value('string')", "List(Value('string'))")  # features of an audio column without sound


def rows_fingerprint(rows: Any) -> str:
    """Compute the SHA-256 of the rows' number, texts, recordings' names and stretches, in hex; no recording is opened.

    Of a sequence that makes its rows when they are read, only the number counts.
    """
    digest = hashlib.sha256(str(len(rows)).encode())
    written = json.JSONEncoder(ensure_ascii=False, default=str).encode  # json.dumps makes one for each row
    for row in _texts(rows):
        digest.update(written(row).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def recordings_checksum(rows: Sequence[Mapping[str, Any]]) -> str:
    """Compute the SHA-256 of what is heard in each row, in hex: files by what they hold and the stretch of them."""

    @cache
    def of_file(path: str) -> str:
        try:
            return file_sha256(Path(path))
        except (OSError, ValueError) as error:
            return type(error).__name__  # no content; who decodes the row says so

    def content(sound: Encoded) -> str:
        return hashlib.sha256(sound.data or b"").hexdigest() if sound.path is None else of_file(sound.path)

    digest = hashlib.sha256()
    for row in rows:
        try:
            audio = audio_of(row)
            heard = [[content(one), one.offset, one.duration] for one in encoded(audio)] or names_of(audio)
        except (AudioError, DataError, ModelError) as error:  # no audio; likewise
            heard = [type(error).__name__]
        digest.update(json.dumps(heard).encode())
    return digest.hexdigest()


def _texts(rows: Any) -> Iterator[list[Any]]:
    columns = getattr(rows, "column_names", None)
    if columns is not None:
        features = getattr(rows, "features", None) or {}
        names = [name for name in columns if name in _TEXTS]
        named = [_file_names(audio) for audio in rows["audio"]] if str(features.get("audio")) in _NAMES_OF_FILES else []
        for number, values in enumerate(zip(*(_text_column(name, rows[name]) for name in names), strict=True)):
            yield [*values, named[number] if named else None]
    elif isinstance(rows, list | tuple):
        for row in rows:
            texts = (_text_column(name, [row.get(name)])[0] for name in _TEXTS)
            yield [*texts, _file_names(row.get("audio"))]


def _text_column(name: str, values: Sequence[Any]) -> Sequence[Any]:
    """Take a column of texts; an utterance may be the path of its recording, of which the folder does not count."""
    if name != "utterance":
        return values
    return [_file_names(value) if isinstance(value, str) else value for value in values]


def _file_names(audio: Any) -> Any:
    """Give the names of files without their folders; of samples, what tells them from others cheaply."""
    if isinstance(audio, str | Path):
        return Path(audio).name
    if isinstance(audio, list | tuple):
        return [_file_names(one) for one in audio]
    if isinstance(audio, Mapping) and audio.get("array") is not None:
        wave = as_array(audio["array"])
        return [wave.shape, wave[:: max(1, len(wave) // 64)].tolist()]
    return None
