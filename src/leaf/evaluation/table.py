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


def render(lines: Sequence[Line], notes: Sequence[str], format: str) -> str:
    """Draw lines, and notes below them, in one of `FORMATS`; a metric is named on the first of its lines alone."""
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
    table = tabulate(cells, colalign=_ALIGNED if cells else None, **options)
    if format == "text":
        return "\n".join([table, "", *notes])
    notes = [note.replace("\n", " ") for note in notes]
    if format == "latex":
        return "\n".join([table, *(f"% {note}" for note in notes)])
    return "\n".join([table, "", *(f"- {note}" for note in notes)])
