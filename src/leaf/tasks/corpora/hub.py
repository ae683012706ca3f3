"""Any data set that the library `datasets` reads: a folder of its kinds of files, by column names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from leaf.errors import DataError
from leaf.tasks.corpora.items import Clip, Item, Options, Refusal

_SPLITS = {"train": "train", "training": "train", "validation": "validation", "dev": "validation", "test": "test"}
_ROWS_AT_ONCE = 16
# Files of rows that lie in a folder, by the builder that reads them. Audio files beside them are what rows name.
_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow"}
_OURS = ("prompt", "audio", "reference", "recording", "text")


def items(source: Path, options: Options) -> Iterator[Item | Refusal]:
    """Yield the rows of every split; publishers' validation and test splits are kept, a lone split is cut by recording.

    `options.columns` maps prompt, audio, reference, and where there are any recording and text, to the data set's
    names. A prompt that is no column is taken as it stands, for every row.
    """
    from datasets import load_dataset

    unknown = sorted(set(options.columns) - set(_OURS))
    if unknown:
        raise DataError(f"--columns maps {', '.join(unknown)}; allowed are {', '.join(_OURS)}.")
    names = {ours: options.columns.get(ours, ours) for ours in _OURS}
    try:
        splits = load_dataset(*_files(source), streaming=True)
    except (OSError, ValueError) as error:
        raise DataError(f"datasets cannot read {source}: {error}") from error
    alone = len(splits) == 1
    for key, data in splits.items():
        split = str(key)
        if split not in _SPLITS and not alone:
            raise DataError(f"{source} has the split {split!r}; allowed are {', '.join(_SPLITS)}.")
        # As Arrow tables: rows as objects would pass through the library's own audio decoder, another package.
        tables: Any = data.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE)
        for number, row in enumerate(row for table in tables for row in table.to_pylist()):
            name = f"{split}-{number}"
            missing = [names[ours] for ours in ("audio", "reference") if names[ours] not in row]
            if missing:
                raise DataError(
                    f"Row {number} of split {split} has no column {', '.join(missing)}; it has {', '.join(row)}. "
                    "Map names with --columns."
                )
            clip = _clip(row[names["audio"]], source)
            if clip is None:
                yield Refusal(name, "audio missing")
                continue
            recording = row.get(names["recording"]) or (str(clip.path) if clip.path is not None else name)
            yield Item(
                id=name,
                audio=(clip,),
                prompt=str(row[names["prompt"]] if names["prompt"] in row else options.columns.get("prompt", "")),
                reference=str(row[names["reference"]] or ""),
                recording=str(recording),
                split=None if alone else _SPLITS[split],
                text=str(row.get(names["text"]) or ""),
            )


def _files(source: Path) -> tuple[Any, ...]:
    """Return the arguments of `load_dataset`: a hub id, or builder, configuration, folder and files by split."""
    if not source.is_dir():
        return (str(source),)
    for suffix, builder in _BUILDERS.items():
        found = sorted(path for folder in (source, source / "data") for path in folder.glob(f"*{suffix}"))
        if found:
            files: dict[str, list[str]] = {}
            for path in found:
                begins = next((name for name in _SPLITS if path.stem.lower().startswith(name)), "train")
                files.setdefault(_SPLITS[begins], []).append(str(path))
            return builder, None, None, files
    raise DataError(
        f"{source} holds no file of rows ({', '.join(_BUILDERS)}), in itself or in data/. Put a table there whose rows "
        "name the audio files."
    )


def _clip(audio: object, source: Path) -> Clip | None:
    """Return the clip of an audio cell: bytes, or a path that counts from the source."""
    if isinstance(audio, dict):
        if audio.get("bytes"):
            return Clip(data=audio["bytes"])
        audio = audio.get("path")
    return Clip(source / audio) if isinstance(audio, str) and audio else None
