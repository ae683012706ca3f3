"""Prediction files: JSON lines, a row per item and pass, and beside them `NAME.meta.json`, what they were made with.

A row has the id, prediction, reference, prompt, what was said, and the statistics of metrics that take data or a model.
So every score can be computed again without the model. Neither file has a path of the machine in it. Files of other
programs can be read too: `id`, `prediction` and `reference` are enough.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leaf.data.cells import with_references
from leaf.data.recordings import sources_of, stretch_of_source
from leaf.data.rows import prompt_text
from leaf.errors import AudioError, DataError, ModelError, shown
from leaf.evaluation.bootstrap import Scored, mean_of_scored, percentage
from leaf.evaluation.lengths import LENGTHS, scored_length
from leaf.evaluation.references import all_of, signature_of
from leaf.evaluation.registry import fitted_metric, is_reward, statistics
from leaf.files import append_row, drop_torn_line, file_sha256, read_json, read_rows, write_json, write_rows
from leaf.text import unique_names

# What a prediction file copies from the evaluated row; audio stays where it is.
COLUMNS = ("id", "kind", "utterance", "prompt", "text", "reference", "references", "reference_language")
JUDGED = ("reference", "prompt", "text")  # what a judge reads of an item, beside the answers
_META = {"made_with": dict, "metrics": dict, "left_out": list}  # of the meta data, what is looked into


class Said(NamedTuple):
    """A prediction.

    Attributes:
        text: what was said.
        truncated: whether the length limit cut it; None where unknown.
        tokens: how many tokens it has, the end token counted; None where unknown.
    """

    text: str
    truncated: bool | None = None
    tokens: int | None = None


@dataclass
class Predictions:
    """One system's predictions.

    Attributes:
        system: its name; "" until it has one.
        items: one row per item, in order: `id`, `reference`, and what else of `COLUMNS` there is.
        passes: predictions, one list per pass.
        seeds: seed of each pass, None where it had none.
        truncated, tokens: per pass and item, as in `Said`.
        kept: metric → per pass, (items, statistics); of metrics that take data or a model.
        meta: what they were made with.
        digest: SHA-256 of the file, None before it is written.
    """

    system: str
    items: list[dict[str, Any]]
    passes: list[list[str]] = field(default_factory=list)
    seeds: list[int | None] = field(default_factory=list)
    truncated: list[list[bool | None]] = field(default_factory=list)
    tokens: list[list[int | None]] = field(default_factory=list)
    kept: dict[str, list[np.ndarray]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    digest: str | None = None

    def __post_init__(self) -> None:
        """Leave unknown what is not said of the passes."""
        self.truncated = self.truncated or [[None] * len(texts) for texts in self.passes]
        self.tokens = self.tokens or [[None] * len(texts) for texts in self.passes]

    @property
    def references(self) -> list[str]:
        """List the references, one per item."""
        return [item["reference"] for item in self.items]

    @property
    def languages(self) -> list[str | None]:
        """List the languages of the references, None where an item does not state it."""
        return [item.get("reference_language") for item in self.items]

    @property
    def groups(self) -> list[str]:
        """Name the recording of each item, or the item where it has none: a resample draws recordings as wholes."""
        return [str(item.get("utterance") or item["id"]) for item in self.items]

    @property
    def said(self) -> list[list[Said]]:
        """List the predictions of each pass with what is known of them."""
        parts = zip(self.passes, self.truncated, self.tokens, strict=True)
        return [list(map(Said, *one)) for one in parts]

    def add(self, seeds: Sequence[int | None], passes: Sequence[Sequence[Said]]) -> None:
        """Add passes: of each its seed, and the predictions in the order of the items."""
        for seed, said in zip(seeds, passes, strict=True):
            self.passes.append([one.text for one in said])
            self.seeds.append(seed)
            self.truncated.append([one.truncated for one in said])
            self.tokens.append([one.tokens for one in said])

    def scored(self, name: str, *, lowercase: bool, paths: Mapping[str, str] | None = None) -> tuple[Scored, str]:
        """Compute the system's scores by a metric, and its signature; kept statistics are used where no path is given.

        Raises:
            ConfigError, DataError: as `leaf.evaluation.registry.score`.
        """
        recorded = self.meta.get("metrics", {})
        if name in LENGTHS:
            return scored_length(name, self.system, self.passes, self.tokens, self.truncated)
        if is_reward(name):
            if name not in self.kept or name not in recorded:
                raise DataError(
                    f"{self.system} has no values of the reward {name}. Score it with `leaf evaluate --metrics ...`, "
                    "which has the function's rows."
                )
            return Scored(mean_of_scored, self.kept[name]), recorded[name]["signature"]
        if name in self.kept and name in recorded and name not in (paths or {}) and self.meta["lowercase"] == lowercase:
            # All metrics that are kept are means, so a percentage of the sums is their value.
            return Scored(percentage, self.kept[name]), recorded[name]["signature"]
        found = fitted_metric(name, self.references, languages=self.languages, paths=paths)
        sources = [str(item.get("text") or "") for item in self.items]
        options: dict[str, Any] = {"lowercase": lowercase, "sources": sources}
        right = [all_of(item) for item in self.items]
        arrays = [statistics(found, texts, right, **options) for texts in self.passes]
        if found.is_kept:
            self.kept[name] = arrays
        return Scored(found.total, arrays, found.less_is_better, found.item_total), signature_of(
            found, lowercase, right
        )

    def kept_signature(self, name: str) -> str:
        """Read the signature of a metric whose statistics are kept; empty where the meta data are gone."""
        return str(self.meta.get("metrics", {}).get(name, {}).get("signature", ""))

    def answers_digest(self, passes: int, read: Sequence[str] = JUDGED) -> str:
        """Compute the SHA-256 of what a judge of the first passes reads: ids, predictions and these columns.

        Unlike the file's checksum it stays the same when the file gets more passes or statistics, or another order.
        """
        answers = sorted(
            (item["id"], number, texts[i], *(str(item.get(name) or "") for name in read))
            for number, texts in enumerate(self.passes[:passes])
            for i, item in enumerate(self.items)
        )
        return sha256(json.dumps(answers).encode()).hexdigest()

    def write(self, path: Path) -> None:
        """Write rows and meta data, each file whole or not at all."""
        rows = []
        for number, texts in enumerate(self.passes):
            for i, item in enumerate(self.items):
                row = {"id": item["id"], "pass": number, "seed": self.seeds[number], "prediction": texts[i]}
                row |= {key: value for key, value in item.items() if key != "id"}
                row |= {"truncated": self.truncated[number][i], "tokens": self.tokens[number][i]}
                if self.kept:
                    row["statistics"] = {name: arrays[number][i].tolist() for name, arrays in self.kept.items()}
                rows.append(row)
        write_rows(path, rows)
        self.digest = file_sha256(path)
        self.meta["system"] = self.system
        write_json(meta_path(path), self.meta)


class Unfinished:
    """The file beside a prediction file in which an evaluation keeps each batch as soon as it is decoded.

    The same evaluation, repeated after an interruption, continues from it. What another one left is not used.

    Args:
        file: the prediction file, which is written at the end.
        about: what decides the predictions, as JSON values.
        say: takes a line about what was found.

    Attributes:
        said: number of a row → what was said in each pass.
    """

    def __init__(self, file: Path, about: dict[str, Any], say: Callable[[str], None]):
        self.path = file.with_suffix(".unfinished")
        first, *batches = self._whole_lines() or [about]
        if first != about:
            say(f"{self.path} was left by an evaluation with other settings; it is not used, and overwritten")
            batches = []
        self.said = {int(number): [Said(*one) for one in said] for batch in batches for number, said in batch.items()}
        if self.said:
            say(f"{self.path} has the predictions of {len(self.said)} rows from before an interruption; they are used")
        write_rows(self.path, [about, *batches])

    def _whole_lines(self) -> list[dict[str, Any]]:
        """Read the lines that there are, without a last one that an interruption tore."""
        drop_torn_line(self.path)
        return read_rows(self.path) if self.path.exists() else []

    def add(self, batch: Mapping[int, Sequence[Said]]) -> None:
        """Add what was said on a batch of rows."""
        append_row(self.path, {str(number): said for number, said in batch.items()})

    def remove(self) -> None:
        """Remove the file; the predictions are written."""
        self.path.unlink(missing_ok=True)


def kept_items(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Reduce evaluated rows to what prediction files keep: `COLUMNS`, prompts as text, no path of this machine.

    An id that comes again gets a number: `a`, `a#2`. A reference that is not there is empty. A row without an
    `utterance` has its recording there, whole even where a stretch of it is heard: stretches of one recording are no
    more independent than questions on it.
    """
    ids = unique_names([str(row.get("id") or number) for number, row in enumerate(rows)], form="{}#{}")
    items = []
    for name, row in zip(ids, rows, strict=True):
        item = {key: row[key] for key in COLUMNS if row.get(key) is not None}
        item |= {"id": name, "prompt": prompt_text(row["prompt"]), "reference": item.get("reference", "")}
        utterance = str(row.get("utterance") or _recording(row) or name)
        if Path(utterance).is_absolute():  # a manifest without the column: the recording's file
            utterance = f"{Path(utterance).name}#{sha256(utterance.encode()).hexdigest()[:8]}"
        items.append(item | {"utterance": utterance})
    return items


