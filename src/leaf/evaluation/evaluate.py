"""Evaluate policies: greedy or sampled passes over a split, corpus metrics, bootstrap intervals, prediction files."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from leaf.config import LeafConfig
from leaf.data.rows import some_of, stated_seconds
from leaf.errors import AudioError, ConfigError, DataError, RunError
from leaf.evaluation.predictions import Predictions, Unfinished, kept_items, meta_path, read_predictions
from leaf.evaluation.registry import metric
from leaf.files import file_sha256
from leaf.model.demo import resolve_model
from leaf.model.device import pick_device, pick_dtype
from leaf.model.draws import step_generator
from leaf.model.from_recipe import projector_of
from leaf.model.policy import Policy
from leaf.model.sampling import sample
from leaf.model.usable import unusable_audio
from leaf.runs.directory import bring_back
from leaf.runs.processes import Processes

METRICS = ("bleu", "exact_match", "chrf")
_UNNAMED = "model"
_PACKAGES = ("leaf-speech", "torch", "transformers", "peft", "numpy")


@dataclass(frozen=True)
class Evaluation:
    """Hold the outcome of one evaluation.

    Attributes:
        rows: the evaluated rows.
        predictions: what was said, by pass, as it is written to a file.
        scores: metric name → mean over the passes.
        spreads: metric name → (lowest, highest) pass.
        intervals: metric name → bootstrap interval of the mean over the passes, resampled by utterance; empty if not
            asked for.
        signatures: metric name → what reproduces it, decoding included.
        truncated: share of completions cut by the length limit.
    """

    rows: list[dict[str, Any]]
    predictions: Predictions
    scores: dict[str, float]
    spreads: dict[str, tuple[float, float]]
    signatures: dict[str, str]
    truncated: float
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def passes(self) -> list[list[str]]:
        """Return the predictions, one list per pass."""
        return self.predictions.passes

    def values(self) -> dict[str, float]:
        """Return the scores and the truncation rate as one flat dictionary."""
        return {**self.scores, "truncated": self.truncated}

    def write(self, path: str | Path) -> None:
        """Write predictions beside references as JSON lines, one per item and pass, and what they were made with.

        A system without a name of its own is called after the file.
        """
        if self.predictions.system == _UNNAMED:
            self.predictions.system = Path(path).stem
        self.predictions.write(Path(path))


def validation_metrics(best: str) -> tuple[str, ...]:
    """Return the metrics of validation in training: the one that the recipe chooses by, and those always shown."""
    return tuple(dict.fromkeys((best, "bleu", "exact_match", "chrf")))


def predict(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    *,
    max_new_tokens: int,
    temperature: float = 0.9,
    top_p: float = 0.9,
    seeds: Sequence[int | None] = (42,),
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
    processes: Processes | None = None,
    unfinished: Unfinished | None = None,
) -> list[tuple[list[str], list[bool]]]:
    """Return per seed one completion per row, in order, and whether the length limit cut it; a seed of None is greedy.

    Rows of like length share a batch, and the passes of all seeds share a row's audio and prompt, each embedded and
    prefilled once. A row draws from a stream of its own in each pass, so a prediction depends on the seed, the row and
    its place among the rows only, and not on how many `processes` share the work. `unfinished` keeps what one process
    has said, batch by batch; what it has from an earlier call is not said again.
    """
    order = sorted(range(len(rows)), key=lambda i: (stated_seconds(rows[i]), i))
    if processes is not None:
        order = [order[i] for i in processes.positions(len(order))]
    said: dict[int, list[tuple[str, bool]]] = {} if unfinished is None else dict(unfinished.said)

    def say() -> None:
        for at in range(0, len(order), batch_size):
            indices = order[at : at + batch_size]
            if said.keys() >= set(indices):
                continue
            groups = sample(
                policy,
                policy.embed([rows[i] for i in indices]),
                num_completions=len(seeds),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                greedy=[seed is None for seed in seeds],
                generator=[[step_generator(seed or 0, i) for seed in seeds] for i in indices],
            )
            batch = {
                i: list(zip(group.texts(policy.tokenizer), group.truncated.tolist(), strict=True))
                for i, group in zip(indices, groups, strict=True)
            }
            said.update(batch)
            if unfinished is not None:
                unfinished.add(batch)
            if progress is not None:
                progress(len(indices))

    if processes is None:
        say()
    else:
        processes.together(say)
        said = {i: one for part in processes.gather(said) for i, one in part.items()}
    passes = [[said[i][k] for i in range(len(rows))] for k in range(len(seeds))]
    return [([text for text, _ in one], [cut for _, cut in one]) for one in passes]


def evaluate(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    *,
    greedy: bool = False,
    max_new_tokens: int = 200,
    temperature: float = 0.9,
    top_p: float = 0.9,
    seeds: Sequence[int] = (42,),
    metrics: Sequence[str] = METRICS,
    lowercase: bool = False,
    paths: Mapping[str, str] | None = None,
    intervals: bool = False,
    batch_size: int = 16,
    progress: Callable[[int], None] | None = None,
    processes: Processes | None = None,
) -> Evaluation:
    """Score a policy on rows with `prompt`, `audio` and `reference`: one greedy pass, or one sampled pass per seed.

    `paths` says where metrics that need data or a model find it (leaf.evaluation.registry.metric); `batch_size` rows
    are decoded at once. `processes` share the rows; all have to call, and all get the scores.
    """
    rows = _checked(rows, metrics, paths)
    decoding = {"greedy": greedy, "temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    decoding["batch_size"] = batch_size
    predictions = Predictions(_UNNAMED, kept_items(rows), [], [], [], meta={"made_with": {"decoding": decoding}})
    _add_passes(predictions, policy, rows, [None] if greedy else seeds, progress, processes)
    return score_predictions(predictions, rows, metrics, lowercase=lowercase, paths=paths, intervals=intervals)


def score_predictions(
    predictions: Predictions,
    rows: Sequence[dict[str, Any]],
    metrics: Sequence[str] = METRICS,
    *,
    lowercase: bool = False,
    paths: Mapping[str, str] | None = None,
    intervals: bool = True,
) -> Evaluation:
    """Score predictions and write the scores, with their signatures, into what the predictions were made with."""
    decoding = predictions.meta["made_with"]["decoding"]
    how = "greedy" if decoding["greedy"] else f"sampled:T{decoding['temperature']:g}:p{decoding['top_p']:g}"
    seeds = [] if decoding["greedy"] else [f"seeds{','.join(map(str, predictions.seeds))}"]
    before = predictions.meta.get("metrics", {}) if predictions.meta.get("lowercase") == lowercase else {}
    results: dict[str, dict[str, Any]] = {}
    for name in metrics:
        scored, signature = predictions.scored(name, lowercase=lowercase, paths=paths)
        results[name] = {"value": scored.value(), "passes": scored.values(), "signature": signature}
        if intervals:
            results[name]["interval"] = list(scored.interval(groups=predictions.groups))
    cut = [flag for one in predictions.truncated for flag in one]
    truncated = sum(map(bool, cut)) / len(cut)
    # What took data or a model stays, though it was not asked for this time.
    predictions.kept = {name: arrays for name, arrays in predictions.kept.items() if name in before or name in results}
    predictions.meta |= {
        "predictions": 1,
        "seeds": predictions.seeds,
        "lowercase": lowercase,
        "metrics": {name: one for name, one in before.items() if name in predictions.kept} | results,
        "truncated": truncated,
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }
    return Evaluation(
        rows=list(rows),
        predictions=predictions,
        scores={name: one["value"] for name, one in results.items()},
        spreads={name: (min(one["passes"]), max(one["passes"])) for name, one in results.items()},
        signatures={
            name: "|".join([one["signature"], "decoding:" + ":".join([how, *seeds])]) for name, one in results.items()
        },
        truncated=truncated,
        intervals={name: tuple(one["interval"]) for name, one in results.items() if intervals},
    )


def evaluate_systems(
    config: LeafConfig,
    systems: Mapping[str, Path | None],
    load: Callable[[Path | None], Policy],
    rows: Sequence[dict[str, Any]],
    out: Path,
    *,
    split: str,
    greedy: bool = False,
    seeds: Sequence[int] = (42,),
    metrics: Sequence[str] = METRICS,
    lowercase: bool = False,
    paths: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Evaluation]:
    """Evaluate several systems with a recipe's model, task and decoding, one prediction file each in `out`.

    A system's passes are sampled together; each batch is kept in `NAME.unfinished` until the file is written. Called
    again, what is there is not sampled again, so an evaluation that was interrupted goes on, further passes are added
    and other metrics are scored without the model. All passes of a file count.

    Recordings are looked at before anything is sampled: from their headers, or decoded where the recipe's
    `tolerate` is `skip`. Then rows without usable audio are left out, said, and listed in the meta data.

    Args:
        config: the recipe.
        systems: name → adapter directory, None for the bare model; see `name_systems`.
        load: adapter directory → policy; called only where a pass is missing.
        rows: rows of the split.
        out: folder for `NAME.jsonl` and `NAME.meta.json`.
        split: the split's name.
        greedy: one greedy pass instead of a sampled one per seed.
        seeds: of the sampled passes.
        metrics: metric names; none for predictions alone, as for rows without references.
        lowercase: compare without case.
        paths: metric → data or model.
        say: takes lines about the progress.

    Raises:
        AudioError: rows whose audio is unreadable or longer than the model takes, where they are not to be left out.
        RunError: a prediction file in `out` was made with something else.
    """
    rows = _checked(rows, metrics, paths)
    items = kept_items(rows)
    described = describe(config, items, split=split, greedy=greedy)
    results = {}
    for name, adapter in systems.items():
        file = out / f"{name}.jsonl"
        made_with = _made_with(described, config, adapter)
        if (projector := projector_of(config, adapter)) != config.projector:
            say(f"{name}: with {projector}, the projector that was trained with the adapter")
        known = _known(file, name, items, made_with)
        missing = [seed for seed in ([None] if greedy else seeds) if seed not in known.seeds]
        if missing:
            policy = load(adapter)
            _leave_out(known, policy, _rows_of(known, items, rows), config.tolerate == "skip", say)
            about = {"made_with": made_with, "seeds": missing, "left_out": known.meta.get("left_out", [])}
            unfinished = Unfinished(file, about, say)
            _add_passes(known, policy, _rows_of(known, items, rows), missing, unfinished=unfinished)
            known.kept = {}  # one entry per pass; made again when the passes are all there
            known.meta.pop("metrics", None)
            known.write(file)
            unfinished.remove()
            del policy  # there is room for one at a time
        done = "greedy pass" if greedy else f"passes with seeds {', '.join(map(str, seeds))}"
        say(f"{name}: {done} in {file}")
        if left_out := known.meta.get("left_out"):
            count = f"{len(left_out)} of {len(rows)} rows"
            say(f"{name}: {count} are left out for their audio, {some_of(left_out)}; all stand in {meta_path(file)}")
        answered = _rows_of(known, items, rows)
        results[name] = score_predictions(known, answered, metrics, lowercase=lowercase, paths=paths)
        results[name].write(file)
    return results


def describe(config: LeafConfig, items: Sequence[Mapping[str, Any]], *, split: str, greedy: bool) -> dict[str, Any]:
    """Return what decides predictions but for adapter and projector, without a path: model, items, decoding.

    Model checksums are those of the files in its folder; a name of the hub stands for itself.
    """
    asked = json.dumps([[item["id"], item["prompt"], item.get("reference")] for item in items], ensure_ascii=False)
    return {
        "model": _identity(Path(resolve_model(config.model)), config.model),
        "task": Path(config.task).name,
        "split": split,
        "items": {"count": len(items), "sha256": sha256(asked.encode()).hexdigest()},
        "decoding": {
            "greedy": greedy,
            "temperature": config.eval_temperature,
            "top_p": config.eval_top_p,
            "max_new_tokens": config.max_new_tokens,
            "batch_size": config.eval_batch_size,
            "dtype": pick_dtype(config.dtype, pick_device(config.device)),
        },
    }


def _made_with(described: Mapping[str, Any], config: LeafConfig, adapter: Path | None) -> dict[str, Any]:
    """Return what decides one system's predictions: adapter and projector too."""
    model = dict(described["model"])
    if (projector := projector_of(config, adapter)) is not None:
        model["projector_sha256"] = file_sha256(Path(projector))
    return {**described, "model": model, "adapter": None if adapter is None else _identity(adapter, str(adapter))}


