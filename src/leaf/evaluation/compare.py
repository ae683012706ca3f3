"""Compare prediction files: scores with intervals, paired differences to the first, judges' verdicts, as a table.

Only systems that answered the same items are compared. Every difference is taken on the same resamples of recordings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from leaf.errors import ConfigError, DataError, some_of
from leaf.evaluation.bootstrap import Scored
from leaf.evaluation.predict import Decoding
from leaf.evaluation.predictions import Predictions, in_order_of, item_difference, read_meta, read_predictions
from leaf.evaluation.registry import DEFAULT_METRICS
from leaf.files import read_rows
from leaf.text import unique_names

FORMATS = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}
_HEADERS = ("metric", "system", "value", "95 % interval", "over passes", "difference", "95 % interval", "p")


@dataclass(frozen=True)
class Line:
    """Hold one line of the table.

    Attributes:
        metric: metric or judge.
        system: name of the system.
        value: mean over the passes.
        interval: its bootstrap interval.
        passes: value of each pass.
        difference: to the first system, with interval and p; None for the first itself.
    """

    metric: str
    system: str
    value: float
    interval: tuple[float, float]
    passes: tuple[float, ...]
    difference: tuple[float, float, float, float] | None


def chosen_metrics(names: str | None, paths: Sequence[str] | None) -> tuple[tuple[str, ...] | None, dict[str, str]]:
    """Return metric names of a comma-separated text (`none`: none; None stays None), and METRIC=PATH as a mapping."""
    located = {}
    for given in paths or []:
        name, equals, path = given.partition("=")
        if not equals or not path:
            raise ConfigError(f"--metric-path is {given!r}; give METRIC=PATH, as meteor=/usr/share/wordnet.")
        located[name] = path
    if names is None:
        return None, located
    return tuple(name.strip() for name in names.split(",") if name.strip() not in ("", "none")), located


def compare_files(
    files: Sequence[str | Path],
    *,
    metrics: Sequence[str] | None = None,
    paths: Mapping[str, str] | None = None,
    lowercase: bool | None = None,
    judged: Sequence[str | Path] = (),
    format: str = "text",
    samples: int = 1000,
) -> str:
    """Return the table of several prediction files, and under it what reproduces it.

    Args:
        files: prediction files; differences are to the first.
        metrics: default those the files were scored with, or BLEU, exact match and chrF.
        paths: metric → data or model, where its statistics were not kept.
        lowercase: compare without case; default as the files were scored.
        judged: files of `leaf judge`; those that lie beside the prediction files are found without.
        format: text, markdown or latex.
        samples: bootstrap resamples.

    Raises:
        DataError: files whose items differ, or cannot be read.
        ConfigError: an unknown format or metric, a metric without its data, files scored in different ways.
    """
    if format not in FORMATS:
        raise ConfigError(f"The format is {format!r}; allowed are {', '.join(FORMATS)}.")
    systems = load_systems(files)
    lowercase = shared_case(systems, lowercase)
    if metrics is None:
        scored_with = [name for one in systems for name in one.meta.get("metrics", {})]
        metrics = tuple(dict.fromkeys(scored_with)) or DEFAULT_METRICS
    lines: list[Line] = []
    notes = [what_was_compared(systems, samples)]
    for name in metrics:
        pairs = [one.scored(name, lowercase=lowercase, paths=paths) for one in systems]
        signatures = {signature for _, signature in pairs}
        if len(signatures) > 1:
            raise ConfigError(
                f"{name} was computed in different ways: {' and '.join(sorted(signatures))}. Score all files again in "
                f"one way, with `--metric-path {name}=...`."
            )
        lines += _lines(name, systems, [scored for scored, _ in pairs], samples)
        worse = ", less is better" if pairs[0][0].less_is_better else ""
        notes.append(f"{name}: {signatures.pop()}{worse}")
    for results in judgements(systems, files, judged, notes):
        more, note = judge_lines(results, systems, samples)
        lines += more
        notes += note
    if format != "text":
        notes = [note.replace("\n", " ") for note in notes]
    return render(lines, notes, format)


def load_systems(files: Sequence[str | Path]) -> list[Predictions]:
    """Read prediction files of the same items, in the order of the first one's, each system under a name of its own.

    Raises:
        DataError: no files, or files whose items differ: which, and in what.
    """
    if not files:
        raise DataError("There is nothing to compare; give prediction files.")
    paths = [Path(file) for file in files]
    if twice := [str(path) for i, path in enumerate(paths) if path in paths[:i]]:
        raise DataError(f"{twice[0]} was given twice; give each file once.")
    systems = [read_predictions(path) for path in paths]
    names = unique_names([one.system for one in systems], [path.with_suffix("") for path in paths])
    for one, name in zip(systems, names, strict=True):
        one.system = name
    differences = [(one.system, item_difference(systems[0], one)) for one in systems[1:]]
    wrong = [f"{name}: {difference}" for name, difference in differences if difference]
    if wrong:
        raise DataError(
            f"Only systems that answered the same items can be compared; against {systems[0].system}, "
            + "; ".join(wrong)
            + ". Evaluate them on the same split and rows."
        )
    return [systems[0], *(in_order_of(one, systems[0]) for one in systems[1:])]


def render(lines: Sequence[Line], notes: Sequence[str], format: str) -> str:
    """Return lines and notes as text, markdown or LaTeX (booktabs); a metric's name stands on its first line alone."""
    cells = []
    for number, line in enumerate(lines):
        first = number == 0 or lines[number - 1].metric != line.metric
        several = len(line.passes) > 1
        row = [
            line.metric if first else "",
            line.system,
            f"{line.value:.2f}",
            "{:.2f} to {:.2f}".format(*line.interval),
        ]
        row.append(f"{min(line.passes):.2f} to {max(line.passes):.2f}" if several else "")
        if line.difference is None:
            row += ["", "", ""]
        else:
            difference, low, high, p = line.difference
            row += [f"{difference:+.2f}", f"{low:+.2f} to {high:+.2f}", f"{p:.3f}"]
        cells.append(row)
    align = ("left", "left", "right", "left", "left", "right", "left", "right")
    options: dict[str, Any] = {"headers": _HEADERS, "tablefmt": FORMATS[format], "disable_numparse": True}
    table = tabulate(cells, colalign=align if cells else None, **options)
    if format == "latex":
        return "\n".join([table, *(f"% {note}" for note in notes)])
    return "\n".join([table, "", *(f"- {note}" if format == "markdown" else note for note in notes)])