def _recording(row: Mapping[str, Any]) -> str | None:
    """Name the whole recording of a row, the first one where it joins several; None where it has none."""
    try:
        return stretch_of_source(sources_of(row)[0])[0]
    except (AudioError, ModelError):  # whoever decodes the row says what is wrong
        return None


def meta_path(path: Path) -> Path:
    """Name the file with the meta data of a JSON-lines file."""
    return path.with_suffix(".meta.json")


def read_meta(path: Path) -> dict[str, Any]:
    """Read the meta data of a JSON-lines file; {} if there is none."""
    file = meta_path(path)
    if not file.is_file():
        return {}
    meta = read_json(file)
    if meta is None:
        raise DataError(f"{file} cannot be read as a JSON object. Restore it from a copy, or remove it.")
    if wrong := [key for key, kind in _META.items() if key in meta and not isinstance(meta[key], kind)]:
        raise DataError(
            f"{file} has {wrong[0]}: {shown(meta[wrong[0]])}, which leaf does not write. Restore it from a copy, or "
            "remove it."
        )
    return meta


def read_predictions(path: str | Path) -> Predictions:
    """Read a prediction file, ours or another program's with `id`, `prediction` and `reference` per line.

    Ours of rows without references may lack them; they are empty then.

    Raises:
        DataError: the file cannot be read, a row lacks something, or passes differ in their items.
    """
    path = Path(path)
    rows = read_rows(path)
    if not rows:
        raise DataError(f"{path} has no predictions.")
    meta = read_meta(path)
    by_pass: dict[Any, dict[str, dict[str, Any]]] = {}
    for number, row in enumerate(rows, 1):
        if "predictions" in meta and row.get("reference") is None and "references" not in row:
            row = {**row, "reference": ""}
        if isinstance(row.get("reference"), list) or "references" in row:
            row = with_references(row, f"Line {number} of {path}")
        for key in ("id", "prediction", "reference"):
            if not isinstance(row.get(key), str):
                raise DataError(f"Line {number} of {path} has {key} {row.get(key)!r}; each line needs a text there.")
        if not isinstance(language := row.get("reference_language"), str | None):
            raise DataError(
                f"Line {number} of {path} has reference_language {language!r}; give the name of a language, such as "
                "zh-CN, or leave it out."
            )
        taken = by_pass.setdefault(row.get("pass", 0), {})
        if row["id"] in taken:
            raise DataError(f"{path} has the item {row['id']!r} twice in pass {row.get('pass', 0)}.")
        taken[row["id"]] = row
    first, *others = by_pass.values()
    for number, other in enumerate(others, 1):
        if other.keys() != first.keys():
            odd = sorted(other.keys() ^ first.keys())
            raise DataError(f"Pass {number} of {path} has other items than its first pass, such as {odd[0]!r}.")
        if odd := [key for key, row in first.items() if all_of(row) != all_of(other[key])]:
            raise DataError(
                f"Pass {number} of {path} has another reference than its first pass for {len(odd)} items, such as "
                f"{odd[0]!r}; give each item one reference in all passes."
            )
    ordered = [[one[key] for key in first] for one in by_pass.values()]
    names = rows[0].get("statistics", {})
    return Predictions(
        system=str(meta.get("system") or path.stem),
        items=[{key: row[key] for key in COLUMNS if key in row} for row in first.values()],
        passes=[[row["prediction"] for row in one] for one in ordered],
        seeds=[one[0].get("seed") for one in ordered],
        truncated=[[row.get("truncated") for row in one] for one in ordered],
        tokens=[[row.get("tokens") for row in one] for one in ordered],
        kept={name: [np.array([row["statistics"][name] for row in one]) for one in ordered] for name in names},
        meta=meta,
        digest=file_sha256(path),
    )


def prediction_files(paths: Iterable[str | Path]) -> list[Path]:
    """Find the prediction files in files and folders; a folder has them itself or in `evaluation/`.

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
            raise DataError(f"{path} has no prediction files; `leaf evaluate ... --out {path}` writes them.")
        files += found
    return files
