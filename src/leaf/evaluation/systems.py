"""Evaluate several systems, adapters of one model, with the recipe's model, task and decoding, one file for each.

What a folder of prediction files already has is not decoded again. So an evaluation that was interrupted continues,
passes are added, and other metrics are computed without the model.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from leaf.config import LeafConfig
from leaf.data.fingerprint import recordings_checksum
from leaf.engines.samplers import allowed_by, make_sampler
from leaf.errors import AudioError, ConfigError, RunError, some_of
from leaf.evaluation.evaluate import Evaluation, checked_rows, score_predictions
from leaf.evaluation.fitting import advice, texts_and_languages
from leaf.evaluation.predict import Decoding, predict
from leaf.evaluation.predictions import Predictions, Unfinished, kept_items, meta_path, read_predictions
from leaf.evaluation.registry import Scoring
from leaf.evaluation.reward_metrics import reward_metrics
from leaf.files import file_sha256
from leaf.model.demo import resolve_model
from leaf.model.device import pick_device, pick_dtype
from leaf.model.from_recipe import projector_of
from leaf.model.policy import Policy
from leaf.model.sampler import Sampler
from leaf.model.sampler_check import check_sampler, tolerance_of
from leaf.model.usable import unusable_audio
from leaf.progress import Busy
from leaf.runs.checkpoints import read_checkpoint
from leaf.runs.directory import bring_back
from leaf.runs.kept import kept_checkpoints


def name_systems(
    model: str, adapters: Sequence[str], *, with_base: bool, runs: Sequence[Path] = ()
) -> dict[str, Path | None]:
    """Map names to adapter directories, given as `DIR` or `NAME=DIR`, and the bare model's name to None.

    A directory is named after its last two parts. The bare model comes first where it is wanted; without adapters it is
    the only system. An adapter that a kill caught between two renames is brought back. Of runs, every checkpoint that
    they keep is a system, named after run and step.

    Raises:
        ConfigError: a directory without an adapter, or two systems of one name.
        RunError: a checkpoint is damaged, or the process that writes an adapter is alive; try again in a moment.
    """
    systems: list[tuple[str, Path | None]] = []
    if with_base or not (adapters or runs):
        systems.append((Path(model).name, None))
    for given in adapters:
        name, equals, directory = given.partition("=")
        if not equals or Path(given).exists():  # a path may have = in it
            directory = given
            name = "-".join(Path(given).absolute().parts[-2:])
        bring_back(Path(directory))
        if not (Path(directory) / "adapter_config.json").is_file():
            raise ConfigError(
                f"{directory} has no adapter (adapter_config.json); give a folder that has one, such as best or last "
                "of a run. There is no best without validation."
            )
        systems.append((name, Path(directory)))
    for run in runs:
        found = kept_checkpoints(run)
        if not found:
            raise ConfigError(f"{run} keeps no checkpoints; give the directory of a run.")
        bring_back(run / "last")
        if not (run / "last" / "adapter_config.json").is_file():
            raise ConfigError(
                f"{run} has checkpoints and no last/, the adapter that says what they are made of. Resume the run, "
                "which writes it again."
            )
        for path in found:
            read_checkpoint(path)  # before hours are spent on those ahead of a damaged one
        systems += [(f"{run.absolute().name}-{path.name}", path) for path in found]
    named = {re.sub(r"[^\w.-]+", "-", name): path for name, path in systems}
    if len(named) < len(systems):
        raise ConfigError("Two systems would have one name. Give them different names, as `--adapter NAME=DIR`.")
    return named


def evaluate_systems(
    config: LeafConfig,
    systems: Mapping[str, Path | None],
    load: Callable[[Path | None], Policy],
    rows: Sequence[dict[str, Any]],
    out: Path,
    *,
    split: str,
    decoding: Decoding,
    scoring: Scoring,
    say: Callable[[str], None] = print,
) -> dict[str, Evaluation]:
    """Evaluate several systems, and write one prediction file for each.

    A system's passes are decoded together, and each batch is kept in `NAME.unfinished` until the file is written.
    Passes that a file has are not decoded again, and all of them count.

    Recordings are checked before anything is decoded: by their headers, or decoded where the recipe's `tolerate` is
    `skip`. In that case rows without usable audio are left out, and listed in the meta data.

    Args:
        config: the recipe; its sampler decodes, and is checked on every system.
        systems: name → adapter directory, None for the bare model; see `name_systems`.
        load: adapter directory → policy; called only where a pass is missing.
        rows: rows of the split.
        out: folder for `NAME.jsonl` and `NAME.meta.json`.
        split: the split's name.
        decoding: how to decode, see `Decoding.of_recipe`.
        scoring: how to score; without metrics for predictions alone, as for rows without references.
        say: takes lines about the progress.

    Raises:
        AudioError: rows whose audio is unreadable or longer than the model takes, and that may not be left out.
        RunError: a prediction file in `out` was made with something else.
    """
    rows = checked_rows(rows, scoring := replace(scoring, intervals=True))
    _say_all(say, advice(scoring.metrics, *texts_and_languages(rows)))
    items = kept_items(rows)
    shared = _describe(config, resolve_model(config.model, say=say), rows, split, decoding)
    results = {}
    with closing(make_sampler(config, say, beside=f" evaluation {os.getpid()}")) as sampler:
        ready = partial(_ready, config, sampler, rows)
        for number, (name, adapter) in enumerate(systems.items()):
            file = out / f"{name}.jsonl"
            if (projector := projector_of(config, adapter)) != config.projector:
                say(f"{name}: with {projector}, the projector that was trained with the adapter")
            known = _read_or_begin(file, name, items, _describe_system(shared, projector, adapter))
            if _took_other_columns(known, items):
                say(f"{name}: references or other columns changed since {file} was scored; its scores are made anew")
            by_id = {item["id"]: row for item, row in zip(items, rows, strict=True)}
            if missing := tuple(seed for seed in decoding.passes if seed not in known.seeds):
                _refuse_losses(known, file, scoring)
                # The policy has no name here, so that it is gone before the next one is loaded.
                seeds = replace(decoding, seeds=missing)
                _add_passes(known, file, ready(load(adapter), number), by_id, seeds, config, sampler, say)
            _say_decoded(say, name, file, decoding, known.meta.get("left_out"), len(rows))
            results[name] = score_predictions(known, [by_id[item["id"]] for item in known.items], scoring)
            _say_all(say, results[name].notes, f"{name}: ")
            results[name].write(file)
    return results


def _refuse_losses(known: Predictions, file: Path, scoring: Scoring) -> None:
    """Refuse to add passes to values that took a model, data or a function, and that would have to go.

    Raises:
        RunError: there are such values, and they are not asked for this time.
    """
    asked = reward_metrics(scoring.metrics, scoring.rewards)
    labels = [name if one is None else one.label for name, one in asked.items()]
    if lost := [name for name in known.kept if name not in labels]:
        raise RunError(
            f"{file} has values of {', '.join(lost)} for the passes that it has, and further passes would have none. "
            f"Ask for all of them, with --metrics {','.join([*scoring.metrics, *lost])}, or give another --out."
        )


def _say_decoded(
    say: Callable[[str], None], name: str, file: Path, decoding: Decoding, left_out: Sequence[str] | None, rows: int
) -> None:
    seeds = ", ".join(map(str, decoding.seeds))
    say(f"{name}: {'greedy pass' if decoding.greedy else f'passes with seeds {seeds}'} in {file}")
    if left_out:
        count = f"{len(left_out)} of {rows} rows"
        say(f"{name}: {count} are left out for their audio, {some_of(left_out)}; {meta_path(file)} lists all")


def _ready(config: LeafConfig, sampler: Sampler, rows: Sequence[dict[str, Any]], policy: Policy, number: int) -> Policy:
    """Give a sampler the weights of a policy, check one that is elsewhere on a few rows, and hand the policy on."""
    sampler.begin(policy)
    sampler.sync(policy, number)
    if not sampler.exact:
        bad = unusable_audio(policy, rows[:2], decode=True)
        usable = [row for i, row in enumerate(rows[:2]) if i not in bad]
        check_sampler(policy, sampler, policy.embed(usable), tolerance_of(policy, allowed_by(config)))
    return policy


def _say_all(say: Callable[[str], None], lines: Sequence[str], before: str = "") -> None:
    for line in lines:
        say(f"{before}{line}")


def _add_passes(
    known: Predictions,
    file: Path,
    policy: Policy,
    by_id: Mapping[str, dict[str, Any]],
    decoding: Decoding,
    config: LeafConfig,
    sampler: Sampler,
    say: Callable[[str], None],
) -> None:
    """Decode the passes that a prediction file lacks, and write it."""
    rows = [by_id[item["id"]] for item in known.items]
    if bad := unusable_audio(policy, rows, decode=config.tolerate == "skip"):
        _leave_out(known, bad, may_skip=config.tolerate == "skip", say=say)
        rows = [by_id[item["id"]] for item in known.items]
    about = {
        "made_with": known.meta["made_with"],
        "seeds": list(decoding.passes),
        "left_out": known.meta.get("left_out", []),
    }
    unfinished = Unfinished(file, about, say)
    with Busy(say, f"{known.system}: decoding {len(rows)} rows", len(rows)) as busy:
        passes = predict(policy, rows, decoding, unfinished=unfinished, progress=busy.add, sampler=sampler)
    known.add(decoding.passes, passes)
    known.kept = {}  # has an entry for each pass; computed again now that there are more
    known.meta.pop("metrics", None)
    known.write(file)
    unfinished.remove()


def _leave_out(known: Predictions, bad: Mapping[int, str], *, may_skip: bool, say: Callable[[str], None]) -> None:
    """Take the items without usable audio out of predictions that have no pass yet, or refuse them.

    Args:
        known: predictions, without a pass yet unless they are refused.
        bad: number of the item → why its audio is not usable.
        may_skip: whether the recipe lets rows be left out.
        say: takes a line for each.

    Raises:
        AudioError: the rows may not be left out, have predictions already, or are all there is.
    """
    ids = [known.items[i]["id"] for i in bad]
    if not may_skip:
        advice = (
            "Leave such rows out of the data set (by length: `leaf data prepare ... --max-seconds`), or set "
            "tolerate=skip, which leaves them out of the evaluation and counts them."
        )
    elif known.passes:
        advice = "Earlier passes have them, so further ones need them. Restore them, or choose another --out."
    elif len(bad) == len(known.items):
        advice = "No row is left to evaluate. Check the recordings."
    else:
        for reason in bad.values():
            say(f"left out: {reason}")
        known.items = [item for i, item in enumerate(known.items) if i not in bad]
        known.meta["left_out"] = ids
        return
    first = next(iter(bad.values()))
    raise AudioError(
        f"{len(bad)} of {len(known.items)} rows have no usable audio: {some_of(ids)}. The first: {first} {advice}"
    )


# -- what predictions were made with -----------------------------------------------------------------------------------
def _describe(
    config: LeafConfig, checkpoint: str, rows: Sequence[Mapping[str, Any]], split: str, decoding: Decoding
) -> dict[str, Any]:
    """Describe what decides the predictions of all systems, without a path of this machine: model, items, decoding.

    A model in a folder is known by the checksum of its files, and a name of the hub stands for itself.
    """
    sampler = {} if config.sampler == "local" else {"sampler": config.sampler}  # draws other things from the same seeds
    asked = json.dumps([[item["id"], item["prompt"]] for item in kept_items(rows)], ensure_ascii=False)
    return {
        "model": _identity(Path(checkpoint), config.model),
        "task": Path(config.task).name,
        "split": split,
        "items": {
            "count": len(rows),
            "sha256": sha256(asked.encode()).hexdigest(),
            "recordings_sha256": recordings_checksum(rows),
        },
        "decoding": decoding.as_meta() | {"dtype": pick_dtype(config.dtype, pick_device(config.device))} | sampler,
    }


def _describe_system(shared: Mapping[str, Any], projector: str | None, adapter: Path | None) -> dict[str, Any]:
    """Describe what decides one system's predictions: adapter and projector too."""
    model = dict(shared["model"])
    if projector is not None:
        model["projector_sha256"] = file_sha256(Path(projector))
    return {**shared, "model": model, "adapter": None if adapter is None else _identity(adapter, str(adapter))}