def _lines(name: str, systems: Sequence[Predictions], scored: Sequence[Scored], samples: int) -> list[Line]:
    groups = systems[0].groups
    lines = []
    for one, its in zip(systems, scored, strict=True):
        first = one is systems[0]
        lines.append(
            Line(
                name,
                one.system,
                its.value(),
                its.interval(groups=groups, samples=samples),
                tuple(its.values()),
                None if first else its.against(scored[0], groups=groups, samples=samples),
            )
        )
    return lines


def shared_case(systems: Sequence[Predictions], asked: bool | None) -> bool:
    """Return whether to compare without case: as asked, or as the files were scored.

    Raises:
        ConfigError: nothing is asked, and some files were scored with case and some without.
    """
    if asked is not None:
        return asked
    ways = {one.meta["lowercase"] for one in systems if "lowercase" in one.meta}
    if len(ways) > 1:
        raise ConfigError("Some files were scored with case and some without; say --lowercase or --no-lowercase.")
    return ways.pop() if ways else False


def what_was_compared(systems: Sequence[Predictions], samples: int) -> str:
    """Return in words what a comparison is made of: items, recordings, passes, decoding, intervals."""
    items, groups = len(systems[0].items), len(set(systems[0].groups))
    decodings = {}
    for one in systems:
        decoding = one.meta.get("made_with", {}).get("decoding")
        how = "decoding unknown" if decoding is None else Decoding.of_meta(decoding, one.seeds).in_words()
        decodings[one.system] = f"{len(one.passes)} {'pass' if len(one.passes) == 1 else 'passes'}, {how}"
    if len(set(decodings.values())) == 1:
        how = decodings[systems[0].system]
    else:
        how = "DECODED DIFFERENTLY: " + "; ".join(f"{name}: {text}" for name, text in decodings.items())
    left_out = systems[0].meta.get("left_out", [])
    without = f" ({len(left_out)} more left out for their audio)" if left_out else ""
    first = f"; differences are to {systems[0].system}, p two-sided, not corrected for several" if systems[1:] else ""
    return (
        f"{items} items of {groups} recordings{without}; {how}. Values are means over passes; intervals: "
        f"percentile bootstrap over recordings, {samples} resamples, paired{first}."
    )


# -- judges ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Judgement:
    """Hold one file of `leaf judge`: its meta data, its rows, and the names of the systems it judges."""

    meta: dict[str, Any]
    rows: list[dict[str, Any]]
    parties: tuple[str, ...]


