"""What a person sees on the terminal: a recorded group as a prefix tree, and a run while it trains.

Text that a model wrote is data: it is never read as rich markup, and control characters in it are made visible.
"""

import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.style import Style
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from leaf.config import LeafConfig
from leaf.credit import CREDIT_RULES
from leaf.errors import RunError
from leaf.plugins import load_plugins
from leaf.report.drawn_group import END, GroupTree
from leaf.runs.directory import RunDirectory

MARK = "┃"  # a boundary inside a stretch of text
_BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_GUIDE, _ROOM = 4, 20  # columns of rich's tree guides per level, and what the text beside them gets at least
_UP, _DOWN, _PAPER = (86, 156, 255), (255, 148, 60), (244, 244, 240)
_BARS = "▁▂▃▄▅▆▇█"
_FILLS, _COLOURS = "█▓▒░", ("cyan", "green", "yellow", "magenta", "red", "blue", "white")


def visible(text: str, keep: str = "") -> str:
    """Return text in which no character steers the terminal: control, bidirectional and surrogate ones are spelt out.

    C0 controls become their pictures (ESC is ␛), the others `\\u{...}`; characters in `keep` stay.
    """
    return "".join(char if char in keep else _visible(char) for char in text)


def _visible(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(char) in _BIDI:
        return f"\\u{{{code:x}}}"
    return char


# -- a recorded group --------------------------------------------------------------------------------------------------
def recorded_group(run: RunDirectory, step: int | None = None, group: int = 0) -> dict[str, Any]:
    """Return a group from a run's groups.jsonl; without a step, of the last one that was recorded.

    Raises:
        RunError: nothing was recorded, not at this step, or not that many groups; the message says what there is.
    """
    records = list(run.lines("groups.jsonl"))
    if not records:
        raise RunError(
            f"{run.path} has no recorded groups. They are written every `record_every` steps; 0 records none."
        )
    steps = sorted({record["step"] for record in records})
    wanted = steps[-1] if step is None else step
    if wanted not in steps:
        raise RunError(
            f"{run.path} has no groups of step {wanted}; recorded are the steps {', '.join(map(str, steps))}."
        )
    found = [record for record in records if record["step"] == wanted]
    if not 0 <= group < len(found):
        raise RunError(f"Step {wanted} of {run.path} has the groups 0 to {len(found) - 1}; got {group}.")
    return found[group]


def group_view(record: dict[str, Any], recipe: LeafConfig, credit: str | None = None) -> Group:
    """Draw a recorded group: facts, the prefix tree of its completions, and what the colours mean.

    Boundaries and retained nodes are LEAF's whatever the rule, so that rules can be compared on the same tree.

    Args:
        record: a line of groups.jsonl, as `leaf.train.records.group_record` makes it.
        recipe: of the run; its options of LEAF place the boundaries.
        credit: a rule to compute on the same rollouts; None shows the recorded advantages.
    """
    group = GroupTree(record, recipe)
    drawing = _Drawing(group, credit)
    rule = (
        f"as recorded (recipe: {recipe.credit})" if credit is None else f"{credit}, computed on the recorded rollouts"
    )
    named = {
        "group": f"{record['id']}, step {record['step']}",
        "prompt": record["prompt"] if isinstance(record["prompt"], str) else json.dumps(record["prompt"]),
        "audio": ", ".join(record["audio"]),
        "spoken": record["text"],
        "reference": record["reference"],
        "credit": rule,
        "boundaries": ", ".join(map(str, group.boundaries)) or "none",
    }
    facts = [
        Text(overflow="fold").append(f"{name:12}", style="dim").append(visible(str(value)))
        for name, value in named.items()
        if value
    ]
    colours = (
        f"its colour per token: blue up, orange down, full at ±{drawing.largest:.2f}; tokens that several completions "
        "share show their mean"
    )
    legend = (
        f"V̂ mean reward of the n completions, {MARK} boundary, {END} end of sequence. A advantage, "
        + (colours if drawing.largest else "0 everywhere" + ", for want of rewards that differ" * group.idle)
        + "."
    )
    return Group(*facts, Text(), drawing.tree(), Text(), Text(legend, style="dim"))


class _Drawing:
    """Turn a group into a rich Tree: a line per stretch of tokens that the same completions share."""

    def __init__(self, group: GroupTree, credit: str | None):
        self.group = group
        self.advantages = group.advantages(credit)
        self.largest = float(self.advantages.abs().max()) if self.advantages.numel() else 0.0

    def tree(self) -> Tree:
        """Return the whole tree."""
        group = self.group
        size, value = group.root()
        root = Tree(Text(f"root  n {size}  V̂ {value:.3f}", style="bold"), guide_style="dim")
        for k in group.ends.get(-1, []):
            root.add(Text("(empty)").append(self._outcome([k]), style="bold"))
        waiting = [(root, node) for node in reversed(group.below(-1))]
        while waiting:  # completions may be longer than Python's stack is deep
            above, node = waiting.pop()
            stretch = group.stretch(node)
            last = stretch[-1]
            branch = above.add(self._label(stretch))
            further = group.below(last)
            if further and last in group.ends:
                branch.add(Text("(ends here)").append(self._outcome(group.ends[last]), style="bold"))
            waiting += [(branch, child) for child in reversed(further)]
        return root

    def _label(self, stretch: list[int]) -> Text:
        group = self.group
        label = Text()
        seen: list[float] = []
        for node in stretch:
            position, members = group.position(node), group.members[node]
            credits = self.advantages[members, position].tolist()
            seen += credits
            if position in group.boundaries and label:
                label.append(MARK, style="bold")
            piece = visible(group.text(node))
            label.append(piece, style=_shade(sum(credits) / len(credits), self.largest))
        last = stretch[-1]
        at_boundary = group.position(last) + 1 in group.boundaries
        if last in group.retained:
            span = group.retained[last]
            label.append(f"{MARK if at_boundary else ''}  n {span.size}  V̂ {span.value:.3f}", style="bold")
        elif at_boundary and last in group.children:
            label.append(MARK, style="bold")
        low, high = _signed(min(seen)), _signed(max(seen))
        label.append(f"  A {low}" + ("" if low == high else f" to {high}"), style="dim")
        if last in group.ends and last not in group.children:
            label.append(self._outcome(group.ends[last]), style="bold")
        return label

    def _outcome(self, completions: list[int]) -> str:
        """Return reward and numbers of completions that end in the same place."""
        rewards = dict.fromkeys("unscored" if r != r else f"{r:.3f}" for r in self.group.rewards[completions].tolist())
        cut = "  truncated" if any(self.group.record["truncated"][k] for k in completions) else ""
        return f"  reward {', '.join(rewards)}{cut}  " + " ".join(f"#{k}" for k in completions)


def _signed(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text


def _shade(advantage: float, largest: float) -> Style:
    """Return dark text on a tint: blue for credit, orange for blame, no colour for none; legible on any background."""
    share = min(abs(advantage) / largest, 1.0) if largest else 0.0
    if share < 0.02:
        return Style.null()
    full = _UP if advantage > 0 else _DOWN
    tint = [round(paper + share * (colour - paper)) for paper, colour in zip(_PAPER, full, strict=True)]
    return Style.parse(f"#101010 on #{tint[0]:02x}{tint[1]:02x}{tint[2]:02x}")


def show_group(
    console: Console, path: str | Path, *, step: int | None = None, group: int = 0, credit: str | None = None
) -> None:
    """Print a recorded group of a run: wrapped to a terminal, in whole lines to a file or pipe.

    Raises:
        RunError: no such run or group, or the run is not one of reinforcement learning.
    """
    run = RunDirectory.open(path)
    recipe = run.config()
    if not isinstance(recipe, LeafConfig):
        raise RunError(f"{path} is a run of stage {recipe.stage}; groups are sampled and recorded in stage rl alone.")
    if credit is not None and credit not in CREDIT_RULES:
        load_plugins(recipe.plugins)  # the run's own rules
    print_group(console, group_view(recorded_group(run, step, group), recipe, credit))


def print_group(console: Console, view: Group) -> None:
    """Print what `group_view` made: wrapped to a terminal, in whole lines to a file or pipe."""
    for part in view.renderables:
        width = console.width if console.is_terminal else 1_000_000
        if isinstance(part, Tree):  # deep ones keep room for their text; the terminal then breaks lines where it must
            width = max(width, _GUIDE * _depth(part) + _ROOM)
        console.print(_Wide(part, width), soft_wrap=False, crop=False)


@dataclass(frozen=True)
class _Wide:
    """Render something for another width than the terminal's, which `Console.print` only allows to be smaller."""

    view: RenderableType
    width: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from console.render(self.view, options.update(width=self.width))


def _depth(tree: Tree) -> int:
    """Return how many levels lie below the root."""
    deepest, waiting = 0, [(tree, 0)]
    while waiting:
        branch, level = waiting.pop()
        deepest = max(deepest, level)
        waiting += [(child, level + 1) for child in branch.children]
    return deepest


# -- a run while it trains ---------------------------------------------------------------------------------------------
def train(trainer: Any, console: Console, *, resume: bool = False) -> RunDirectory:
    """Train with a live view on a terminal, plain lines elsewhere, and return the run directory."""
    if not console.is_interactive or not trainer.accelerator.is_main_process:
        return trainer.train(resume_from_checkpoint=resume)
    view = TrainingView(trainer.args.max_steps, console)
    say = trainer.report

    def step(record: dict[str, Any]) -> None:
        view.add(record, trainer.run)

    def report(line: str) -> None:
        say(line)
        if trainer.run is not None:
            view.validations = list(trainer.run.lines("validation.jsonl"))

    trainer.on_step, trainer.report = step, report
    with Live(view, console=console, refresh_per_second=4):
        return trainer.train(resume_from_checkpoint=resume)


class TrainingView:
    """Hold what the live view shows, and draw it: progress, rewards, validation, where the time goes, tokens saved."""

    def __init__(self, max_steps: int, console: Console):
        self.records: list[dict[str, Any]] = []
        self.validations: list[dict[str, Any]] = []
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console)
        self.bar = self.progress.add_task("", total=max_steps)

    def add(self, record: dict[str, Any], run: RunDirectory) -> None:
        """Take up one step; the first one brings along what a resumed run did before it."""
        self.records = [*self.records, record] if self.records else list(run.lines("metrics.jsonl"))
        self.progress.update(self.bar, completed=record["step"])

    def __rich__(self) -> RenderableType:
        if not self.records:
            return self.progress
        last = self.records[-1]
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, style="dim")
        table.add_column(overflow="fold")
        rewards = [record["reward_mean"] for record in self.records]
        table.add_row("reward", Text(f"{sparkline(rewards)}  {_range(rewards)}"))
        for name in [key for key in (self.validations or [{}])[-1] if key != "step" and "/" not in key]:
            scores = [record[name] for record in self.validations]
            table.add_row(name, Text(f"{sparkline(scores)}  {_range(scores)}"))
        table.add_row("time", stage_bar(self.records[-10:]))
        packed, plain = (sum(record[key] or 0 for record in self.records) for key in ("packed_tokens", "plain_tokens"))
        saved = f"{1 - packed / plain:.0%} of the tokens that padded copies would forward" if plain else "none"
        table.add_row("saved", Text(saved))
        table.add_row(
            "now",
            Text(
                f"kl {_figure(last['kl'], 4)}  grad {_figure(last['grad_norm'], 2)}  length {last['length_mean']:.1f}  "
                f"usable forks {last['usable_fork_rate']:.2f}  memory {last['memory/peak_gb']:.1f} GB"
            ),
        )
        return Group(self.progress, table)


