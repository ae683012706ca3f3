"""The section of the report on predictions: scores, differences between two systems, and the items behind them.

Scores and judgements are those of `leaf compare`; an item's own BLEU is the sentence BLEU of the reward. Files whose
items differ stand in sets of their own, for they cannot be compared.
"""

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from leaf.data import TASKS
from leaf.data.audio import Audio, AudioWarning
from leaf.errors import AudioError, ConfigError, DataError
from leaf.evaluation import compare
from leaf.evaluation.bootstrap import Scored
from leaf.evaluation.metrics import METRICS
from leaf.evaluation.predictions import (
    Predictions,
    in_order_of,
    item_difference,
    prediction_files,
    read_meta,
    read_predictions,
)
from leaf.evaluation.registry import DEFAULT_METRICS
from leaf.report.audio import SECTION_BYTES, ClipStore, Recordings
from leaf.report.page import Section, asset
from leaf.rewards.functions import REWARDS
from leaf.runs.directory import RunDirectory
from leaf.text import fold_whitespace, unique_names

SAMPLES = 1000  # bootstrap resamples, as `leaf compare`
TEXT_BYTES = 1_000_000  # of the items' texts; a section with more shows a selection of the items


def evaluation_section(
    runs: Sequence[str | Path | RunDirectory] = (),
    predictions: Sequence[str | Path] = (),
    *,
    audio: bool = True,
    audio_bytes: int = SECTION_BYTES,
    say: Callable[[str], None] = print,
) -> Section | None:
    """Return the section, or None if there is no prediction file.

    Args:
        runs: run directories; prediction files in them (`leaf demo` writes test_before and test_after) or in their
            folder `evaluation` are shown, and their recipes say where the audio of the items is.
        predictions: further prediction files, or folders of such, as `leaf evaluate` writes them. A set's first file
            is what others are compared with at first.
        audio: put recordings into the page, those of the most telling items first.
        audio_bytes: how many bytes they may take.
        say: takes a line about recordings that cannot be had.

    Raises:
        DataError: a file that cannot be read, a folder of `predictions` without prediction files, damaged judgements.
        RunError: one of `runs` is no run directory, or its recipe cannot be read.
    """
    opened = [run if isinstance(run, RunDirectory) else RunDirectory.open(run) for run in runs]
    tasks = [(recipe.task, recipe.columns, recipe.plugins) for recipe in (run.config() for run in opened)]
    origins: dict[Path, list[int]] = {}  # file → the tasks that may have its rows
    for number, run in enumerate(opened):
        for file in _files_of(run.path):
            origins.setdefault(file.resolve(), [number])
    for file in _sorted(prediction_files(predictions)):
        origins.setdefault(file.resolve(), list(range(len(tasks))))
    if not origins:
        return None
    sets = _sets(list(origins))
    shared: dict[str, Recordings] = {}  # runs of one task read its rows once
    recordings = [shared.setdefault(json.dumps(task), Recordings(*task)) for task in tasks]
    shown = []
    for systems in sets:
        candidates = list(dict.fromkeys(recordings[i] for file in systems for i in origins[file]))
        store = ClipStore(max_bytes=audio_bytes // len(sets)) if audio else None
        shown.append(_set(systems, candidates, store, TEXT_BYTES // len(sets), say))
    data = {"sets": shown, "audio": audio}
    script = asset("evaluation.js")
    return Section("evaluation", "Evaluation", data, script, asset("evaluation.css"), (asset("audio.js"),))


def _files_of(run: Path) -> list[Path]:
    """Return the prediction files of a run, none if it has none."""
    there = any(True for folder in (run, run / "evaluation") for _ in folder.glob("*.meta.json"))
    return _sorted(prediction_files([run])) if there else []


def _sorted(files: Sequence[Path]) -> list[Path]:
    """Return files with what was there before training in front."""
    return sorted(files, key=lambda file: not (file.stem == "test_before" or _is_bare(file)))


def _is_bare(file: Path) -> bool:
    made_with = read_meta(file).get("made_with", {})
    return "adapter" in made_with and made_with["adapter"] is None


def _sets(files: Sequence[Path]) -> list[dict[Path, Predictions]]:
    """Return the files' predictions in sets of the same items in the same order, scored with case or without it."""
    sets: list[tuple[set[bool], dict[Path, Predictions]]] = []
    for file in files:
        one = read_predictions(file)
        case = {one.meta["lowercase"]} if "lowercase" in one.meta else set()
        for cases, members in sets:
            first = next(iter(members.values()))
            if item_difference(first, one) is None and len(cases | case) < 2:
                cases |= case
                members[file] = in_order_of(one, first)
                break
        else:
            sets.append((case, {file: one}))
    for _, members in sets:
        names = unique_names([one.system for one in members.values()], [file.with_suffix("") for file in members])
        for one, name in zip(members.values(), names, strict=True):
            one.system = name
    return [members for _, members in sets]


def _set(
    members: dict[Path, Predictions],
    recordings: Sequence[Recordings],
    store: ClipStore | None,
    text_bytes: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Return the data of systems that answered the same items."""
    systems = list(members.values())
    items, groups = systems[0].items, systems[0].groups
    lowercase = compare.shared_case(systems, None)
    notes = [compare.what_was_compared(systems, SAMPLES)]
    metrics: list[dict[str, Any]] = []
    pairs = list(combinations(range(len(systems)), 2))
    for name, scored, signature in _scored(systems, lowercase, notes):
        metrics.append(
            {
                "name": name,
                "less": scored[0].less_is_better,
                "signature": signature,
                "scores": [
                    _numbers(one.value(), *one.interval(groups=groups, samples=SAMPLES), *one.values())
                    for one in scored
                ],
                "differences": {
                    f"{a}-{b}": _numbers(*scored[b].against(scored[a], groups=groups, samples=SAMPLES))
                    for a, b in pairs
                },
                "items": [
                    _item_scores(name, one, system, lowercase) for one, system in zip(scored, systems, strict=True)
                ],
            }
        )
    verdicts = []
    for results in compare.judgements(systems, list(members), (), notes):
        if results[0].meta["judge"]["kind"] == "pairwise":
            verdicts += [_verdicts(one, systems) for one in results]
            notes += compare.judge_lines(results, systems, SAMPLES)[1]
        else:
            judge = _judged(results, systems, notes)
            same = sum(one["name"].startswith(judge["name"]) for one in metrics)
            metrics.append(judge | {"name": f"{judge['name']} #{same + 1}"} if same else judge)
    order = _telling(metrics, len(items), len(systems))
    texts = [_texts(i, systems, items[i]) for i in range(len(items))]
    kept = _within(texts, order, text_bytes)
    clips, lost = _clips([items[i] for i in order if i in kept], systems, recordings, store, say)
    made_with = systems[0].meta.get("made_with", {})
    many = "1 item" if len(items) == 1 else f"{len(items)} items"
    named = " ".join(str(made_with[key]) for key in ("task", "split") if key in made_with)
    return {
        "title": f"{named or ', '.join(one.system for one in systems)}: {many}",
        "systems": [one.system for one in systems],
        "passes": [len(one.passes) for one in systems],
        "lowercase": lowercase,
        "notes": notes,
        "total": len(items),
        "metrics": [{**one, "items": [[side[i] for i in sorted(kept)] for side in one["items"]]} for one in metrics],
        "verdicts": [{**one, "items": [one["items"][i] for i in sorted(kept)]} for one in verdicts],
        "items": [{**texts[i], "clip": clips.get(items[i]["id"])} for i in sorted(kept)],
        "lost": lost,
        "clips": store.clips if store else [],
        "bytes": store.bytes if store else 0,
    }


def _scored(
    systems: Sequence[Predictions], lowercase: bool, notes: list[str]
) -> Iterator[tuple[str, list[Scored], str]]:
    """Yield each metric that all systems have, its scores and signature; say in `notes` which are left out, and why."""
    if not all(text.strip() for text in systems[0].references):
        notes.append("Some items have no reference, so no metric is computed.")
        return
    names = dict.fromkeys(name for one in systems for name in one.meta.get("metrics", {}))
    for name in names or DEFAULT_METRICS:
        without = [one.system for one in systems if name not in METRICS and name not in one.kept]
        if without:
            notes.append(f"{name} is left out: {', '.join(without)} was not scored with it.")
            continue
        scored = [one.scored(name, lowercase=lowercase) for one in systems]
        signatures = {signature for _, signature in scored}
        if len(signatures) > 1:
            notes.append(f"{name} is left out, it was computed in different ways: {' and '.join(sorted(signatures))}.")
            continue
        yield name, [one for one, _ in scored], signatures.pop()


def _item_scores(name: str, scored: Scored, system: Predictions, lowercase: bool) -> list[float | None]:
    """Return each item's score, mean over the passes; BLEU is the reward's, which has sense for a single sentence."""
    if name != "bleu":
        per_pass = [[scored.total(row) for row in items] for items in scored.passes]
        return _numbers(*np.mean(per_pass, axis=0))
    fold = partial(fold_whitespace, lowercase=lowercase)
    references = [fold(text) for text in system.references]
    per_pass = [REWARDS["bleu"]([fold(text) for text in texts], references) for texts in system.passes]
    return _numbers(*100 * np.array(per_pass, dtype=float).mean(axis=0))


def _judged(results: Sequence[compare.Judgement], systems: Sequence[Predictions], notes: list[str]) -> dict[str, Any]:
    """Return a judge's scores as those of a metric; systems that it has not judged have none."""
    about = results[0].meta["judge"]
    lines, said = compare.judge_lines(results, systems, SAMPLES)
    notes += said
    by_system = {one.parties[0]: one for one in results}
    means: list[list[float | None]] = []
    for one in systems:
        if one.system in by_system:
            sums = compare.judge_scores(by_system[one.system], systems[0])
            means.append(_numbers(*(total / count if count else np.nan for total, count in sums)))
        else:
            means.append([None] * len(one.items))
    scores = {line.system: _numbers(line.value, *line.interval, *line.passes) for line in lines}
    differences = {}
    for a, b in combinations(range(len(systems)), 2):
        both = [by_system[one.system] for one in (systems[a], systems[b]) if one.system in by_system]
        if len(both) == 2:
            of_pair = compare.judge_lines(both, [systems[a], systems[b]], SAMPLES)[0]
            differences |= {f"{a}-{b}": _numbers(*line.difference) for line in of_pair if line.difference}
    return {
        "name": f"judge {about['kind']}",
        "less": False,
        "signature": about["signature"],
        "scores": [scores.get(one.system) for one in systems],
        "differences": differences,
        "items": means,
    }


def _verdicts(judgement: compare.Judgement, systems: Sequence[Predictions]) -> dict[str, Any]:
    """Return the verdicts of a pairwise judge for the first of its two systems, per item those of each pass."""
    place = {one.system: number for number, one in enumerate(systems)}
    a, b = (place[name] for name in judgement.parties)
    by_id: dict[str, list[str]] = {}
    for row in judgement.rows:
        by_id.setdefault(row["id"], []).append(row["verdict"])
    return {"a": a, "b": b, "items": [by_id.get(item["id"], []) for item in systems[0].items]}


def _telling(metrics: Sequence[dict[str, Any]], count: int, systems: int) -> list[int]:
    """Return all items, in turn the most improved, the most worsened, the worst and the best by the first metric."""
    if not metrics:
        return list(range(count))
    sign = -1.0 if metrics[0]["less"] else 1.0
    first, last = (sign * np.array(metrics[0]["items"][at], dtype=float) for at in (0, -1))
    keys = [last, -last] if systems == 1 else [first - last, last - first, last, -last]
    orders = [np.argsort(key, kind="stable").tolist() for key in keys]  # NaN last
    return list(dict.fromkeys(i for turn in zip_longest(*orders) for i in turn))


def _texts(number: int, systems: Sequence[Predictions], item: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows of an item, predictions per system and pass."""
    shown = {key: item[key] for key in ("id", "kind", "prompt", "text", "reference") if item.get(key) is not None}
    shown["said"] = [[texts[number] for texts in one.passes] for one in systems]
    shown["cut"] = [[bool(cut[number]) for cut in one.truncated] for one in systems]
    return shown


def _within(texts: Sequence[dict[str, Any]], order: Sequence[int], limit: int) -> set[int]:
    """Return the first items of the order whose texts fit into a number of bytes, at least one."""
    kept: set[int] = set()
    for i in order:
        limit -= len(json.dumps(texts[i], ensure_ascii=False).encode("utf-8", "surrogatepass"))
        if kept and limit < 0:
            break
        kept.add(i)
    return kept


def _clips(
    items: Sequence[dict[str, Any]],
    systems: Sequence[Predictions],
    recordings: Sequence[Recordings],
    store: ClipStore | None,
    say: Callable[[str], None],
) -> tuple[dict[str, int], dict[str, int]]:
    """Return item → clip, and how many items have no clip for which reason."""
    clips: dict[str, int] = {}
    lost = {"full": 0, "missing": 0, "unreadable": 0}
    if store is None:
        return clips, lost
    made_with = systems[0].meta.get("made_with", {})
    task = made_with.get("task")
    usable = [one for one in recordings if task in (None, Path(one.task).name)]
    if not usable and task in TASKS:
        usable = [Recordings(task)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)  # whoever trained on it has been told
        for item in items:
            try:
                source = _found(item, usable, made_with.get("split"), say)
                if source is None:
                    lost["missing"] += 1
                    continue
                number = store.add(source)
            except AudioError as error:
                if not lost["unreadable"]:
                    say(f"no recording of {item['id']} in the report, and perhaps of others: {error}")
                lost["unreadable"] += 1
                continue
            if number is None:
                lost["full"] += 1
            else:
                clips[item["id"]] = number
    return clips, lost


def _found(
    item: dict[str, Any], usable: list[Recordings], split: str | None, say: Callable[[str], None]
) -> Audio | None:
    """Return an item's audio; sources whose rows cannot be read are taken out of `usable`."""
    for one in list(usable):
        try:
            found = one.find(item, split)
        except AudioError:  # of this row alone
            raise
        except (ConfigError, DataError) as error:
            say(f"no recordings of {Path(one.task).name} in the report: {error}")
            usable.remove(one)
            continue
        if found is not None:
            return found
    return None


def _numbers(*values: float) -> list[Any]:
    """Return numbers as JSON has them, with four decimals; None for NaN."""
    return [None if value != value else round(float(value), 4) for value in values]