def name_systems(model: str, adapters: Sequence[str], *, with_base: bool) -> dict[str, Path | None]:
    """Return name → adapter directory for `DIR` or `NAME=DIR` each, the bare model (None) first where it is wanted.

    A directory is named after its last two parts; without adapters the bare model is the one system. An adapter that a
    kill caught between two renames is brought back.

    Raises:
        ConfigError: a directory without an adapter, or two systems of one name.
        RunError: the process that writes an adapter is alive; in a moment it will be there.
    """
    systems: list[tuple[str, Path | None]] = []
    if with_base or not adapters:
        systems.append((Path(model).name, None))
    for given in adapters:
        name, equals, directory = given.partition("=")
        if not equals or Path(given).exists():
            directory = given
            name = "-".join(Path(given).absolute().parts[-2:])
        bring_back(Path(directory))
        if not (Path(directory) / "adapter_config.json").is_file():
            raise ConfigError(f"{directory} holds no adapter (adapter_config.json); give a folder such as runs/x/best.")
        systems.append((name, Path(directory)))
    named = {re.sub(r"[^\w.-]+", "-", name): path for name, path in systems}
    if len(named) < len(systems):
        raise ConfigError("Two systems would have one name; name adapters apart as `--adapter NAME=DIR`.")
    return named


