"""The section of the report on predictions: scores, differences between two systems, and the items behind them.

Scores and judgements are those of `leaf compare`. The BLEU of an item is sentence BLEU, as the reward's. Files with
different items cannot be compared, so they are in sets of their own.
"""

import json
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from leaf.errors import DataError
from leaf.evaluation import compare
from leaf.evaluation.alike import difference_to_any, in_order_of, share_recordings
from leaf.evaluation.bootstrap import Scored
from leaf.evaluation.judgements import Judgement, find_judgements, judge_lines, judge_scores
from leaf.evaluation.lengths import NEUTRAL
from leaf.evaluation.predictions import Predictions, prediction_files, read_meta, read_predictions
from leaf.evaluation.registry import DEFAULT_METRICS, is_plain, is_share
from leaf.evaluation.table import scored_notes
from leaf.report.audio import SECTION_BYTES, ClipStore, Recordings
from leaf.report.items import chosen_items, clips_of, text_of
from leaf.report.page import Section, assets
from leaf.runs.directory import RunDirectory
from leaf.text import unique_names

SAMPLES = 1000  # bootstrap resamples, as `leaf compare`
TEXT_BYTES = 1_000_000  # of the items' texts; of more, the page shows a selection
_SCRIPTS = ("words", "comparison", "tables", "items", "choice", "evaluation")


