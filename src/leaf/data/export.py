"""Write rows as another framework reads them: Parquet for verl, with messages, audio and reference in every row.

The audio is written as the row hears it: files joined, the stretch cut out, mono, 16 kHz, as FLAC. So the other
framework needs none of leaf's columns for that, and the file can be carried to another machine.
"""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from leaf.data.recordings import hear, row_seconds
from leaf.data.rows import AUDIO_PLACE, AUDIO_TAG, row_name
from leaf.errors import DataError
from leaf.files import replace_file
from leaf.text import fold_whitespace

RATE = 16000  # Hz; every speech model that leaf knows takes it
HOURS = 6.0  # of audio in one file: at most 1 GiB
_BATCH = 256  # rows that are in memory together
_BITS = 24  # of a sample; FLAC takes no more, and samples of 16 bits stay what they are
_AUDIO_COLUMNS = ("audio", "audio_sources", "offset", "duration")  # what they say is in the audio that is written
# verl cuts a message at its own tags and renders it by the model's template, so a prompt may hold neither.
_TAGS = (AUDIO_TAG, re.compile(r"<image>|<video>|<\|[^|<>\s]+\|>|\[/?INST\]"))


def export_for_verl(
    dataset: Any,
    source: str,
    split: str,
    target: Path,
    *,
    hours: float = HOURS,
    tick: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Write a split as Parquet that verl's data sets read; return the files, several where the audio is long.

    A row has `data_source`, `prompt` (one message of the user, with `<audio>` before the instruction or where that has
    `{audio}`), `audios` (one FLAC), `reward_model.ground_truth` (the reference, null where there is none) and
    `extra_info`: `index`, `split` and `columns`, which are the columns of the row without those of the audio.

    Args:
        dataset: of `leaf.data.load`.
        source: what the rows are called in `data_source`.
        split: theirs.
        target: a file that ends in .parquet. Several are named as train-00000-of-00003.parquet.
        hours: of audio in one file.
        tick: is called after every row.

    Raises:
        AudioError: a recording cannot be used; the row is named.
        DataError: a prompt cannot be given to verl, or the target has another suffix.
    """
    if target.suffix != ".parquet":
        raise DataError(f"The file to write is {target}; give a name that ends in .parquet.")
    if not hours > 0:
        raise DataError(f"hours is {hours}; give a number above 0.")
    rows = list(dataset)
    for row in rows:
        check_prompt(row)
    schema = _schema(dataset.features.arrow_schema)
    parts = list(_parts([row_seconds(row, rate=RATE) for row in rows], hours * 3600))
    files = []
    for number, (start, end) in enumerate(parts):
        name = target.name if len(parts) == 1 else f"{target.stem}-{number:05d}-of-{len(parts):05d}.parquet"
        file = target.with_name(name)
        replace_file(file, lambda partial, a=start, b=end: _write(partial, schema, rows, (a, b), source, split, tick))
        files.append(file)
    return files


def check_prompt(row: Mapping[str, Any]) -> None:
    """Refuse a prompt that verl would cut or render twice.

    Raises:
        DataError: the prompt is no plain text, or holds a tag.
    """
    prompt = row["prompt"]
    if not isinstance(prompt, str):
        raise DataError(f"The prompt of {row_name(row)!r} is a list of messages; the export takes plain instructions.")
    if prompt.count(AUDIO_PLACE) > 1:
        raise DataError(f"The prompt of {row_name(row)!r} has {AUDIO_PLACE} more than once; a row has one recording.")
    for tag in _TAGS:
        if found := tag.search(prompt):
            raise DataError(
                f"The prompt of {row_name(row)!r} holds {found[0]}. verl places the audio and applies the chat "
                "template itself: give the plain instruction."
            )


def encoded_audio(wave: np.ndarray) -> bytes:
    """Encode samples in [−1, 1] as FLAC of 24 bits; samples that came from 16 bits come back to the bit."""
    scale = 2 ** (_BITS - 1)
    samples = np.clip(np.rint(wave.astype(np.float64) * scale), -scale, scale - 1).astype(np.int32)
    file = io.BytesIO()
    soundfile.write(file, samples << (32 - _BITS), RATE, format="FLAC", subtype=f"PCM_{_BITS}")
    return file.getvalue()


def _schema(columns: pa.Schema) -> pa.Schema:
    """Name the types of a file's columns, the same in every part: in one part a column may be empty."""
    kept = [column for column in columns if column.name not in _AUDIO_COLUMNS]
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    return pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", pa.list_(message)),
            ("audios", pa.list_(pa.struct([("bytes", pa.binary())]))),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            ("extra_info", pa.struct([("index", pa.int64()), ("split", pa.string()), ("columns", pa.struct(kept))])),
        ]
    )


def _parts(seconds: Sequence[float], most: float) -> Iterator[tuple[int, int]]:
    """Yield the first row of every file and the one behind its last; a file has at least one row."""
    start, total = 0, 0.0
    for row, length in enumerate(seconds):
        if row > start and total + length > most:
            yield start, row
            start, total = row, 0.0
        total += length
    yield start, len(seconds)


def _write(
    file: Path,
    schema: pa.Schema,
    rows: Sequence[Mapping[str, Any]],
    part: tuple[int, int],
    source: str,
    split: str,
    tick: Callable[[], None],
) -> None:
    with pq.ParquetWriter(file, schema) as writer:
        for start in range(*part, _BATCH):
            records = []
            for index in range(start, min(start + _BATCH, part[1])):
                records.append(_record(rows[index], index, source, split))
                tick()
            try:
                writer.write_batch(pa.RecordBatch.from_pylist(records, schema=schema))
            except (pa.ArrowException, OverflowError) as error:
                reason = fold_whitespace(str(error))[:300]
                raise DataError(f"The rows from {start} on cannot be written as Parquet: {reason}.") from error


def _placed(prompt: str) -> str:
    """Put verl's tag where the prompt wants the audio, or else before it."""
    return prompt.replace(AUDIO_PLACE, "<audio>") if AUDIO_PLACE in prompt else f"<audio>{prompt}"


def _record(row: Mapping[str, Any], index: int, source: str, split: str) -> dict[str, Any]:
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": _placed(row["prompt"])}],
        "audios": [{"bytes": encoded_audio(hear(row, rate=RATE))}],
        "reward_model": {"style": "rule", "ground_truth": row.get("reference")},
        "extra_info": {
            "index": index,
            "split": split,
            "columns": {name: value for name, value in row.items() if name not in _AUDIO_COLUMNS},
        },
    }
