"""Prepare a corpus: decide every entry once, continue where an earlier call stopped, split by recording, write Arrow.

The folder it makes has `<split>.arrow` (rows with paths of the audio), `audio/` (only what had to be cut or unpacked),
`decided.jsonl` (one line per entry, row or refusal: what a repeated call continues from) and `prepared.json` (settings,
counts, hours, refusals, licence), which is written last.
"""

import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from leaf.data.corpora.clips import place
from leaf.data.corpora.items import Corpus, Item, Options, Refusal
from leaf.data.corpora.wordings import OWN, wordings_mark
from leaf.data.hashing import stable_fraction
from leaf.data.manifest import SPLITS
from leaf.data.recordings import sources_of, stretch_of_source
from leaf.errors import AudioError, DataError, MissingFiles, did_you_mean
from leaf.files import append_row, drop_torn_line, read_json, read_rows, write_json, writing
from leaf.text import composed

SPLIT_BY = ("recording", "published")
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "prompt")),
        ("audio", pa.list_(pa.string())),
        ("audio_sources", pa.list_(pa.string())),  # Clip.source: what was cut or unpacked is in a file of its own
        ("reference", pa.string()),
        ("references", pa.list_(pa.string())),  # where there are several
        *((name, pa.string()) for name in ("text", "utterance", "reference_language")),
        ("seconds", pa.float64()),
    ]
)
_MAY_BE_NONE = ("reference", "references", "reference_language")
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
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Read a corpus as its publisher lays it out and write its splits; return what prepared.json holds.

    Args:
        name, corpus: an entry of `CORPORA`.
        source: folder with the publisher's files, as `corpus.layout` says.
        target: folder to write. One that an interrupted preparation left is continued; a finished one is kept.
        options: language pair, column names and wordings, for corpora that use them.
        split_by: "recording" keeps a session, speaker or sitting on one side. "published" is the split of the published
            runs, where that one goes by question (LongAudio), or the publisher's as it is (hub). Audio may then be
            heard on both sides.
        max_seconds: refuse longer audio; default the corpus's own limit.
        limit: stop after this many entries.
        decode: decode all audio instead of trusting file headers.
        say: takes lines about the progress.

    Raises:
        DataError: missing parts, a folder of other settings, or recordings that the publisher has on both sides.
        RunError: the folder cannot be written.
    """
    longest = max_seconds or corpus.max_seconds
    work = _Preparation(name, corpus, source, target, options or Options(), split_by, longest, limit, decode)
    work.check()
    with writing(target):
        _begin_or_continue(target, work.settings())
    decided = _decided_ids(target)
    if decided:
        say(f"continuing after {len(decided)} entries")
    for number, entry in enumerate(_without_repeats(corpus.items(source, work.options)), start=1):
        if entry.id not in decided:
            append_row(target / "decided.jsonl", {"id": entry.id, **work.decide(entry)})
            decided.add(entry.id)
        if number % 5000 == 0:
            say(f"{number} entries")
        if number == limit:
            break
    written = _write_splits(target, strict=split_by == "recording")
    summary = work.settings() | {"licence": corpus.licence, **written}
    write_json(target / "prepared.json", summary)
    return summary


@dataclass(frozen=True)
class _Preparation:
    """What one call of `prepare` was asked for; see there."""

    name: str
    corpus: Corpus
    source: Path
    target: Path
    options: Options
    split_by: str
    longest: float | None
    limit: int | None
    decode: bool

    def check(self) -> None:
        """Refuse what the corpus cannot do."""
        if self.split_by not in SPLIT_BY:
            raise DataError(f"split_by is {self.split_by!r}; allowed are {', '.join(SPLIT_BY)}.")
        if not self.source.is_dir() and not self.corpus.remote:
            raise DataError(f"{self.source} is not a folder. `--from` must hold: {self.corpus.layout}.")
        given = [key for key in ("columns", "splits", "config") if getattr(self.options, key)]
        if given and not self.corpus.remote:
            raise DataError(f"{self.name} has a layout of its own and takes no {', '.join(given)}; leave them out.")
        if self.corpus.remote and self.options.wordings is not None:
            raise DataError(f"{self.name} has its prompts in a column, or one for all rows; leave --wordings out.")

    def settings(self) -> dict[str, Any]:
        """Name everything that decides the result, as settings.json and prepared.json hold it."""
        words = None if self.corpus.remote else wordings_mark(self.options.wordings)
        return {
            "corpus": self.name,
            "source": str(self.source.absolute() if self.source.exists() else self.source),
            "options": asdict(self.options) | {"wordings": words},
            "split_by": self.split_by,
            "max_seconds": self.longest,
            "limit": self.limit,
            "decode": self.decode,
        }

    def decide(self, entry: Item | Refusal) -> dict[str, Any]:
        """Make {"refused": reason} or {"split", "row"} of one entry."""
        if isinstance(entry, Refusal):
            return {"refused": entry.reason}
        if not entry.prompt.strip():
            return {"refused": "no prompt"}
        if entry.reference is not None and not entry.reference.strip() and not self.corpus.judged_only:
            return {"refused": "no reference"}
        limit = math.inf if self.longest is None else self.longest
        too_long = {"refused": f"longer than {limit:g} s"}
        if sum(clip.seconds for clip in entry.audio) > limit:
            return too_long  # before anything is decoded and written
        try:
            audio, seconds = place(entry.audio, self.target / "audio", decode=self.decode)
        except AudioError as error:
            missing = any(clip.path is not None and not clip.path.is_file() for clip in entry.audio)
            return {"refused": "audio missing" if missing else "audio unusable", "why": str(error)}
        if seconds > limit:
            return too_long
        split = self._split(entry)
        row = {
            "id": entry.id,
            "prompt": composed(entry.test_prompt if split == "test" and entry.test_prompt else entry.prompt),
            "audio": audio,
            "audio_sources": [clip.source for clip in entry.audio],
            "reference": None if entry.reference is None else composed(entry.reference),
            "references": [composed(text) for text in entry.references] if len(entry.references) > 1 else None,
            "text": composed(entry.text),
            "utterance": entry.recording,
            "reference_language": entry.language or None,
            "seconds": round(seconds, 3),
        }
        return {"split": split, "row": row}

    def _split(self, entry: Item) -> str:
        """Choose a split: the publisher's, with `validation` taken out of its train, or one by the recording's hash."""
        if self.split_by == "published":
            if entry.published is None:
                raise DataError(
                    f"{self.name} has no published split that differs from its own; leave --split-by at recording."
                )
            return entry.published
        given = entry.split
        if given is not None and (given != "train" or entry.own_validation):
            return given
        fraction = stable_fraction(f"split/{entry.recording}")
        if given is None and fraction < self.corpus.test:
            return "test"
        low = 0.0 if given == "train" else self.corpus.test
        return "validation" if low <= fraction < low + self.corpus.validation else "train"


def _without_repeats(entries: Iterable[Item | Refusal]) -> Iterator[Item | Refusal]:
    """Turn items that say the same as an earlier one into refusals."""
    seen: set[int] = set()  # hashes, for a corpus may have millions of entries
    for entry in entries:
        if isinstance(entry, Item):
            same = hash((entry.audio, entry.prompt, entry.reference))
            if same in seen:
                entry = Refusal(entry.id, "repeats an earlier entry")
            seen.add(same)
        yield entry


# -- prepared folders --------------------------------------------------------------------------------------------------
def prepared_splits(folder: Path) -> tuple[str, ...]:
    """List the splits of a prepared folder.

    Raises:
        DataError: not a finished preparation.
    """
    if not (folder / "prepared.json").is_file():
        raise DataError(f"{folder} has no finished preparation (prepared.json is missing); run `leaf data prepare`.")
    return tuple(split for split in SPLITS if (folder / f"{split}.arrow").is_file())


def load_prepared(folder: Path, split: str) -> list[dict[str, Any]]:
    """Load the rows of a split of a prepared folder, after looking for every audio file.

    Raises:
        DataError: not a finished preparation, no such split, or audio that has moved.
    """
    there = prepared_splits(folder)
    if split not in there:
        hint = did_you_mean(split, there)
        raise DataError(f"{folder} has no split {split!r}; it has {', '.join(sorted(there))}.{hint}")
    file = folder / f"{split}.arrow"
    with pa.memory_map(str(file)) as stream:
        table = pa.ipc.open_stream(stream).read_all()
    # A column in which nothing is said is none: what reads references or their language asks for the column.
    table = table.drop_columns(
        [n for n in _MAY_BE_NONE if n in table.column_names and table[n].null_count == len(table)]
    )
    rows = table.to_pylist()
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        for path in row["audio"]:
            if path not in seen and not os.path.isfile(path):
                raise MissingFiles(
                    f"Row {number} of {file.name} names {path}, which is gone. Put the corpus back, or prepare it "
                    "again from where it is now."
                )
            seen.add(path)
    return rows


def _begin_or_continue(target: Path, settings: dict[str, Any]) -> None:
    """Make the folder, or check that it is an unfinished preparation with the same settings."""
    if (target / "prepared.json").exists():
        raise DataError(f"{target} is prepared already and is kept as it is. Choose another --to, or remove it.")
    file = target / "settings.json"
    if file.exists():
        begun = read_json(file)
        if begun is None or not isinstance(begun.get("options"), dict):
            raise DataError(f"{file} is damaged, so {target} cannot be continued. Choose another --to, or remove it.")
        # An earlier version knew fewer options, and only leaf's own wordings.
        words = None if settings["options"]["wordings"] is None else OWN
        was = {**begun, **asdict(Options(wordings=words)), **begun["options"]}
        now = {**settings, **settings["options"]}
        differing = [
            f"{key} ({was.get(key)}, now {now[key]})"
            for key in sorted(now.keys() - {"options"})
            if now[key] != was.get(key)
        ]
        if not differing:
            return
        if _decided_ids(target):
            raise DataError(
                f"{target} was begun with another {', '.join(differing)}. Choose another --to, or remove it."
            )
    elif target.exists() and any(target.iterdir()):
        raise DataError(f"{target} has other files in it. Choose an empty folder for --to.")
    target.mkdir(parents=True, exist_ok=True)
    write_json(file, settings)


def _decided_ids(target: Path) -> set[str]:
    """Read the ids decided so far, dropping a last line that an interruption tore."""
    file = target / "decided.jsonl"
    drop_torn_line(file)
    return {row["id"] for row in read_rows(file)} if file.exists() else set()


# -- the splits --------------------------------------------------------------------------------------------------------
def _write_splits(target: Path, *, strict: bool) -> dict[str, Any]:
    """Write the Arrow files from decided.jsonl, and count rows, hours and refusals.

    Raises:
        DataError: with `strict`, audio is heard on both sides of a split; or no entry could be used.
    """
    refused: Counter[str] = Counter()
    examples: dict[str, list[str]] = defaultdict(list)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for entry in read_rows(target / "decided.jsonl"):
        if "refused" in entry:
            refused[entry["refused"]] += 1
            if len(examples[entry["refused"]]) < 3:
                examples[entry["refused"]].append(entry.get("why") or entry["id"])
        else:
            rows[entry["split"]].append(entry["row"])
    if strict:
        _check_sides(rows)
    if not rows:
        raise DataError(f"No entry could be used. Refused: {dict(refused)}, e.g. {next(iter(examples.values()), [])}.")
    for split, its in rows.items():
        file = target / f"{split}.arrow"
        with writing(file), pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
            for at in range(0, len(its), _ROWS_AT_ONCE):
                writer.write_batch(pa.RecordBatch.from_pylist(its[at : at + _ROWS_AT_ONCE], schema=_SCHEMA))
    counts = {split: _counts(rows[split]) for split in SPLITS if split in rows}
    return {"splits": counts, "refused": dict(refused.most_common()), "examples": dict(examples)}


def _check_sides(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Refuse a recording of which a part is on both sides; stretches that do not overlap are parts of it, too."""
    sides: dict[str, str] = {}
    leaks = [
        source
        for split, its in rows.items()
        for row in its
        for source in sources_of(row)
        if sides.setdefault(stretch_of_source(source)[0], split) != split
    ]
    if leaks:
        raise DataError(
            f"{len(leaks)} uses of audio are on both sides of a split, first {leaks[0]}: two of the publisher's "
            "splits share it, or two recordings do. Remove it on one side, name with --columns a `recording` that "
            "keeps it together, or keep the publisher's splits as they are with --split-by published."
        )


def _counts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Count a split's rows, recordings and hours; audio that several rows share counts once."""
    seconds = {tuple(sources_of(row)): row["seconds"] for row in rows}
    return {
        "rows": len(rows),
        "recordings": len({row["utterance"] for row in rows}),
        "hours": round(sum(seconds.values()) / 3600, 3),
    }