def evaluation_section(
    runs: Sequence[str | Path | RunDirectory] = (),
    predictions: Sequence[str | Path] = (),
    *,
    audio: bool = True,
    audio_bytes: int = SECTION_BYTES,
    say: Callable[[str], None] = print,
) -> Section | None:
    """Make the section; None if there is no prediction file.

    Args:
        runs: run directories. Prediction files in them (`leaf demo` writes test_before and test_after) or in their
            folder `evaluation` are shown, and their recipes say where the audio of the items is.
        predictions: further prediction files, or folders of them, as `leaf evaluate` writes them. The page opens with a
            comparison to the first file of a set.
        audio: add recordings to the page, those of the most telling items first.
        audio_bytes: how many bytes they may take.
        say: takes a line about recordings that cannot be read.

    Raises:
        DataError: a file cannot be read, a folder of `predictions` has no prediction files, or judgements are damaged.
        RunError: one of `runs` is no run directory, or its recipe cannot be read.
    """
    opened = [run if isinstance(run, RunDirectory) else RunDirectory.open(run) for run in runs]
    tasks = [(recipe.task, recipe.columns, recipe.plugins) for recipe in (run.what_ran() for run in opened)]
    origins: dict[Path, list[int]] = {}  # file → the tasks that may have its rows
    for number, run in enumerate(opened):
        for file in _files_of(run.path):
            origins.setdefault(file.resolve(), [number])
    for file in _bare_first(prediction_files(predictions)):
        origins.setdefault(file.resolve(), list(range(len(tasks))))
    if not origins:
        return None
    sets = _sets(list(origins))
    shared: dict[str, Recordings] = {}  # runs of one task read its rows once
    recordings = [shared.setdefault(json.dumps(task), Recordings(*task)) for task in tasks]
    shown = []
    for members in sets:
        candidates = list(dict.fromkeys(recordings[i] for file in members for i in origins[file]))
        store = ClipStore(max_bytes=audio_bytes // len(sets)) if audio else None
        shown.append(as_json(members, candidates, store, TEXT_BYTES // len(sets), say))
    scripts = assets("audio.js", *(f"evaluation/{name}.js" for name in _SCRIPTS))
    styles = assets("audio.css", "evaluation/evaluation.css")
    return Section("evaluation", "Evaluation", {"sets": shown, "audio": audio}, scripts, styles)


# -- files and sets ----------------------------------------------------------------------------------------------------
def _files_of(run: Path) -> list[Path]:
    """List the prediction files of a run, which may have none."""
    there = any(True for folder in (run, run / "evaluation") for _ in folder.glob("*.meta.json"))
    return _bare_first(prediction_files([run])) if there else []


def _bare_first(files: Sequence[Path]) -> list[Path]:
    """Sort files so that what was predicted without a trained adapter comes first."""

    def is_bare(file: Path) -> bool:
        made_with = read_meta(file).get("made_with", {})
        return file.stem == "test_before" or ("adapter" in made_with and made_with["adapter"] is None)

    return sorted(files, key=lambda file: not is_bare(file))


def _sets(files: Sequence[Path]) -> list[dict[Path, Predictions]]:
    """Read files in sets that can be compared: the same items in one order, all scored with case or all without."""
    sets: list[tuple[set[bool], dict[Path, Predictions]]] = []
    for file in files:
        one = read_predictions(file)
        case = {one.meta["lowercase"]} if "lowercase" in one.meta else set()
        for cases, members in sets:
            first = next(iter(members.values()))
            if difference_to_any(list(members.values()), one) is None and len(cases | case) < 2:
                cases |= case
                members[file] = in_order_of(one, first)
                break
        else:
            sets.append((case, {file: one}))
    for _, members in sets:
        names = unique_names([one.system for one in members.values()], [file.with_suffix("") for file in members])
        for one, name in zip(members.values(), names, strict=True):
            one.system = name
        share_recordings(list(members.values()))
    return [members for _, members in sets]


# -- one set -----------------------------------------------------------------------------------------------------------
def as_json(
    members: dict[Path, Predictions],
    recordings: Sequence[Recordings],
    store: ClipStore | None,
    text_bytes: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Collect what the page shows of systems that answered the same items.

    Args:
        members: the predictions by file.
        recordings: where the items may have their audio.
        store: takes the clips; None without recordings.
        text_bytes: what the texts of the shown items may take.
        say: takes a line about recordings that cannot be read.
    """
    systems = list(members.values())
    items = systems[0].items
    lowercase = compare.shared_case(systems, None)
    metrics, left_out = metrics_of(systems, lowercase)
    judgements, unused = find_judgements(systems, list(members), ())
    judges, about_judges = judges_of(judgements, systems)
    verdicts, about_verdicts = verdicts_of(judgements, systems)
    metrics = sorted(metrics + judges, key=lambda one: one.get("neutral", False))  # the first one rates the items
    texts = [text_of(i, systems) for i in range(len(items))]
    chosen = chosen_items(metrics, texts, text_bytes)
    clips, lost = clips_of([items[i] for i in chosen], systems[0], recordings, store, say)
    shown = sorted(chosen)
    return {
        "title": _title(systems),
        "systems": [one.system for one in systems],
        "passes": [len(one.passes) for one in systems],
        "lowercase": lowercase,
        "notes": [
            *compare.what_was_compared(systems, SAMPLES),
            *left_out,
            *unused,
            *about_judges,
            *about_verdicts,
        ],
        "total": len(items),
        "metrics": [{**one, "items": [[side[i] for i in shown] for side in one["items"]]} for one in metrics],
        "verdicts": [{**one, "items": [one["items"][i] for i in shown]} for one in verdicts],
        "items": [{**texts[i], "clip": clips.get(items[i]["id"])} for i in shown],
        "lost": lost,
        "clips": store.clips if store else [],
        "bytes": store.bytes if store else 0,
    }


def _title(systems: Sequence[Predictions]) -> str:
    made_with = systems[0].meta.get("made_with", {})
    named = " ".join(str(made_with[key]) for key in ("task", "split") if key in made_with)
    count = len(systems[0].items)
    return f"{named or ', '.join(one.system for one in systems)}: {count} {'item' if count == 1 else 'items'}"


def metrics_of(systems: Sequence[Predictions], lowercase: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Compute each metric that all systems have, and say which are left out, and why.

    Returns:
        Per metric its `name`, whether `less` is better or neither (`neutral`), its `signature`, and three tables.
        `scores`: per system value, interval and the values of its passes. `differences`: "a-b" → difference of system b
        to a, interval and p. `items`: per system a score for each item. Then a sentence per metric that is left out.
    """
    if not all(text.strip() for text in systems[0].references):
        return [], ["Some items have no reference, so no metric is computed."]
    metrics: list[dict[str, Any]] = []
    notes: list[str] = []
    names = dict.fromkeys(name for one in systems for name in one.meta.get("metrics", {}))
    for name in names or DEFAULT_METRICS:
        without = [one.system for one in systems if not is_plain(name) and name not in one.kept]
        if without:
            notes.append(f"{name} is left out, because {', '.join(without)} was not scored with it.")
            continue
        try:
            scored, signatures = zip(*(one.scored(name, lowercase=lowercase) for one in systems), strict=True)
        except DataError as error:
            notes.append(f"{name} is left out: {error}")
            continue
        if len(set(signatures)) > 1:
            notes.append(f"{compare.in_different_ways(name, signatures)} So it is left out.")
            continue
        metrics.append(_metric(name, signatures[0], scored, systems))
        notes += scored_notes(name, systems, scored)
    return metrics, notes


def _metric(
    name: str, signature: str, scored: Sequence[Scored | None], systems: Sequence[Predictions]
) -> dict[str, Any]:
    """Collect what the page shows of a metric or judge; a system without scores has None for them, and for each item.

    A pair of systems without a common item has no difference. Interval and p are None where there are none.
    """
    how: dict[str, Any] = {"groups": systems[0].groups, "samples": SAMPLES}
    there = {number: one for number, one in enumerate(scored) if one is not None}
    scores: list[list[Any] | None] = [None] * len(systems)
    items: list[list[Any]] = [[None] * len(one.items) for one in systems]
    for number, one in there.items():
        scores[number] = _numbers(one.value(), *(one.interval(**how) or (None, None)), *one.values())
        items[number] = _numbers(*one.item_values())
    differences = {f"{a}-{b}": there[b].against(there[a], **how) for a, b in combinations(there, 2)}
    return {
        "name": name,
        "less": any(one.less_is_better for one in there.values()),
        "neutral": name in NEUTRAL,
        "digits": 4 if is_share(name) else 1,
        "signature": signature,
        "scores": scores,
        "differences": {pair: _numbers(*one) for pair, one in differences.items() if one},
        "items": items,
    }


# -- judges ------------------------------------------------------------------------------------------------------------
def _kind(results: Sequence[Judgement]) -> str:
    return results[0].meta["judge"]["kind"]


def judges_of(
    judgements: Sequence[Sequence[Judgement]], systems: Sequence[Predictions]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Collect the scores of judges in the form of metrics, see `metrics_of`, and what is to be said about them.

    A system that a judge has not judged has None for its scores, and for each item.
    """
    judges: list[dict[str, Any]] = []
    notes: list[str] = []
    for results in judgements:
        if _kind(results) == "pairwise":
            continue
        judge, about = _judge(results, systems)
        same = sum(one["name"].startswith(judge["name"]) for one in judges)
        judges.append(judge | {"name": f"{judge['name']} #{same + 1}"} if same else judge)
        notes += about
    return judges, notes


def _judge(results: Sequence[Judgement], systems: Sequence[Predictions]) -> tuple[dict[str, Any], list[str]]:
    signature = results[0].meta["judge"]["signature"]
    judge = _metric(f"judge {_kind(results)}", signature, judge_scores(results, systems), systems)
    return judge, judge_lines(results, systems, SAMPLES)[1]


def verdicts_of(
    judgements: Sequence[Sequence[Judgement]], systems: Sequence[Predictions]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Collect the verdicts of pairwise judges, and what is to be said about them.

    Returns:
        Per pair the number `a` of the system that the verdicts are about, `b` of the other one, and `items`: for each
        item the verdicts of the passes. Then sentences.
    """
    place = {one.system: number for number, one in enumerate(systems)}
    verdicts: list[dict[str, Any]] = []
    notes: list[str] = []
    for results in judgements:
        if _kind(results) != "pairwise":
            continue
        notes += judge_lines(results, systems, SAMPLES)[1]
        for judgement in results:
            a, b = (place[name] for name in judgement.parties)
            by_id: dict[str, list[str]] = {}
            for row in judgement.rows:
                by_id.setdefault(row["id"], []).append(row["verdict"])
            verdicts.append({"a": a, "b": b, "items": [by_id.get(item["id"], []) for item in systems[0].items]})
    return verdicts, notes


def _numbers(*values: float | None) -> list[Any]:
    """Round numbers to four decimals for JSON, which has None for NaN."""
    return [None if value is None or value != value else round(float(value), 4) for value in values]
