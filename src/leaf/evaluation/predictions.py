"""Prediction files: JSON lines, one row per item and pass, and beside them `NAME.meta.json`, what they were made with.

A row holds the ids, prediction, reference, prompt, what was said and the statistics of metrics that take data or a
model, so that every score can be computed again without the model. Neither file holds a path of the machine. Rows of
other programs do as well: `id`, `prediction` and `reference` are enough.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from leaf.data.rows import prompt_text
from leaf.errors import DataError, some_of
from leaf.evaluation.bootstrap import Scored, percentage
from leaf.evaluation.registry import metric, statistics
from leaf.files import append_row, drop_torn_line, file_sha256, read_rows, write_json, write_rows
from leaf.text import unique_names

# What a row takes over from the evaluated row; audio is left where it is.
COLUMNS = ("id", "kind", "utterance", "prompt", "text", "reference")


@dataclass
class Predictions:
    """One system's predictions.

    Attributes:
        system: its name; "" until it has one.
        items: one row per item, in order: `id`, `reference`, and what else of `COLUMNS` there is.
        passes: predictions, one list per pass.
        seeds: seed of each pass, None where it had none.
        truncated: per pass and item, whether the length limit cut it; None where unknown.
        kept: metric → per pass, (items, statistics); of metrics that take data or a model.
        meta: what they were made with.
        digest: SHA-256 of the file, None before it is written.
    """

    system: str
    items: list[dict[str, Any]]
    passes: list[list[str]] = field(default_factory=list)
    seeds: list[int | None] = field(default_factory=list)
    truncated: list[list[bool | None]] = field(default_factory=list)
    kept: dict[str, list[np.ndarray]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    digest: str | None = None

    @property
    def references(self) -> list[str]:
        """Return the references, one per item."""
        return [item["reference"] for item in self.items]

    @property
    def groups(self) -> list[str]:
        """Return the recording of each item, or its id where none is named: what a resample draws as a whole."""
        return [str(item.get("utterance") or item["id"]) for item in self.items]

    def add(self, seeds: Sequence[int | None], passes: Sequence[tuple[list[str], list[bool]]]) -> None:
        """Add passes: of each its seed, the predictions in the order of the items, and whether each was cut."""
        for seed, (texts, truncated) in zip(seeds, passes, strict=True):
            self.passes.append(texts)
            self.seeds.append(seed)
            self.truncated.append([*truncated])

    def scored(self, name: str, *, lowercase: bool, paths: Mapping[str, str] | None = None) -> tuple[Scored, str]:
        """Return the system under a metric, and the signature; kept statistics are used where there is no path.

        Raises:
            ConfigError, DataError: as `leaf.evaluation.registry.score`.
        """
        recorded = self.meta.get("metrics", {})
        if name in self.kept and name in recorded and name not in (paths or {}) and self.meta["lowercase"] == lowercase:
            # All metrics that are kept are means, so a percentage of the sums is their value.
            return Scored(percentage, self.kept[name]), recorded[name]["signature"]
        found = metric(name, paths)
        sources = [str(item.get("text") or "") for item in self.items]
        options: dict[str, Any] = {"lowercase": lowercase, "sources": sources}
        arrays = [statistics(found, texts, self.references, **options) for texts in self.passes]
        if found.is_kept:
            self.kept[name] = arrays
        return Scored(found.total, arrays, found.less_is_better), found.signature(lowercase)

    def answers_digest(self, passes: int) -> str:
        """Return the SHA-256 of what a judge of the first passes assesses: ids, predictions and references.

        Unlike the file's, it stays the same where the file gets further passes or statistics, or another order.
        """
        answers = sorted(
            (item["id"], number, texts[i], item["reference"])
            for number, texts in enumerate(self.passes[:passes])
            for i, item in enumerate(self.items)
        )
        return sha256(json.dumps(answers).encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write rows and meta data; each file appears whole or not at all."""
        rows = []
        for number, texts in enumerate(self.passes):
            for i, item in enumerate(self.items):
                row = {"id": item["id"], "pass": number, "seed": self.seeds[number], "prediction": texts[i]}
                row |= {key: value for key, value in item.items() if key != "id"}
                row["truncated"] = self.truncated[number][i]
                if self.kept:
                    row["statistics"] = {name: arrays[number][i].tolist() for name, arrays in self.kept.items()}
                rows.append(row)
        write_rows(path, rows)
        self.digest = file_sha256(path)
        self.meta["system"] = self.system
        write_json(meta_path(path), self.meta)


class Unfinished:
    """Keep beside a prediction file what an evaluation under way has said, each batch as soon as it is there.

    The same evaluation, given again after an interruption, goes on from it; what another one left is not used.

    Args:
        file: the prediction file, which is written at the end.
        about: what decides the predictions, JSON.
        say: takes a line about what was found.

    Attributes:
        said: per row, by number: what was said in each pass, and whether the length limit cut it.
    """

    def __init__(self, file: Path, about: dict[str, Any], say: Callable[[str], None]):
        self.path = file.with_suffix(".unfinished")
        first, *batches = self._whole_lines() or [about]
        if first != about:
            say(f"{self.path} was left by an evaluation with other settings; it is not used and begun anew")
            batches = []
        self.said = {
            int(number): [(text, cut) for text, cut in texts] for batch in batches for number, texts in batch.items()
        }
        if self.said:
            say(f"{self.path} has what was said on {len(self.said)} rows before an interruption; it goes on from there")
        write_rows(self.path, [about, *batches])

    def _whole_lines(self) -> list[dict[str, Any]]:
        """Read the lines that are there, without a last one that an interruption tore."""
        drop_torn_line(self.path)
        return read_rows(self.path) if self.path.exists() else []

    def add(self, batch: Mapping[int, Sequence[tuple[str, bool]]]) -> None:
        """Add what was said on a batch of rows."""
        append_row(self.path, {str(number): texts for number, texts in batch.items()})

    def remove(self) -> None:
        """Remove the file; the predictions are written."""
        self.path.unlink(missing_ok=True)


