"""The table of a comparison: its lines, as text, markdown or LaTeX."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

FORMATS = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}
_HEADERS = ("metric", "system", "value", "95 % interval", "over passes", "difference", "95 % interval", "p")
_ALIGNED = ("left", "left", "right", "left", "left", "right", "left", "right")


@dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        metric: metric or judge.
        system: name of the system.
        value: mean over the passes.
        interval: its bootstrap interval.
        passes: value of each pass.
        difference: to the first system, with interval and p; None for the first itself.
        digits: decimals of its numbers.
    """

    metric: str
    system: str
    value: float
    interval: tuple[float, float]
    passes: tuple[float, ...]
    difference: tuple[float, float, float, float] | None
    digits: int = 2


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
            f"{line.interval[0]:.{d}f} to {line.interval[1]:.{d}f}",
            f"{min(line.passes):.{d}f} to {max(line.passes):.{d}f}" if several else "",
        ]
        if line.difference is None:
            row += ["", "", ""]
        else:
            difference, low, high, p = line.difference
            row += [f"{difference:+.{d}f}", f"{low:+.{d}f} to {high:+.{d}f}", f"{p:.3f}"]
        cells.append(row)
    options: dict[str, Any] = {"headers": _HEADERS, "tablefmt": FORMATS[format], "disable_numparse": True}
    if format == "text":
        return "\n".join([_text(cells, options, width), "", *notes])
    table = tabulate(cells, colalign=_ALIGNED if cells else None, **options)
    notes = [note.replace("\n", " ") for note in notes]
    if format == "latex":
        return "\n".join([table, *(f"% {note}" for note in notes)])
    return "\n".join([table, "", *(f"- {note}" for note in notes)])


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
