"""Prepare a corpus: decide every entry once, resume where it stopped, split by recording, write Arrow.

The folder it makes holds `<split>.arrow` (rows with paths of the audio), `audio/` (only what had to be cut or
unpacked), `decided.jsonl` (one line per entry, row or refusal: what a resumed preparation starts from) and
`prepared.json` (settings, counts, hours, refusals, licence), which is written last.
"""

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from leaf.data.corpora.clips import place
from leaf.data.corpora.items import Corpus, Item, Options, Refusal
from leaf.data.hashing import stable_fraction
from leaf.data.manifest import sources_of
from leaf.errors import AudioError, DataError
from leaf.files import append_row, drop_torn_line, read_rows, write_json, writing

SPLITS = ("train", "validation", "test")
SPLIT_BY = ("recording", "published")
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "prompt")),
        ("audio", pa.list_(pa.string())),
        ("audio_sources", pa.list_(pa.string())),  # Clip.source: what was cut or unpacked lies in a file of its own
        *((name, pa.string()) for name in ("reference", "text", "utterance")),
        ("seconds", pa.float64()),
    ]
)
_ROWS_AT_ONCE = 10_000


def prepare(
    name: str,
    corpus: Corpus,
    source: Path,
    target: Path,
    *,
    options: Options | None = None,
    split_by: str = "recording",
    max_seconds: float | None = None,
    limit: int | None = None,
    decode: bool = False,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Read a corpus as its publisher lays it out and write its splits; return what prepared.json holds.

    Args:
        name, corpus: an entry of `CORPORA`.
        source: folder with the publisher's files, as `corpus.layout` says.
        target: folder to write. One that an interrupted preparation left is continued; a finished one is kept.
        options: language pair and column names, where the corpus has use for them.
        split_by: "recording" keeps a session, speaker or sitting on one side. "published" is the split of the published
            runs where that one goes by question (LongAudio), or the publisher's as it is (hub): audio may then be
            heard on both sides.
        max_seconds: refuse longer audio; default the corpus's own limit.
        limit: stop after this many entries.
        decode: decode all audio instead of trusting file headers.
        report: called with lines for a person.

    Raises:
        DataError: missing parts, a folder of other settings, or recordings that the publisher has on both sides.
        RunError: the folder cannot be written.
    """
    options = options or Options()
    if split_by not in SPLIT_BY:
        raise DataError(f"split_by is {split_by!r}; allowed are {', '.join(SPLIT_BY)}.")
    if not source.is_dir() and not corpus.remote:
        raise DataError(f"{source} is not a folder. `--from` must hold: {corpus.layout}.")
    given = [key for key in ("columns", "splits", "config") if getattr(options, key)]
    if given and not corpus.remote:
        raise DataError(f"{name} has a layout of its own and takes no {', '.join(given)}; leave them out.")
    longest = max_seconds or corpus.max_seconds
    settings = {
        "corpus": name,
        "source": str(source.absolute() if source.is_dir() else source),
        "options": asdict(options),
        "split_by": split_by,
        "max_seconds": longest,
        "limit": limit,
        "decode": decode,
    }
    with writing(target):
        _open(target, settings)
    done = _decided(target)
    if done:
        report(f"going on after {len(done)} entries")
    seen: set[int] = set()
    for number, entry in enumerate(corpus.items(source, options), start=1):
        if isinstance(entry, Item):
            same = hash((entry.audio, entry.prompt, entry.reference))
            entry = Refusal(entry.id, "repeats an earlier entry") if same in seen else entry
            seen.add(same)
        if entry.id not in done:
            decided = _decide(entry, corpus, target, split_by, longest, decode, name)
            append_row(target / "decided.jsonl", {"id": entry.id, **decided})
            done.add(entry.id)
        if number % 5000 == 0:
            report(f"{number} entries")
        if number == limit:
            break
    summary = settings | {"licence": corpus.licence, **_write(target, strict=split_by == "recording")}
    write_json(target / "prepared.json", summary)
    return summary


def prepared_splits(folder: Path) -> tuple[str, ...]:
    """Return the splits of a prepared folder.

    Raises:
        DataError: not a finished preparation.
    """
    if not (folder / "prepared.json").is_file():
        raise DataError(f"{folder} holds no finished preparation (prepared.json is missing); run `leaf data prepare`.")
    return tuple(split for split in SPLITS if (folder / f"{split}.arrow").is_file())


def load_prepared(folder: Path, split: str) -> list[dict[str, Any]]:
    """Return the rows of a split of a prepared folder, after looking for every audio file.

    Raises:
        DataError: not a finished preparation, no such split, or audio that has moved.
    """
    there = prepared_splits(folder)
    if split not in there:
        raise DataError(f"{folder} has no split {split!r}; it has {', '.join(sorted(there))}.")
    file = folder / f"{split}.arrow"
    with pa.memory_map(str(file)) as stream:
        rows = pa.ipc.open_stream(stream).read_all().to_pylist()
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        for path in row["audio"]:
            if path not in seen and not os.path.isfile(path):
                raise DataError(
                    f"Row {number} of {file.name} names {path}, which is gone. Put the corpus back, or prepare it "
                    "again from where it is now."
                )
            seen.add(path)
    return rows


def _open(target: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or make sure that it is an unfinished preparation with the same settings."""
    if (target / "prepared.json").exists():
        raise DataError(f"{target} is prepared already and is kept as it is. Choose another --to, or remove it.")
    file = target / "settings.json"
    if file.exists():
        begun = json.loads(file.read_text(encoding="utf-8"))
        begun["options"] = {**asdict(Options()), **begun["options"]}  # an earlier version knew fewer
        differing = sorted(key for key in settings if settings[key] != begun.get(key))
        if not differing:
            return
        if _decided(target):
            raise DataError(
                f"{target} was begun with another {', '.join(differing)}. Choose another --to, or remove it."
            )
    elif target.exists() and any(target.iterdir()):
        raise DataError(f"{target} holds other files. Choose an empty folder for --to.")
    target.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)


