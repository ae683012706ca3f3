"""Read any data set that the library `datasets` reads, from the hub or a folder, by column names."""

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import soundfile

from leaf.data.audio import load_audio, samples_and_rate
from leaf.data.cells import cell, column_of, folded, references_cell, text_cell, with_language
from leaf.data.corpora.audio_cells import clip_of, recording_of
from leaf.data.corpora.items import Item, Options, Refusal
from leaf.data.corpora.sources import Table, tables_of
from leaf.data.manifest import SPLITS
from leaf.data.stretches import STRETCH, stretch_of
from leaf.errors import AudioError, DataError, did_you_mean, shown

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
_OURS = ("prompt", "audio", "reference", "reference_language", "recording", "text", "split", *STRETCH)

_AUDIO = {"bytes", "path", "array"}  # keys of an audio cell


def items(source: Path, options: Options) -> Iterator[Item | Refusal]:
    """Yield the rows of every split. The publisher's splits are kept; a single split is cut by recording.

    `options.columns` maps prompt, audio and reference to the data set's names, and recording, text, split, and offset
    and duration of a stretch where it has them. A prompt that is no column is used as it is, for every row. A column
    `split` decides row by row; without one the names of files or of the publisher's splits do. `options.splits` maps
    their names to ours, or to none. Without a column for it, a recording is an audio file, known by its path or, in a
    table, by its bytes.
    """
    unknown = sorted(set(options.columns) - set(_OURS))
    if unknown:
        hint = did_you_mean(unknown[0], _OURS)
        raise DataError(f"--columns maps {', '.join(unknown)}.{hint} Allowed are {', '.join(_OURS)}.")
    tables = tables_of(source, options.config)
    if not any(table.columns for table in tables):
        raise DataError(f"{source} has no rows. Give one with a header and at least one row.")
    by_row = _split_column(tables, options)
    sides = _sides_of_tables(tables, options, source, by_row)
    values = [] if by_row is None else [value for table in tables for value in table.values(by_row)]
    kept = {side for side in sides.values() if side} | {_SPLITS.get(folded(value)) for value in values}
    kept |= set(options.splits.values()) if by_row else set()
    numbers: Counter[str] = Counter()
    folder = source.parent if source.is_file() else source  # that paths count from
    for table in tables:
        side = sides[table.name]
        if side == _LEFT_OUT:
            continue
        prefix = table.name if not source.exists() else side or "train"
        for row in table.rows():
            number = numbers[prefix]
            numbers[prefix] += 1
            where = f"Row {number + 1} of {table.shown}"
            own = side if by_row is None else _row_side(row, by_row, side, options, where)
            if own != _LEFT_OUT:
                yield _item(row, f"{prefix}-{number}", (side, own), folder, options, where, "validation" in kept)


def _item(
    row: dict[str, Any],
    name: str,
    sides: tuple[str | None, str | None],
    folder: Path,
    options: Options,
    where: str,
    own_validation: bool,
) -> Item | Refusal:
    """Make an item of a row; `sides` are the split of its table and its own."""
    given = {ours: options.columns.get(ours, ours) for ours in _OURS}
    needed = ("audio",) if given["reference"] == _LEFT_OUT else ("audio", "reference")
    missing = [given[ours] for ours in needed if _cell(row, given[ours]) is _NOTHING]
    if missing:
        raise DataError(
            f"{where} has no column {', '.join(missing)}; it has {', '.join(map(str, row))}. Map names with --columns"
            + ("; reference=none is for rewards that read none." if given["reference"] in missing else ".")
        )
    found = {ours: _cell(row, column) for ours, column in given.items()}
    cells = found["audio"] if isinstance(found["audio"], list) else [found["audio"]]
    cells = [{"bytes": one} if isinstance(one, bytes) else one for one in cells]
    for one in cells:
        if not (one is None or isinstance(one, str) or (isinstance(one, dict) and _AUDIO & one.keys())):
            raise DataError(
                f"{where} has {given['audio']} {shown(one)}; audio is the path of a file, {{'bytes', 'path'}} or "
                "{'array', 'sampling_rate'}, or a list of these."
            )
    stretch = {ours: _or_none(found[ours]) for ours in STRETCH}
    try:
        begins, lasts = stretch_of(stretch)
    except AudioError:
        return Refusal(name, "offset or duration is no number of seconds")
    if len(cells) > 1 and (begins or lasts is not None):
        return Refusal(name, "a stretch of several files")
    try:
        clips = [clip_of(_encoded(one), folder, stretch, where) for one in cells]
    except AudioError:
        return Refusal(name, "audio unusable")
    whole = [clip for clip in clips if clip is not None]
    if not whole or len(whole) < len(clips):
        return Refusal(name, "audio missing")
    others = ("text", "recording")
    texts = {ours: text_cell(_or_none(found[ours]), given[ours], where) or "" for ours in others}
    language = with_language({"reference_language": _or_none(found["reference_language"])}, where)["reference_language"]
    prompt = options.columns.get("prompt") if found["prompt"] is _NOTHING else found["prompt"]
    references = references_cell(_or_none(found["reference"]), given["reference"], where)
    return Item(
        id=name,
        audio=tuple(whole),
        prompt=text_cell(prompt, given["prompt"], where) or "",
        reference=None if given["reference"] == _LEFT_OUT else references[0] if references else "",
        references=tuple(references),
        recording=texts["recording"] or recording_of(cells[0], whole[0]),
        split=sides[1],
        published=sides[1],
        own_validation=own_validation,
        text=texts["text"],
        language=language or "",
    )


