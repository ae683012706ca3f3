"""A recorded group as a prefix tree on the terminal.

Text that a model wrote is data: it is never read as rich markup, and its control characters are made visible.
"""

import json
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.style import Style
from rich.text import Text
from rich.tree import Tree

from leaf.config import LeafConfig
from leaf.credit import BATCH_RULES, CREDIT_RULES, SET_RULES
from leaf.errors import RunError
from leaf.plugins import load_plugins
from leaf.report.drawn_group import END, DrawnGroup, Stretch, in_short
from leaf.report.recorded import whole_group
from leaf.runs.directory import RunDirectory
from leaf.train.records import figure
from leaf.visible import visible

MARK = "┃"  # a boundary inside a stretch of text
NARROWEST = 24  # columns that the text of a branch has at least
_GUIDE = 4  # columns that rich draws for a level
WHOLE_LINES = 1_000_000  # columns: the width of a file or pipe, in which nothing is wrapped
_UP, _DOWN, _PAPER = (86, 156, 255), (255, 148, 60), (244, 244, 240)


def show_group(
    console: Console, path: str | Path, *, step: int | None = None, group: int = 0, credit: str | None = None
) -> None:
    """Print a recorded group of a run.

    Args:
        console: a terminal, which wraps lines; a file or pipe gets whole lines.
        path: the run directory.
        step: the recorded step; None for the last one.
        group: which of the step's recorded groups, from 0.
        credit: a rule to compute on the same rollouts; None shows the recorded advantages.

    Raises:
        RunError: there is no such run or group, or the run is not one of reinforcement learning.
    """
    run = RunDirectory.open(path)
    recipe = run.what_ran()
    if not isinstance(recipe, LeafConfig):
        raise RunError(f"{path} is a run of stage {recipe.stage}. Only runs of stage rl sample and record groups.")
    if credit is not None and credit not in CREDIT_RULES | SET_RULES | BATCH_RULES:
        load_plugins(recipe.plugins)  # the run's own rules
    print_group(console, group_view(recorded_group(run, step, group), recipe, credit))


def print_group(console: Console, view: Group) -> None:
    """Print what `group_view` made: wrapped to a terminal, in whole lines to a file or pipe.

    Guides take four columns a level. A terminal with no room left for text gets lines that are wider than it is, since
    rich would leave the text out.
    """
    if not console.is_terminal:
        console = type(console)(file=console.file, width=WHOLE_LINES)  # else rich would wrap at 80 columns
    width = _GUIDE * max((_levels(part) for part in view.renderables if isinstance(part, Tree)), default=0) + NARROWEST
    if width > console.width:
        options: Any = {"color_system": console.color_system, "force_terminal": True}
        console = type(console)(file=console.file, width=width, **options)
    console.print(view, soft_wrap=False)


def _levels(tree: Tree) -> int:
    """Count the levels below the root of a tree."""
    return max((1 + _levels(branch) for branch in tree.children), default=0)