def _checked(rows: Sequence[Any], metrics: Sequence[str], paths: Mapping[str, str] | None) -> list[dict[str, Any]]:
    """Return the rows, and refuse what would fail after the passes."""
    rows = [dict(row) for row in rows]
    if not rows:
        raise DataError("There are no rows to evaluate; give at least one.")
    for name in metrics:
        found = metric(name, paths)
        if found.needs_source and not all(row.get("text") for row in rows):
            raise DataError(f"The metric {name} reads what was said; give every row a `text`, or leave it out.")
    empty = sum(not str(row.get("reference") or "").strip() for row in rows)
    if empty and metrics:
        raise DataError(
            f"{empty} of {len(rows)} rows have no reference, so no metric can be computed. Ask for predictions alone "
            "(`--metrics none`) and have them judged with `leaf judge`."
        )
    return rows


def _rows_of(
    predictions: Predictions, items: Sequence[Mapping[str, Any]], rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the rows that predictions are about, of all rows and their items."""
    by_id = {item["id"]: row for item, row in zip(items, rows, strict=True)}
    return [by_id[item["id"]] for item in predictions.items]


def _leave_out(
    predictions: Predictions,
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    skip: bool,
    say: Callable[[str], None],
) -> None:
    """Take the items of rows without usable audio out of predictions that have no pass yet, or refuse them.

    Raises:
        AudioError: there are such rows and they may not be skipped, have predictions already, or are all there is.
    """
    bad = unusable_audio(policy, rows, decode=skip)
    if not bad:
        return
    ids = [predictions.items[i]["id"] for i in bad]
    if not skip:
        advice = (
            "Leave such rows out of the data set (by length: `leaf data prepare ... --max-seconds`), or set "
            "tolerate=skip, which leaves them out of the evaluation and counts them."
        )
    elif predictions.passes:
        advice = "Earlier passes have them, so further ones need them: bring them back, or begin anew in another --out."
    else:
        advice = "None is left to evaluate; look at the recordings."
    if not skip or predictions.passes or len(bad) == len(rows):
        first = next(iter(bad.values()))
        raise AudioError(
            f"{len(bad)} of {len(rows)} rows have no usable audio: {some_of(ids)}. The first: {first} {advice}"
        )
    for reason in bad.values():
        say(f"left out: {reason}")
    predictions.items = [item for i, item in enumerate(predictions.items) if i not in bad]
    predictions.meta["left_out"] = ids


def _add_passes(
    predictions: Predictions,
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    seeds: Sequence[int | None],
    progress: Callable[[int], None] | None = None,
    processes: Processes | None = None,
    unfinished: Unfinished | None = None,
) -> None:
    """Add one pass over the rows per seed, greedy (a seed of None) or sampled as the predictions' decoding says."""
    decoding = predictions.meta["made_with"]["decoding"]
    passes = predict(
        policy,
        rows,
        max_new_tokens=decoding["max_new_tokens"],
        temperature=decoding["temperature"],
        top_p=decoding["top_p"],
        batch_size=decoding["batch_size"],
        seeds=seeds,
        progress=progress,
        processes=processes,
        unfinished=unfinished,
    )
    for seed, (texts, truncated) in zip(seeds, passes, strict=True):
        predictions.passes.append(texts)
        predictions.seeds.append(seed)
        predictions.truncated.append([*truncated])


def _known(file: Path, name: str, items: list[dict[str, Any]], made_with: dict[str, Any]) -> Predictions:
    """Return what a prediction file holds, or empty predictions; one that was made with something else is refused."""
    if not file.exists():
        return Predictions(name, items, [], [], [], meta={"predictions": 1, "made_with": made_with})
    known = read_predictions(file)
    was = known.meta.get("made_with", {})
    other = [key for key, value in made_with.items() if was.get(key) != value]
    if other:
        raise RunError(
            f"{file} exists and was made with another {other[0]}: {was.get(other[0])}, now {made_with[other[0]]}. "
            "Choose another folder with --out, or remove it."
        )
    return known


def _identity(folder: Path, name: str) -> dict[str, Any]:
    """Return name and checksum of a model or adapter folder; a name of the hub alone."""
    if not folder.is_dir():
        return {"name": name}
    files = sorted(f for f in folder.iterdir() if f.suffix == ".safetensors" or f.name.endswith("config.json"))
    digest = sha256("".join(f"{f.name} {file_sha256(f)}\n" for f in files).encode()).hexdigest()
    return {"name": Path(name).name, "sha256": digest}