def _took_other_columns(known: Predictions, items: Sequence[dict[str, Any]]) -> bool:
    """Give predictions the columns that their items have now, and tell whether any changed.

    What is said does not depend on them, but scores do, so those that were kept are dropped.
    """
    now = {item["id"]: item for item in items}
    fresh = [now[item["id"]] for item in known.items]
    if not _differ(known.items, fresh):
        return False
    known.items, known.kept = fresh, {}
    known.meta.pop("metrics", None)
    return True


def _differ(items: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> bool:
    """Tell whether items differ in a column. Of utterances it counts who shares one: they may be named by a folder."""
    sides = []
    for side in (items, others):
        first: dict[str, int] = {}
        groups = [first.setdefault(str(item.get("utterance")), number) for number, item in enumerate(side)]
        texts = [{**item, "utterance": group} for item, group in zip(side, groups, strict=True)]
        sides.append(json.dumps(texts, sort_keys=True))
    return sides[0] != sides[1]


def _identity(folder: Path, name: str) -> dict[str, Any]:
    """Name a model or adapter folder and compute its checksum; of a name of the hub, the name alone."""
    if not folder.is_dir():
        return {"name": name}
    there = (f for f in folder.iterdir() if f.is_file())  # what is no file cannot be loaded, and loading says so
    files = sorted(f for f in there if f.suffix == ".safetensors" or f.name.endswith("config.json"))
    digest = sha256("".join(f"{f.name} {file_sha256(f)}\n" for f in files).encode()).hexdigest()
    return {"name": Path(name).name, "sha256": digest}


def _read_or_begin(file: Path, name: str, items: list[dict[str, Any]], made_with: dict[str, Any]) -> Predictions:
    """Read a prediction file, or begin predictions where there is none; one made with something else is refused."""
    if not file.exists():
        return Predictions(name, items, meta={"predictions": 1, "made_with": made_with})
    known = read_predictions(file)
    was = known.meta.get("made_with", {})
    other = [key for key, value in made_with.items() if was.get(key) != value]
    if other:
        what = "other items" if other[0] == "items" else f"another {other[0]}"
        raise RunError(
            f"{file} exists and was made with {what}: {was.get(other[0])}, now {made_with[other[0]]}. "
            "Choose another folder with --out, or remove it."
        )
    return known