def _encoded(audio: Any) -> Any:
    """Encode samples that stand in a table as a file; other cells are returned as they are.

    Raises:
        AudioError: they are no usable waveform.
    """
    if not isinstance(audio, dict) or audio.get("array") is None:
        return audio
    _, rate = samples_and_rate(audio)
    file = io.BytesIO()
    soundfile.write(file, load_audio(audio, sampling_rate=rate), rate, format="WAV", subtype="FLOAT")
    return {"bytes": file.getvalue(), "path": audio.get("path")}


_NOTHING = object()  # the cell of a column that is not there


def _cell(row: dict[str, Any], name: str) -> Any:
    try:
        return cell(row, name)
    except KeyError:
        return _NOTHING


def _or_none(value: Any) -> Any:
    return None if value is _NOTHING else value


# -- splits ------------------------------------------------------------------------------------------------------------
def _split_column(tables: Sequence[Table], options: Options) -> str | None:
    """Find the column that names the split of each row; `--columns split=none` leaves one out of account."""
    wanted = options.columns.get("split", "split")
    has = [table for table in tables if column_of(dict.fromkeys(table.columns.values()), wanted.partition(".")[0])]
    if "split" in options.columns and wanted != _LEFT_OUT and len(has) < len(tables):
        other = next(table for table in tables if table not in has)
        raise DataError(
            f"--columns maps split to {wanted}, and {other.shown} has no such column; it has "
            f"{', '.join(other.columns.values())}."
        )
    if has and len(has) < len(tables):
        raise DataError(
            f"{has[0].shown} has a column {wanted} and other tables have none. Give all of them one, or leave it out "
            "of account with --columns split=none."
        )
    return wanted if has else None


def _row_side(row: dict[str, Any], column: str, side: str | None, options: Options, where: str) -> str:
    """Read the split that a row names.

    Raises:
        DataError: it is unknown, or another one than that of the row's table.
    """
    value = text_cell(_or_none(_cell(row, column)), column, where)
    if not (value or "").strip():
        raise DataError(
            f"{where} has no {column}. Fill it, or leave the column out of account with --columns split=none."
        )
    known = {**_SPLITS, **{folded(theirs): ours for theirs, ours in options.splits.items()}}
    found = known.get(folded(value))
    if found is None:
        raise DataError(
            f"{where} has {column} {shown(value)}; known are {', '.join(known)}. Map it, as `--split {value}=train`, "
            "or leave the column out of account with --columns split=none."
        )
    if side is not None and found != side:
        raise DataError(
            f"{where} has {column} {shown(value)}, and it is in a table for {side}. Correct the column, or leave it "
            "out of account with --columns split=none."
        )
    return found


def _sides_of_tables(
    tables: Sequence[Table], options: Options, source: Path, by_row: str | None
) -> dict[str, str | None]:
    """Map every table to the split that its name says; None where the rows or their recordings decide."""
    names = [table.name for table in tables]
    if by_row is not None:
        _check_splits(options)
        said = [_SPLITS.get(_bare(name).lower()) for name in names]
        return dict(zip(names, said, strict=True)) if len(set(said)) > 1 else dict.fromkeys(names)
    if len(set(map(_bare, names))) == 1 and not options.splits:
        return dict.fromkeys(names)
    return {**_sides(names, options, source)}


def _check_splits(options: Options) -> None:
    """Refuse a --split that maps to no split of ours."""
    allowed = (*SPLITS, _LEFT_OUT)
    if wrong := sorted(set(options.splits.values()) - set(allowed)):
        hint = did_you_mean(wrong[0], allowed)
        raise DataError(f"--split maps to {', '.join(wrong)}.{hint} Allowed are {', '.join(allowed)}.")


def _sides(names: Sequence[str], options: Options, source: Path) -> dict[str, str]:
    """Map each of the publisher's splits, or names of files with their rows, to one of ours."""
    _check_splits(options)
    known = {**_SPLITS, **options.splits}
    found = {
        name: next((form for form in (name, _bare(name), _bare(name).lower()) if form in known), None) for name in names
    }
    if unknown := [_bare(name) for name, form in found.items() if form is None]:
        raise DataError(
            f"{source} has a split {unknown[0]!r}; known are {', '.join(known)}. Map it to one of "
            f"{', '.join((*SPLITS, _LEFT_OUT))}, as `--split {unknown[0]}=train`."
        )
    if unused := sorted(set(options.splits) - set(found.values())):
        hint = did_you_mean(unused[0], names)
        raise DataError(f"--split maps {', '.join(unused)}, but {source} has only {', '.join(names)}.{hint}")
    return {name: known[form] for name, form in found.items() if form is not None}


def _bare(name: str) -> str:
    """Cut the number of a shard off the name of a split."""
    return _SHARD.sub("", name)
