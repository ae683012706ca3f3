"""Read what `leaf judge` wrote, and turn it into lines of the comparison's table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from leaf.errors import DataError, some_of
from leaf.evaluation.bootstrap import Scored, mean_of_scored
from leaf.evaluation.predictions import Predictions, read_meta
from leaf.evaluation.table import Line
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
    by_system = {one.parties[0]: one for one in results}
    present = [one for one in systems if one.system in by_system]
    arrays = [judge_scores(by_system[one.system], systems[0]) for one in present]
    if any(not array[:, 1].any() for array in arrays):
        return [], [*notes, f"{title}: no reply of the judge could be read for some system, so there is no mean"]
    groups, lines = systems[0].groups, []
    for one, array in zip(present, arrays, strict=True):
        scored, difference = Scored(mean_of_scored, [array]), None
        if one is not systems[0] and present[0] is systems[0]:
            # Only items that both have a score for: otherwise the difference would be one of items as well.
            both = (array[:, 1:] > 0) & (arrays[0][:, 1:] > 0)
            ours, first = (Scored(mean_of_scored, [np.where(both, side, 0.0)]) for side in (array, arrays[0]))
            difference = ours.against(first, groups=groups, samples=samples) if both.any() else None
            notes.append(
                f"{title}: {one.system} and {systems[0].system} are paired on {both.sum()} items scored in both"
            )
        interval = scored.interval(groups=groups, samples=samples)
        lines.append(Line(title, one.system, scored.value(), interval, (scored.value(),), difference))
    return lines, notes


def judge_scores(judgement: Judgement, system: Predictions) -> np.ndarray:
    """Add up an item's scores over the judged passes: (items, 2) of sum and number, in the system's order."""
    return _sums_by_item(judgement, system, [row["score"] for row in judgement.rows])


def _wins(judgement: Judgement, title: str, system: Predictions, samples: int) -> list[str]:
    """Say how often the first party wins, with interval and p against 50 %; nothing where no verdicts agree."""
    worth = {"win": 1.0, "tie": 0.5, "loss": 0.0}
    items = _sums_by_item(judgement, system, [worth.get(row["verdict"]) for row in judgement.rows])
    if not items[:, 1].any():
        return []
    scored = Scored(_percentage_of_scored, [items])
    even = Scored(_percentage_of_scored, [np.stack([items[:, 1] / 2, items[:, 1]], 1)])
    low, high = scored.interval(groups=system.groups, samples=samples)
    p = scored.against(even, groups=system.groups, samples=samples)[3]
    return [
        f"{title}: {judgement.parties[0]} wins {scored.value():.1f} % of agreeing verdicts against "
        f"{judgement.parties[1]}, ties half ({low:.1f} to {high:.1f}, p {p:.3f} against 50 %)"
    ]


def _sums_by_item(judgement: Judgement, system: Predictions, values: Sequence[float | None]) -> np.ndarray:
    """Add up the values of a judgement's rows, without missing ones: (items, 2) of sum and number per item."""
    place = {item["id"]: i for i, item in enumerate(system.items)}
    sums = np.zeros((len(place), 2))
    for row, value in zip(judgement.rows, values, strict=True):
        if value is not None:
            sums[place[row["id"]]] += (value, 1.0)
    return sums


def _percentage_of_scored(sums: np.ndarray) -> float:
    return 100 * mean_of_scored(sums)
