"""Read what `leaf judge` wrote, and turn it into lines of the comparison's table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leaf.errors import DataError, some_of
from leaf.evaluation.bootstrap import Scored, mean_of_scored
from leaf.evaluation.predictions import JUDGED, Predictions, read_meta
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
        files: their prediction files, in the same order; files of `leaf judge` beside them are found.
        judged: further files of `leaf judge`.

    Returns:
        The judgements by judge, and a sentence about files beside the predictions that are not used.

    Raises:
        DataError: a file was not written by `leaf judge`, cannot be read, or one of `judged` judges other predictions;
            or two files of one judge are of the same systems.
    """
    folders = {Path(file).parent for file in files}
    beside_of = {one.system: Path(file).resolve().parent for one, file in zip(systems, files, strict=True)}
    beside = [file for folder in folders for file in sorted(folder.glob("*.judge-*.jsonl"))]
    asked = [Path(file).resolve() for file in judged]
    found: dict[tuple[str, tuple[str, ...]], tuple[Path, Judgement]] = {}  # by judge and systems
    notes, elsewhere = [], []
    for file in {file.resolve(): file for file in [*beside, *map(Path, judged)]}.values():
        meta = read_meta(file)
        if "judge" not in meta:
            raise DataError(
                f"{file} was not written by `leaf judge`: {file.stem}.meta.json does not say how it judged."
            )
        near = [one for one in systems if beside_of[one.system] == file.resolve().parent]
        parties = _parties(meta, [*near, *systems], JUDGED)
        if parties is not None:
            key = (meta["judge"]["sha256"], parties)
            other, _ = found.setdefault(key, (file, Judgement(meta, read_rows(file), parties)))
            if other != file:
                raise DataError(
                    f"{other} and {file} are both of one judge for {' against '.join(parties)}; keep one of them, and "
                    "move the other into another folder."
                )
        elif file.resolve() in asked:
            why = _why_unused(meta, systems) or "it judges other predictions than those compared; judge these files"
            raise DataError(f"{file} cannot be used: {why}.")
        elif why := _why_unused(meta, systems):
            notes.append(f"{file.name} is not used: {why}")
        else:
            elsewhere.append(file.name)
    if elsewhere:
        notes.append(f"not used, because they judge systems that are not compared here: {some_of(elsewhere)}")
    by_judge: dict[str, list[Judgement]] = {}
    for (judge, _), (_, judgement) in found.items():
        by_judge.setdefault(judge, []).append(judgement)
    return list(by_judge.values()), notes


def _parties(meta: Mapping[str, Any], systems: Sequence[Predictions], read: Sequence[str]) -> tuple[str, ...] | None:
    """Find the systems that a file of `leaf judge` judges, by what the judge read; None where one is not compared.

    Of several systems with the same predictions it is the one of that name, or else the first. Before it had a checksum
    of what was read, a file had that of the whole prediction file.
    """
    parties = []
    for party in meta["judged"]:
        digests = {one.system: (one.answers_digest(meta["passes"], read), one.digest) for one in systems}
        same = [name for name, known in digests.items() if party["sha256"] in known]
        if not same:
            return None
        parties.append(party["system"] if party["system"] in same else same[0])
    return tuple(parties)


def _why_unused(meta: Mapping[str, Any], systems: Sequence[Predictions]) -> str | None:
    """Say why the verdicts on these systems cannot be used; None where they are on other systems."""
    again = "Repeat `leaf judge`; replies that still hold are in its cache"
    if _parties(meta, systems, ("reference",)) is not None:
        return f"an earlier version of leaf wrote it, and did not note which prompts the judge read. {again}"
    if {party["system"] for party in meta["judged"]} <= {one.system for one in systems}:
        return f"the predictions have changed since, or the prompts or references that the judge read. {again}"
    return None


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
    passes = [one.meta["passes"] for one in results]
    if len(set(passes)) > 1:
        each = ", ".join(f"{one.parties[0]} in {one.meta['passes']}" for one in results)
        notes.append(
            f"{title}: systems were judged in different numbers of passes ({each}); the first {min(passes)} count"
        )
    scored = judge_scores(results, systems)
    judged = {one.parties[0] for one in results}
    notes += [
        f"{title}: no reply of the judge on {one.system} could be read, so there is no mean"
        for one, its in zip(systems, scored, strict=True)
        if its is None and one.system in judged
    ]
    return score_lines(title, systems, scored, samples), notes + scored_notes(title, systems, scored)


def judge_scores(results: Sequence[Judgement], systems: Sequence[Predictions]) -> list[Scored | None]:
    """Collect the scores of each system by one judge, in the passes that it judged of all of them.

    A system that it did not judge, or on which no reply could be read, has None.
    """
    passes = min(one.meta["passes"] for one in results)
    by_system = {one.parties[0]: one for one in results}
    found: list[Scored | None] = []
    for one in systems:
        scored = None
        if (judgement := by_system.get(one.system)) is not None:
            arrays = _by_pass(judgement, systems[0], [row["score"] for row in judgement.rows])[:passes]
            scored = Scored(mean_of_scored, arrays) if any(items[:, 1].any() for items in arrays) else None
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