def kept_items(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what prediction files keep of evaluated rows: `COLUMNS`, prompts as text, no path of this machine.

    An id that comes again gets a number: `a`, `a#2`.
    """
    ids = unique_names([str(row.get("id") or number) for number, row in enumerate(rows)], form="{}#{}")
    items = []
    for name, row in zip(ids, rows, strict=True):
        item = {key: row[key] for key in COLUMNS if row.get(key) is not None}
        item |= {"id": name, "prompt": prompt_text(row["prompt"])}
        utterance = str(row.get("utterance") or row.get("id") or name)
        if Path(utterance).is_absolute():  # a manifest without the column: the recording's file
            utterance = f"{Path(utterance).name}#{sha256(utterance.encode()).hexdigest()[:8]}"
        items.append(item | {"utterance": utterance})
    return items


def meta_path(path: Path) -> Path:
    """Return where the meta data of a JSON-lines file lies."""
    return path.with_suffix(".meta.json")


def read_meta(path: Path) -> dict[str, Any]:
    """Return what lies beside a JSON-lines file, {} if nothing does."""
    file = meta_path(path)
    if not file.is_file():
        return {}
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}.") from error
    if not isinstance(meta, dict):
        raise DataError(f"{file} holds no JSON object.")
    return meta


def read_predictions(path: str | Path) -> Predictions:
    """Read a prediction file, ours or another program's with `id`, `prediction` and `reference` per line.

    Raises:
        DataError: the file cannot be read, a row lacks something, or passes differ in their items.
    """
    path = Path(path)
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path} holds no predictions.")
    by_pass: dict[Any, dict[str, dict[str, Any]]] = {}
    for number, row in enumerate(rows, 1):
        for key in ("id", "prediction", "reference"):
            if not isinstance(row.get(key), str):
                raise DataError(f"Line {number} of {path} has {key} {row.get(key)!r}; each line needs a text there.")
        taken = by_pass.setdefault(row.get("pass", 0), {})
        if row["id"] in taken:
            raise DataError(f"{path} has the item {row['id']!r} twice in pass {row.get('pass', 0)}.")
        taken[row["id"]] = row
    first, *others = by_pass.values()
    for number, other in enumerate(others, 1):
        if other.keys() != first.keys():
            odd = sorted(other.keys() ^ first.keys())
            raise DataError(f"Pass {number} of {path} has other items than its first pass, such as {odd[0]!r}.")
    meta = read_meta(path)
    ordered = [[one[key] for key in first] for one in by_pass.values()]
    names = rows[0].get("statistics", {})
    return Predictions(
        system=str(meta.get("system") or path.stem),
        items=[{key: row[key] for key in COLUMNS if key in row} for row in first.values()],
        passes=[[row["prediction"] for row in one] for one in ordered],
        seeds=[one[0].get("seed") for one in ordered],
        truncated=[[row.get("truncated") for row in one] for one in ordered],
        kept={name: [np.array([row["statistics"][name] for row in one]) for one in ordered] for name in names},
        meta=meta,
        digest=file_sha256(path),
    )


def prediction_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the prediction files that files and folders stand for; a folder holds them itself or in `evaluation/`.

    Raises:
        DataError: nothing at a path, or a folder without prediction files.
    """
    files = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(path)
            continue
        found = [
            file
            for folder in (path, path / "evaluation")
            for file in sorted(folder.glob("*.jsonl"))
            if "predictions" in read_meta(file)
        ]
        if not found:
            raise DataError(f"{path} holds no prediction files; `leaf evaluate ... --out {path}` writes them.")
        files += found
    return files


def item_difference(a: Predictions, b: Predictions) -> str | None:
    """Say how the items of two systems differ, in ids or references; None where they are the same in any order."""
    ours, theirs = ({item["id"]: item["reference"] for item in one.items} for one in (a, b))
    only = [
        f"{len(ids)} only in {one.system} ({some_of(ids)})"
        for ids, one in (
            (sorted(ours.keys() - theirs.keys()), a),
            (sorted(theirs.keys() - ours.keys()), b),
        )
        if ids
    ]
    if only:
        return "items differ: " + ", ".join(only)
    other = sorted(key for key, text in ours.items() if theirs[key] != text)
    return f"references differ for {len(other)} items ({some_of(other)})" if other else None


def in_order_of(b: Predictions, a: Predictions) -> Predictions:
    """Return b with its items in the order of a's."""
    place = {item["id"]: i for i, item in enumerate(b.items)}
    order = [place[item["id"]] for item in a.items]
    return Predictions(
        system=b.system,
        items=[b.items[i] for i in order],
        passes=[[one[i] for i in order] for one in b.passes],
        seeds=b.seeds,
        truncated=[[one[i] for i in order] for one in b.truncated],
        kept={name: [array[order] for array in arrays] for name, arrays in b.kept.items()},
        meta=b.meta,
        digest=b.digest,
    )
