"""A run while it trains, as a live view on the terminal: progress, rewards, validation, time, tokens saved."""

import signal
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from leaf.report.runs import stage_seconds
from leaf.runs.directory import RunDirectory
from leaf.runs.signals import answer, signals_at_once
from leaf.train.records import figure

_BARS = "▁▂▃▄▅▆▇█"
_FILLS, _COLOURS = "█▓▒░", ("cyan", "green", "yellow", "magenta", "red", "blue", "white")


def train(trainer: Any, console: Console, *, resume: bool = False) -> RunDirectory:
    """Train with a live view on a terminal, with plain lines elsewhere."""
    if not console.is_interactive or not trainer.accelerator.is_main_process:
        return trainer.train(resume_from_checkpoint=resume)
    view = TrainingView(trainer.length.steps, console)
    say = trainer.say

    def on_step(record: dict[str, Any]) -> None:
        view.add(record, trainer.run)

    def on_line(line: str) -> None:
        say(line)
        if trainer.run is not None:
            view.validations = list(trainer.run.lines("validation.jsonl"))

    trainer.on_step, trainer.say, trainer.stop.tell = on_step, on_line, view.tell
    with keys_unseen(), signals_at_once() as view.signals, Live(view, console=console, refresh_per_second=4):
        return trainer.train(resume_from_checkpoint=resume)


@contextmanager
def keys_unseen() -> Iterator[None]:
    """Keep the terminal from writing ^C where the cursor is, which is inside the picture."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    quiet = [*before]
    quiet[3] &= ~termios.ECHOCTL
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


class TrainingView:
    """What the live view shows of a run, and how it is drawn."""

    def __init__(self, max_steps: int, console: Console):
        self.records: list[dict[str, Any]] = []
        self.validations: list[dict[str, Any]] = []
        self.told = ""
        self.signals: Callable[[], set[int]] = set
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console)
        self.bar = self.progress.add_task("", total=max_steps)

    def add(self, record: dict[str, Any], run: RunDirectory) -> None:
        """Add a step. With the first one come the steps that a resumed run took before."""
        self.records = [*self.records, record] if self.records else list(run.lines("metrics.jsonl"))
        self.progress.update(self.bar, completed=record["step"])

    def tell(self, text: str) -> None:
        """Show an answer to the user below the picture, from its next refresh on."""
        self.told = text

    def __rich__(self) -> RenderableType:
        if not self.told and signal.SIGINT in self.signals():
            self.told = answer(signal.SIGINT)
        told = [Text(self.told, style="bold", no_wrap=False, overflow="fold")] if self.told else []
        if not self.records:
            return Group(self.progress, *told)
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="dim")
        table.add_column(overflow="fold")
        table.add_row("reward", _trend([record["reward_mean"] for record in self.records]))
        measured = dict.fromkeys(key for record in self.validations for key in record)  # a reward may score nothing
        for name in [key for key in measured if key != "step" and "/" not in key]:
            table.add_row(name, _trend([record.get(name) for record in self.validations]))
        table.add_row("time", stage_bar(self.records[-10:]))
        packed, padded = (sum(record[key] or 0 for record in self.records) for key in ("packed_tokens", "plain_tokens"))
        saved = f"{1 - packed / padded:.0%} of the tokens that padded copies would forward" if padded else "none"
        table.add_row("saved", Text(saved))
        last = self.records[-1]
        table.add_row(
            "now",
            Text(
                f"kl {figure(last['kl'], 4)}  grad {figure(last['grad_norm'], 2)}  length {last['length_mean']:.1f}  "
                f"usable forks {last['usable_fork_rate']:.2f}  memory {last['memory/peak_gb']:.1f} GB"
            ),
        )
        return Group(self.progress, table, *told)


def _trend(values: Sequence[float | None]) -> Text:
    """Draw values as a sparkline, and write the last one, the lowest and the highest."""
    known = [value for value in values if value is not None]
    if not known:
        return Text(f"{sparkline(values)}  none scored")
    digits = 3 if max(map(abs, known)) <= 1.5 else 2
    low, high = min(known), max(known)
    return Text(f"{sparkline(values)}  {known[-1]:.{digits}f}  ({low:.{digits}f} to {high:.{digits}f})")


def sparkline(values: Sequence[float | None], width: int = 40) -> str:
    """Draw values as a line of bars from their lowest to their highest, averaged down to `width`; None is a gap."""
    size, columns = len(values), min(len(values), width)
    cells: list[float | None] = []
    for i in range(columns):
        part = [value for value in values[i * size // columns : (i + 1) * size // columns] if value is not None]
        cells.append(sum(part) / len(part) if part else None)
    known = [cell for cell in cells if cell is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    top = len(_BARS) - 1
    return "".join(
        " " if cell is None else _BARS[round(top * (cell - low) / (high - low)) if high > low else top // 2]
        for cell in cells
    )


def stage_bar(records: Sequence[dict[str, Any]], width: int = 32) -> Text:
    """Draw the mean seconds of a step by stage as a bar, with its legend."""
    whole, means = stage_seconds(records)
    looks = {name: (_FILLS[i % len(_FILLS)], _COLOURS[i % len(_COLOURS)]) for i, name in enumerate(means)}
    bar, legend = Text(), Text()
    drawn, reached = 0, 0.0
    for name, seconds in means.items():
        fill, colour = looks[name]
        # From where a stage begins and ends, and not from its length, so that the rounded parts add up to the width.
        reached += seconds
        cells = round(width * reached / whole) - drawn if whole else 0
        bar.append(fill * cells, style=colour)
        drawn += cells
        if seconds >= 0.05:  # less would be written as 0.0
            legend.append(f"  {fill}\u00a0", style=colour).append(f"{name}\u00a0{seconds:.1f}")
    return bar.append(f"  {whole:.1f} s a step:").append(legend)