def recorded_group(run: RunDirectory, step: int | None = None, group: int = 0) -> dict[str, Any]:
    """Read a group from a run's groups.jsonl; without a step, one of the last step that was recorded.

    Raises:
        RunError: nothing was recorded, not at this step, or not that many groups. The message says what there is.
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
            f"{run.path} has no groups of step {wanted}. It recorded the steps {', '.join(map(str, steps))}."
        )
    found = [record for record in records if record["step"] == wanted]
    if not 0 <= group < len(found):
        raise RunError(f"Step {wanted} of {run.path} has the groups 0 to {len(found) - 1}; got {group}.")
    return whole_group(found[group], run.path / "groups.jsonl")


def group_view(record: dict[str, Any], recipe: LeafConfig, credit: str | None = None) -> Group:
    """Draw a recorded group: facts, the prefix tree of its completions, and what the colours mean.

    Boundaries and retained nodes are LEAF's whatever the rule, so that rules can be compared on the same tree.

    Args:
        record: a line of groups.jsonl, as `leaf.train.records.group_record` makes it.
        recipe: of the run; its options of LEAF place the boundaries.
        credit: a rule to compute on the same rollouts; None shows the recorded advantages.
    """
    drawing = _Drawing(DrawnGroup(record, recipe), credit)
    rule = f"as recorded (recipe: {recipe.credit})" if credit is None else f"{credit}, computed on the same rollouts"
    if recipe.tree_key == "words":
        rule += ", by words; the tree below is by tokens" if credit is None else ", by tokens; the run by words"
    return Group(*drawing.facts(rule), Text(), drawing.tree(), Text(), Text(drawing.legend(), style="dim"))


class _Drawing:
    """A group as a rich Tree, with a line for each stretch of tokens that the same completions share."""

    def __init__(self, group: DrawnGroup, credit: str | None):
        self.group = group
        self.advantages = group.advantages(credit)
        self.largest = float(self.advantages.abs().max()) if self.advantages.numel() else 0.0

    def facts(self, rule: str) -> list[Text]:
        record = self.group.record
        named = {
            "group": f"{record['id']}, step {record['step']}",
            "prompt": record["prompt"] if isinstance(record["prompt"], str) else json.dumps(record["prompt"]),
            "audio": ", ".join(record["audio"]),
            "spoken": record["text"],
            "reference": record["reference"],
            "credit": rule,
            "boundaries": ", ".join(map(str, self.group.boundaries)) or "none",
        }
        return [
            Text(overflow="fold").append(f"{name:12}", style="dim").append(visible(str(value)))
            for name, value in named.items()
            if value
        ]

    def legend(self) -> str:
        signs = f"V̂ is the mean reward of the n completions, {MARK} a boundary, {END} the end of the sequence."
        if self.group.draw is not None:
            signs += (
                " The completions are distinct: p is the probability of each, w its weight, in V̂ too. The mass of a "
                "branch is the probability of those drawn, of what the policy says there in all."
            )
        if self.largest:
            return (
                f"{signs} A is the advantage, which is also the colour of a token: blue up, orange down, full at "
                f"±{self.largest:.2f}. A token that several completions share shows their mean."
            )
        why = f": {self.group.idle}" if self.group.idle else ""
        return f"{signs} A is the advantage, 0 everywhere{why}."

    def tree(self) -> Tree:
        group = self.group
        mass = "" if group.draw is None else f"  mass {group.mass} of 1"
        root = Tree(Text(f"root  n {group.size}  V̂ {group.value:.3f}{mass}", style="bold"), guide_style="dim")
        for k in group.empty:
            root.add(Text("(empty)").append(self.outcome([k]), style="bold"))
        branches: list[Tree] = []
        for stretch in group.stretches:
            above = root if stretch.above < 0 else branches[stretch.above]
            branches.append(above.add(self.line(stretch)))
            if stretch.ends and stretch.further:
                branches[-1].add(Text("(ends here)").append(self.outcome(stretch.ends), style="bold"))
        return root

    def line(self, stretch: Stretch) -> Text:
        boundaries = self.group.boundaries
        line = Text()
        for position, text in enumerate(stretch.texts, stretch.start):
            if position in boundaries and position > stretch.start:
                line.append(MARK, style="bold")
            mean = float(self.advantages[stretch.members, position].mean())
            line.append(visible(text), style=_shade(mean, self.largest))
        end = stretch.start + len(stretch.texts)
        if end in boundaries and (stretch.retained or stretch.further):
            line.append(MARK, style="bold")
        if stretch.retained:
            line.append(f"  n {stretch.size}  V̂ {stretch.value:.3f}", style="bold")
        if stretch.mass is not None and stretch.further:
            line.append(f"  mass {stretch.mass[0]} of {stretch.mass[1]}", style="dim")
        seen = self.advantages[stretch.members, stretch.start : end]
        low, high = _signed(float(seen.min())), _signed(float(seen.max()))
        line.append(f"  A {low}" + ("" if low == high else f" to {high}"), style="dim")
        if stretch.ends and not stretch.further:
            line.append(self.outcome(stretch.ends), style="bold")
        return line

    def outcome(self, completions: list[int]) -> str:
        """Write reward and numbers of completions that end in the same place."""
        rewards = dict.fromkeys("unscored" if r != r else f"{r:.3f}" for r in self.group.rewards[completions].tolist())
        cut = "  truncated" if any(self.group.record["truncated"][k] for k in completions) else ""
        return f"  reward {', '.join(rewards)}{self.parts(completions[0])}{cut}  " + " ".join(
            f"#{k}{self.weight(k)}" for k in completions
        )

    def weight(self, k: int) -> str:
        """Write probability and weight of a distinct completion."""
        if self.group.draw is None:
            return ""
        p = in_short(float(self.group.draw.log_prob[k]))
        return f" (p {p}, w {self.group.record['weight'][k]:.3f})"

    def parts(self, k: int) -> str:
        """Write what each of several reward functions gave to a completion; runs of 0.1 did not record it."""
        by_function = self.group.record.get("rewards_by_function", {})
        if len(by_function) < 2:
            return ""
        return f" ({', '.join(f'{name} {figure(values[k])}' for name, values in by_function.items())})"


def _signed(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text


def _shade(advantage: float, largest: float) -> Style:
    """Choose dark text on a tint: blue for credit, orange for blame, no colour for none; legible on any background."""
    share = min(abs(advantage) / largest, 1.0) if largest else 0.0
    if share < 0.02:
        return Style.null()
    full = _UP if advantage > 0 else _DOWN
    tint = [round(paper + share * (colour - paper)) for paper, colour in zip(_PAPER, full, strict=True)]
    return Style.parse(f"#101010 on #{tint[0]:02x}{tint[1]:02x}{tint[2]:02x}")