def _decided(target: Path) -> set[str]:
    """Return the ids decided so far, dropping a last line that an interruption cut short."""
    file = target / "decided.jsonl"
    drop_torn_line(file)
    return {row["id"] for row in read_rows(file)} if file.exists() else set()


def _decide(
    entry: Item | Refusal, corpus: Corpus, target: Path, split_by: str, longest: float | None, decode: bool, name: str
) -> dict[str, Any]:
    """Return {"refused": reason} or {"split", "row"} of one entry."""
    if isinstance(entry, Refusal):
        return {"refused": entry.reason}
    if not entry.prompt.strip():
        return {"refused": "no prompt"}
    if not entry.reference.strip() and not corpus.judged_only:
        return {"refused": "no reference"}
    limit = math.inf if longest is None else longest
    too_long = {"refused": f"longer than {limit:g} s"}
    if sum(clip.seconds for clip in entry.audio) > limit:
        return too_long  # before anything is decoded and written
    try:
        audio, seconds = place(entry.audio, target / "audio", decode=decode)
    except AudioError as error:
        missing = any(clip.path is not None and not clip.path.is_file() for clip in entry.audio)
        return {"refused": "audio missing" if missing else "audio unusable", "why": str(error)}
    if seconds > limit:
        return too_long
    if split_by == "published" and entry.published is None:
        raise DataError(f"{name} has no published split that differs from its own; leave --split-by at recording.")
    row = {
        "id": entry.id,
        "prompt": entry.prompt,
        "audio": audio,
        "audio_sources": [clip.source for clip in entry.audio],
        "reference": entry.reference,
        "text": entry.text,
        "utterance": entry.recording,
        "seconds": round(seconds, 3),
    }
    return {"split": _split(entry, corpus, split_by), "row": row}


def _split(entry: Item, corpus: Corpus, split_by: str) -> str:
    """Return the split of an entry: the given one, with `validation` taken out of train, or by the recording's hash."""
    given = entry.published if split_by == "published" else entry.split
    if given is not None and (split_by == "published" or given != "train" or entry.own_validation):
        return given
    fraction = stable_fraction(f"split/{entry.recording}")
    if given is None and fraction < corpus.test:
        return "test"
    low = 0.0 if given == "train" else corpus.test
    return "validation" if low <= fraction < low + corpus.validation else "train"


def _write(target: Path, *, strict: bool) -> dict[str, Any]:
    """Write the Arrow files from decided.jsonl and return counts, hours and refusals."""
    refused: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    sides: dict[str, str] = {}
    leaks: list[str] = []
    with (target / "decided.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            if "refused" in entry:
                refused[entry["refused"]] += 1
                if len(examples[entry["refused"]]) < 3:
                    examples[entry["refused"]].append(entry.get("why") or entry["id"])
                continue
            split, row = entry["split"], entry["row"]
            rows[split].append(row)
            leaks += [source for source in sources_of(row) if sides.setdefault(source, split) != split]
    if strict and leaks:
        raise DataError(
            f"{len(leaks)} uses of audio stand on both sides of a split, first {leaks[0]}: two of the publisher's "
            "splits share it, or two recordings do. Take it out on one side, name with --columns a `recording` that "
            "keeps it together, or keep the publisher's splits as they are with --split-by published."
        )
    if not rows:
        raise DataError(f"No entry could be used. Refused: {dict(refused)}, e.g. {next(iter(examples.values()), [])}.")
    for split, its in rows.items():
        file = target / f"{split}.arrow"
        with writing(file), pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
            for batch in _batches(its):
                writer.write_batch(batch)
    splits = {
        split: {
            "rows": len(its),
            "recordings": len({row["utterance"] for row in its}),
            "hours": round(sum({tuple(sources_of(row)): row["seconds"] for row in its}.values()) / 3600, 3),
        }
        for split, its in sorted(rows.items(), key=lambda pair: SPLITS.index(pair[0]))
    }
    return {"splits": splits, "refused": dict(refused.most_common()), "examples": dict(examples)}


def _batches(rows: list[dict[str, Any]]) -> Iterator[pa.RecordBatch]:
    for at in range(0, len(rows), _ROWS_AT_ONCE):
        yield pa.RecordBatch.from_pylist(rows[at : at + _ROWS_AT_ONCE], schema=_SCHEMA)