def judgements(
    systems: Sequence[Predictions], files: Sequence[str | Path], judged: Sequence[str | Path], notes: list[str]
) -> list[list[Judgement]]:
    """Return the judge files of these systems, those of one judge and kind together.

    Args:
        systems: the systems compared.
        files: their prediction files; files of `leaf judge` that lie beside them are found.
        judged: further files of `leaf judge`.
        notes: takes a line about files beside the predictions that are not used.

    Raises:
        DataError: a file was not written by `leaf judge`, cannot be read, or one of `judged` judges other predictions.
    """
    folders = {Path(file).parent for file in files}
    beside = [file for folder in folders for file in sorted(folder.glob("*.judge-*.jsonl"))]
    by_judge: dict[str, list[Judgement]] = {}
    elsewhere = []
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
                f"{file.name} is not used: the predictions have changed since. Give `leaf judge` again; replies that "
                "still hold are in its cache"
            )
        else:
            elsewhere.append(file.name)
    if elsewhere:
        notes.append(f"not used, for they judge systems that are not compared here: {some_of(elsewhere)}")
    return list(by_judge.values())


def _judged_system(party: Mapping[str, str], passes: int, systems: Sequence[Predictions]) -> str | None:
    """Return which system's predictions a judge was given, of several alike the one of that name; None for none.

    Earlier versions wrote down the checksum of the whole file.
    """
    same = [one.system for one in systems if party["sha256"] in (one.answers_digest(passes), one.digest)]
    return party["system"] if party["system"] in same else next(iter(same), None)


def judge_lines(
    results: Sequence[Judgement], systems: Sequence[Predictions], samples: int
) -> tuple[list[Line], list[str]]:
    """Return table lines (scores) and notes (pairwise verdicts, failure rates) of one judge."""
    about = results[0].meta["judge"]
    title = f"judge {about['kind']}"
    notes = [f"{title}, {' against '.join(one.parties)}: {one.meta['line']}" for one in results]
    notes.append(f"{title}: {about['signature']}")
    if about["kind"] == "pairwise":
        for one in results:
            scored = _verdicts(one, systems[0])
            if not scored.passes[0][:, 1].sum():
                continue
            even = Scored(scored.total, [np.stack([items[:, 1] / 2, items[:, 1]], 1) for items in scored.passes])
            low, high = scored.interval(groups=systems[0].groups, samples=samples)
            p = scored.against(even, groups=systems[0].groups, samples=samples)[3]
            notes.append(
                f"{title}: {one.parties[0]} wins {scored.value():.1f} % of agreeing verdicts against {one.parties[1]}, "
                f"ties half ({low:.1f} to {high:.1f}, p {p:.3f} against 50 %)"
            )
        return [], notes
    by_system = {one.parties[0]: one for one in results}
    present = [one for one in systems if one.system in by_system]
    arrays = [judge_scores(by_system[one.system], systems[0]) for one in present]
    if any(not array[:, 1].any() for array in arrays):
        return [], [*notes, f"{title}: no reply of the judge could be read for some system, so there is no mean"]
    groups, lines = systems[0].groups, []
    for one, array in zip(present, arrays, strict=True):
        scored, difference = Scored(_mean_of_scored, [array]), None
        if one is not systems[0] and present[0] is systems[0]:
            both = (array[:, 1:] > 0) & (arrays[0][:, 1:] > 0)
            pair = [Scored(_mean_of_scored, [np.where(both, side, 0.0)]) for side in (array, arrays[0])]
            difference = pair[0].against(pair[1], groups=groups, samples=samples) if both.any() else None
            notes.append(
                f"{title}: {one.system} and {systems[0].system} are paired on {both.sum()} items scored in both"
            )
        interval = scored.interval(groups=groups, samples=samples)
        lines.append(Line(title, one.system, scored.value(), interval, (scored.value(),), difference))
    return lines, notes


def _mean_of_scored(sums: np.ndarray) -> float:
    """Return the mean over the items that have a score; a resample without any counts as 0."""
    return float(sums[0] / sums[1]) if sums[1] else 0.0


def _percentage_of_scored(sums: np.ndarray) -> float:
    return 100 * _mean_of_scored(sums)


def judge_scores(judgement: Judgement, system: Predictions) -> np.ndarray:
    """Return (items, 2): sum and number of an item's scores over the judged passes, in the system's order."""
    place = {item["id"]: i for i, item in enumerate(system.items)}
    sums = np.zeros((len(place), 2))
    for row in judgement.rows:
        if row["score"] is not None:
            sums[place[row["id"]]] += (row["score"], 1.0)
    return sums


def _verdicts(judgement: Judgement, system: Predictions) -> Scored:
    """Return the share of agreeing verdicts for the first party, a tie as half."""
    place = {item["id"]: i for i, item in enumerate(system.items)}
    worth = {"win": 1.0, "tie": 0.5, "loss": 0.0}
    sums = np.zeros((len(place), 2))
    for row in judgement.rows:
        if row["verdict"] in worth:
            sums[place[row["id"]]] += (worth[row["verdict"]], 1.0)
    return Scored(_percentage_of_scored, [sums])
