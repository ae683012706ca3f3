"""Read any data set that the library `datasets` reads, from the hub or a folder, by column names."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec

from leaf.data.corpora.items import Clip, Item, Options, Refusal
from leaf.data.manifest import SPLITS
from leaf.errors import DataError, did_you_mean

# Names of splits as publishers write them → ours.
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_LEFT_OUT = "none"
_SHARD = re.compile(r"[-_]\d+([-_]of[-_]\d+)?([-_][0-9a-f]{16})?$")  # train-00000-of-00004, with a hash in older sets
_ROWS_AT_ONCE = 16
# Suffixes of files with rows → the builder that reads them. Audio files beside them are what rows name.
_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow"}
_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # `datasets` writes them
_OURS = ("prompt", "audio", "reference", "recording", "text")


def items(source: Path, options: Options) -> Iterator[Item | Refusal]:
    """Yield the rows of every split. The publisher's splits are kept; a single split is cut by recording.

    `options.columns` maps prompt, audio and reference to the data set's names, and recording and text where it has
    them. A prompt that is no column is used as it is, for every row. `options.splits` maps the data set's splits to
    ours, or to none. Without a column for it, a recording is an audio file, known by its path or, in a table, by name
    or hash.
    """
    from datasets import load_dataset

    unknown = sorted(set(options.columns) - set(_OURS))
    if unknown:
        hint = did_you_mean(unknown[0], _OURS)
        raise DataError(f"--columns maps {', '.join(unknown)}.{hint} Allowed are {', '.join(_OURS)}.")
    names = {ours: options.columns.get(ours, ours) for ours in _OURS}
    arguments = _files(source, options)
    try:
        splits = load_dataset(*arguments, streaming=True)
    except (OSError, ValueError) as error:
        raise DataError(f"datasets cannot read {source}: {error}") from error
    keys = [str(key) for key in splits]
    sides: dict[str, Any]
    if len(keys) == 1 and not options.splits:
        sides = {keys[0]: None}
    else:
        sides = {key: key for key in keys} if source.is_dir() else _sides(keys, options, source)
    for split, side in sides.items():
        if side == _LEFT_OUT:
            continue
        # As Arrow tables: rows as objects would pass through the library's own audio decoder, another package.
        tables: Any = splits[split].with_format("arrow").iter(batch_size=_ROWS_AT_ONCE)
        for number, row in enumerate(row for table in tables for row in table.to_pylist()):
            name = f"{split}-{number}"
            missing = [names[ours] for ours in ("audio", "reference") if names[ours] not in row]
            if missing:
                raise DataError(
                    f"Row {number} of split {split} has no column {', '.join(missing)}; it has {', '.join(row)}. "
                    "Map names with --columns."
                )
            cell = row[names["audio"]]
            clip = _clip(cell, source)
            if clip is None:
                yield Refusal(name, "audio missing")
                continue
            yield Item(
                id=name,
                audio=(clip,),
                prompt=_text(row[names["prompt"]] if names["prompt"] in row else options.columns.get("prompt")),
                reference=_text(row[names["reference"]]),
                recording=_text(row.get(names["recording"])) or _recording(cell, clip, side),
                split=side,
                published=side,
                own_validation="validation" in sides.values(),
                text=_text(row.get(names["text"])),
            )


def _files(source: Path, options: Options) -> tuple[Any, ...]:
    """Choose the arguments of `load_dataset`: hub id and configuration, or builder, None, None and files by split."""
    if not source.is_dir():
        return str(source), options.config
    if options.config is not None:
        raise DataError(f"--config goes with an id of the hub, and {source} is a folder; give one with its files only.")
    found = sorted(
        path
        for folder in (source, source / "data")
        for path in folder.glob("*")
        if path.suffix in _BUILDERS and path.name not in _NOT_ROWS
    )
    if not found:
        raise DataError(
            f"{source} has no file of rows ({', '.join(_BUILDERS)}), in itself or in data/. Put a table there whose "
            "rows name the audio files."
        )
    kinds = sorted({path.suffix for path in found})
    if len(kinds) > 1:
        raise DataError(
            f"{source} has rows as {' and '.join(kinds)}, and only one kind would be read. Keep one kind there."
        )
    names = [path.stem for path in found]
    lone = len(set(map(_bare, names))) == 1 and not options.splits
    sides = dict.fromkeys(names, "train") if lone else _sides(names, options, source)
    files: dict[str, list[str]] = {}
    for path in found:
        files.setdefault(sides[path.stem], []).append(str(path))
    return _BUILDERS[kinds[0]], None, None, files


def _sides(names: Sequence[str], options: Options, source: Path) -> dict[str, str]:
    """Map each of the publisher's splits, or names of files with their rows, to one of ours."""
    allowed = (*SPLITS, _LEFT_OUT)
    if wrong := sorted(set(options.splits.values()) - set(allowed)):
        hint = did_you_mean(wrong[0], allowed)
        raise DataError(f"--split maps to {', '.join(wrong)}.{hint} Allowed are {', '.join(allowed)}.")
    known = {**_SPLITS, **options.splits}
    found = {
        name: next((form for form in (name, _bare(name), _bare(name).lower()) if form in known), None) for name in names
    }
    if unknown := [_bare(name) for name, form in found.items() if form is None]:
        raise DataError(
            f"{source} has a split {unknown[0]!r}; known are {', '.join(known)}. Map it to one of "
            f"{', '.join(allowed)}, as `--split {unknown[0]}=train`."
        )
    if unused := sorted(set(options.splits) - set(found.values())):
        hint = did_you_mean(unused[0], names)
        raise DataError(f"--split maps {', '.join(unused)}, but {source} has only {', '.join(names)}.{hint}")
    return {name: known[form] for name, form in found.items() if form is not None}


def _bare(name: str) -> str:
    """Cut the number of a shard off the name of a split."""
    return _SHARD.sub("", name)


def _clip(cell: object, source: Path) -> Clip | None:
    """Read an audio cell: bytes, an address that `datasets` gives, or a path that counts from the source.

    Raises:
        DataError: the file at an address cannot be fetched.
    """
    if isinstance(cell, dict) and cell.get("bytes"):
        return Clip(data=cell["bytes"])
    path = _path(cell)
    if path is None or "://" not in path:
        return Clip(source / path) if path else None
    try:
        with fsspec.open(path, "rb") as file:
            return Clip(data=cast(BinaryIO, file).read())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{path} cannot be fetched: {error}. Repeat the command to continue from here.") from error


def _recording(cell: object, clip: Clip, side: str | None) -> str:
    """Name a row's recording; names of files inside tables are unique only within a split of the publisher's."""
    path = _path(cell)
    if not path:
        return clip.source
    return path if clip.path is not None or side is None or "://" in path else f"{side}/{path}"


def _path(cell: object) -> str | None:
    path = cell.get("path") if isinstance(cell, dict) else cell
    return path if isinstance(path, str) else None


def _text(value: object) -> str:
    return "" if value is None else str(value)
