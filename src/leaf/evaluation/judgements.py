"""Read what `leaf judge` wrote, and turn it into lines of the comparison's table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leaf.errors import DataError, some_of
from leaf.evaluation.bootstrap import Scored, mean_of_scored
from leaf.evaluation.predictions import Predictions, read_meta
from leaf.evaluation.table import Line, between, score_lines, scored_notes
from leaf.files import read_rows


@dataclass(frozen=True)
class Judgement:
    """One file of `leaf judge`: its meta data, its rows, and the names of the systems it judges."""

    meta: dict[str, Any]
    rows: list[dict[str, Any]]
    parties: tuple[str, ...]


def find_judgements(
    systems: Sequence[Predictions], files: Sequence[str | Path], judged: Sequence[str | Path]
) -> tuple[list[list[Judgement]], list[str]]:
    """Find the judge files of these systems, those of one judge and kind together.

    Args:
        systems: the systems compared.
        files: their prediction files; files of `leaf judge` beside them are found.
        judged: further files of `leaf judge`.

    Returns:
        The judgements by judge, and a sentence about files beside the predictions that are not used.

    Raises:
        DataError: a file was not written by `leaf judge`, cannot be read, or one of `judged` judges other predictions.
    """
    folders = {Path(file).parent for file in files}
    beside = [file for folder in folders for file in sorted(folder.glob("*.judge-*.jsonl"))]
    by_judge: dict[str, list[Judgement]] = {}
    notes, elsewhere = [], []
    for file in dict.fromkeys(map(Path, [*judged, *beside])):
        meta = read_meta(file)
        if "judge" not in meta:
            raise DataError(
                f"{file} was not written by `leaf judge`: {file.stem}.meta.json does not say how it judged."
            )
        found = [_judged_system(party, meta["passes"], systems) for party in meta["judged"]]
        parties = tuple(name for name in found if name is not None)
        if len(parties) == len(found):
            by_judge.setdefault(meta["judge"]["sha256"], []).append(Judgement(meta, read_rows(file), parties))
        elif file in map(Path, judged):
            raise DataError(f"{file} judges other predictions than those compared; judge these files.")
        elif {party["system"] for party in meta["judged"]} <= {one.system for one in systems}:
            notes.append(
                f"{file.name} is not used: the predictions have changed since. Repeat `leaf judge`; replies that still "
                "hold are in its cache"
            )
        else:
            elsewhere.append(file.name)
    if elsewhere:
        notes.append(f"not used, because they judge systems that are not compared here: {some_of(elsewhere)}")
    return list(by_judge.values()), notes


def _judged_system(party: Mapping[str, str], passes: int, systems: Sequence[Predictions]) -> str | None:
    """Find the system whose predictions a judge was given; of several with the same ones, the one of that name.

    Earlier versions wrote down the checksum of the whole file.
    """
    same = [one.system for one in systems if party["sha256"] in (one.answers_digest(passes), one.digest)]
    return party["system"] if party["system"] in same else next(iter(same), None)


def judge_lines(
    results: Sequence[Judgement], systems: Sequence[Predictions], samples: int
) -> tuple[list[Line], list[str]]:
    """Summarise one judge: table lines for scores, sentences for pairwise verdicts and failure rates."""
    about = results[0].meta["judge"]
    title = f"judge {about['kind']}"
    notes = [f"{title}, {' against '.join(one.parties)}: {one.meta['line']}" for one in results]
    notes.append(f"{title}: {about['signature']}")
    if about["kind"] == "pairwise":
        return [], notes + [note for one in results for note in _wins(one, title, systems[0], samples)]
    scored = judge_scores(results, systems)
    judged = {one.parties[0] for one in results}
    notes += [
        f"{title}: no reply of the judge on {one.system} could be read, so there is no mean"
        for one, its in zip(systems, scored, strict=True)
        if its is None and one.system in judged
    ]
    return score_lines(title, systems, scored, samples), notes + scored_notes(title, systems, scored)


def judge_scores(results: Sequence[Judgement], systems: Sequence[Predictions]) -> list[Scored | None]:
    """Collect the scores of each system by one judge; None where it judged none of them, or no reply could be read."""
    by_system = {one.parties[0]: one for one in results}
    found: list[Scored | None] = []
    for one in systems:
        judgement = by_system.get(one.system)
        values = [] if judgement is None else [row["score"] for row in judgement.rows]
        scored = None
        if judgement is not None and any(value is not None for value in values):
            scored = Scored(mean_of_scored, _by_pass(judgement, systems[0], values))
        found.append(scored)
    return found


def _wins(judgement: Judgement, title: str, system: Predictions, samples: int) -> list[str]:
    """Say how often the first party wins, with interval and p against 50 %; nothing where no verdicts agree."""
    worth = {"win": 1.0, "tie": 0.5, "loss": 0.0}
    items = np.sum(_by_pass(judgement, system, [worth.get(row["verdict"]) for row in judgement.rows]), axis=0)
    if not items[:, 1].any():
        return []
    scored = Scored(_percentage_of_scored, [items])
    even = Scored(_percentage_of_scored, [np.stack([items[:, 1] / 2, items[:, 1]], 1)])
    interval = scored.interval(groups=system.groups, samples=samples)
    difference = scored.against(even, groups=system.groups, samples=samples)
    p = None if difference is None else difference.p
    sure = "" if p is None else f" ({between(interval, '.1f')}, p {p:.3f} against 50 %)"
    return [
        f"{title}: {judgement.parties[0]} wins {scored.value():.1f} % of agreeing verdicts against "
        f"{judgement.parties[1]}, ties half{sure}"
    ]


def _by_pass(judgement: Judgement, system: Predictions, values: Sequence[float | None]) -> list[np.ndarray]:
    """Put the values of a judgement's rows into the order of the items: per pass (items, 2), value and number."""
    place = {item["id"]: i for i, item in enumerate(system.items)}
    passes = [np.zeros((len(place), 2)) for _ in range(judgement.meta["passes"])]
    for row, value in zip(judgement.rows, values, strict=True):
        if value is not None:
            passes[row["pass"]][place[row["id"]]] = (value, 1.0)
    return passes


def _percentage_of_scored(sums: np.ndarray) -> float:
    return 100 * mean_of_scored(sums)
