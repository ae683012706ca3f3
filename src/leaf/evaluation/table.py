"""The table of a comparison: its lines, as text, markdown or LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from leaf.evaluation.bootstrap import Difference, Scored
from leaf.evaluation.predictions import Predictions

FORMATS = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}
DASH = "–"  # for what cannot be computed
_HEADERS = ("metric", "system", "value", "95 % interval", "over passes", "difference", "95 % interval", "p")
_ALIGNED = ("left", "left", "right", "left", "left", "right", "left", "right")


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        metric: metric or judge.
        system: name of the system.
        value: mean over the passes.
        interval: its bootstrap interval, None where a single recording has none.
        passes: value of each pass.
        difference: to the first system, with interval and p; None for the first itself, and where no item has both.
        digits: decimals of its numbers.
    """

    metric: str
    system: str
    value: float
    interval: tuple[float, float] | None
    passes: tuple[float, ...]
    difference: Difference | None
    digits: int = 2


def score_lines(
    name: str, systems: Sequence[Predictions], scored: Sequence[Scored | None], samples: int, digits: int = 2
) -> list[Line]:
    """Make the lines of a metric or judge: one for each system that has scores, with the difference to the first."""
    how: dict[str, Any] = {"groups": systems[0].groups, "samples": samples}
    first, lines = scored[0], []
    for one, its in zip(systems, scored, strict=True):
        if its is not None:
            difference = None if first is None or its is first else its.against(first, **how)
            lines.append(
                Line(name, one.system, its.value(), its.interval(**how), tuple(its.values()), difference, digits)
            )
    return lines


def scored_notes(name: str, systems: Sequence[Predictions], scored: Sequence[Scored | None]) -> list[str]:
    """Say how many predictions have a score where some have none, and on how many items systems are paired."""
    there = [(one.system, its) for one, its in zip(systems, scored, strict=True) if its is not None]
    counts = {system: its.counts() for system, its in there}
    if all(known == every for known, every in counts.values()):
        return []
    said = [f"{system} is scored {known} of {every}" for system, (known, every) in counts.items()]
    if (first := scored[0]) is not None:
        both = {system: int((its.is_scored & first.is_scored).sum()) for system, its in there[1:]}
        said += [f"{one} and {systems[0].system} are paired on {n} items scored in both" for one, n in both.items()]
    return [f"{name}: {'; '.join(said)}"]


def render(lines: Sequence[Line], notes: Sequence[str], format: str, width: int | None = None) -> str:
    """Draw lines, and notes below them, in one of `FORMATS`; a metric is named on the first of its lines alone.

    A text that is wider than `width`, the columns of a terminal, has its intervals on two lines each. It has the column
    over passes where a system has several.
    """
    cells = []
    for number, line in enumerate(lines):
        first = number == 0 or lines[number - 1].metric != line.metric
        several, d = len(line.passes) > 1, line.digits
        row = [
            line.metric if first else "",
            line.system,
            f"{line.value:.{d}f}",
            between(line.interval, f".{d}f"),
            f"{min(line.passes):.{d}f} to {max(line.passes):.{d}f}" if several else "",
        ]
        if line.difference is None:
            row += ["", "", ""]
        else:
            difference, low, high, p = line.difference
            row += [f"{difference:+.{d}f}", between((low, high), f"+.{d}f"), DASH if p is None else f"{p:.3f}"]
        cells.append(row)
    options: dict[str, Any] = {"headers": _HEADERS, "tablefmt": FORMATS[format], "disable_numparse": True}
    if format == "text":
        return "\n".join([_text(cells, options, width), "", *notes])
    table = tabulate(cells, colalign=_ALIGNED if cells else None, **options)
    notes = [note.replace("\n", " ") for note in notes]
    if format == "latex":
        return "\n".join([table, *(f"% {note}" for note in notes)])
    return "\n".join([table, "", *(f"- {note}" for note in notes)])


def between(interval: tuple[float | None, float | None] | None, form: str) -> str:
    """Write an interval as `low to high`, and a dash where there is none."""
    low, high = interval or (None, None)
    return DASH if low is None or high is None else f"{low:{form}} to {high:{form}}"


def _text(cells: Sequence[Sequence[str]], options: dict[str, Any], width: int | None) -> str:
    """Draw the table for a terminal: without the column over passes if it is empty, and narrow if it has to be."""
    kept = [at for at, head in enumerate(_HEADERS) if head != "over passes" or any(row[at] for row in cells)]
    rows = [[row[at] for at in kept] for row in cells]
    headers = [_HEADERS[at] for at in kept]
    options = {**options, "headers": headers, "colalign": [_ALIGNED[at] for at in kept] if cells else None}
    table = tabulate(rows, **options)
    if width is None or not rows or max(map(len, table.splitlines())) <= width:
        return table
    ends = ["interval" in head or head == "over passes" for head in headers]
    longest = [max(len(word) for row in rows for word in row[at].split() or [""]) for at in range(len(headers))]
    # As wide as "to" and the longest end of an interval.
    limits = [max(length + 3, len("interval")) if end else None for length, end in zip(longest, ends, strict=True)]
    options["headers"] = [head.replace("difference", "diff.") for head in headers]
    options |= {"maxcolwidths": limits, "maxheadercolwidths": limits}
    return tabulate(rows, **options)