def _figure(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def sparkline(values: Sequence[float | None], width: int = 40) -> str:
    """Return values as a line of bars from their lowest to their highest, averaged down to `width`; None is a gap."""
    size, columns = len(values), min(len(values), width)
    cells = [
        _mean(v for v in values[i * size // columns : (i + 1) * size // columns] if v is not None)
        for i in range(columns)
    ]
    known = [cell for cell in cells if cell is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    top = len(_BARS) - 1
    return "".join(
        " " if cell is None else _BARS[round(top * (cell - low) / (high - low)) if high > low else top // 2]
        for cell in cells
    )


def stage_bar(records: Sequence[dict[str, Any]], width: int = 32) -> Text:
    """Return the seconds of a step by stage, mean over `records`, as a bar with its legend."""
    names = dict.fromkeys(
        key for record in records for key in record if key.startswith("seconds/") and key != "seconds/step"
    )
    means = {name.removeprefix("seconds/"): _mean(record.get(name, 0.0) for record in records) or 0.0 for name in names}
    whole = _mean(record["seconds/step"] for record in records) or 0.0
    means["other"] = max(whole - sum(means.values()), 0.0)
    text, drawn, reached = Text(), 0, 0.0
    styles = {name: (_FILLS[i % 4], _COLOURS[i % 7]) for i, name in enumerate(means)}
    for name, seconds in means.items():
        reached += seconds
        cells = round(width * reached / whole) - drawn if whole else 0
        text.append(styles[name][0] * cells, style=styles[name][1])
        drawn += cells
    text.append(f"  {whole:.1f} s a step:")
    for name, seconds in means.items():
        if seconds >= 0.05:
            text.append(f"  {styles[name][0]}\u00a0", style=styles[name][1]).append(f"{name}\u00a0{seconds:.1f}")
    return text


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "none scored"
    digits = 3 if max(map(abs, known)) <= 1.5 else 2
    return f"{known[-1]:.{digits}f}  ({min(known):.{digits}f} to {max(known):.{digits}f})"


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None
