"""The command `leaf recipe`: write a recipe to begin with, or list the keys of recipes with their defaults."""

import dataclasses
import textwrap
from collections.abc import Iterator
from typing import Annotated, Any

import typer
import yaml
from rich.table import Table
from rich.text import Text

from leaf.commands.terminal import console, say, show
from leaf.config import GROUPS, LeafConfig, RunConfig, stage_class
from leaf.shipped import shipped_recipes

_WIDTH = 100  # of a recipe's lines
# What a recipe to begin with sets, since the default does not suit a first run on one's own data. None: to fill in.
_BEGIN: dict[str, dict[str, Any]] = {
    "rl": {
        "model": None,
        "task": None,
        "dtype": "auto",
        "rewards": ["bleu"],
        "max_steps": 100,
        "eval_every": 25,
        "eval_items": 64,
        "save_every": 25,
    },
    "sft": {
        "model": None,
        "task": None,
        "dtype": "auto",
        "max_steps": 100,
        "eval_every": 25,
        "eval_items": 64,
        "save_every": 25,
    },
    "align": {"model": None, "task": None, "dtype": "auto", "max_steps": 1000, "eval_every": 250, "save_every": 250},
}


def recipe(
    stage: Annotated[
        str | None, typer.Argument(help="rl, sft or align: write a recipe of this stage to begin with")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="every key, not only those that most recipes set")] = False,
) -> None:
    """Write a recipe to begin with (`leaf recipe rl > my.yaml`); without a stage, list the keys with their defaults."""
    if stage is None:
        _list_keys(every)
    else:
        console.print(starting_recipe(stage, every=every), end="")


def starting_recipe(stage: str, *, every: bool = False) -> str:
    """Write a recipe of a stage to begin with, in which model and task are to be filled in.

    Args:
        stage: rl, sft or align.
        every: all keys of the stage; otherwise those that most recipes set.

    Raises:
        ConfigError: there is no such stage.
    """
    config = stage_class(stage)
    lines = list(_heading(stage))
    for group, fields in _grouped(config, every, _BEGIN[stage]):
        lines += ["", f"# -- {group} ".ljust(_WIDTH, "-")]
        for one in fields:
            lines += _comment(one.metadata["help"])
            if one.name in _BEGIN[stage]:
                value = _BEGIN[stage][one.name]
                lines.append(f"{one.name}:" if value is None else f"{one.name}: {_yaml(value)}")
            else:
                lines.append(f"#{one.name}: {_yaml(_default(one))}")
    return "\n".join(lines) + "\n"


def _heading(stage: str) -> Iterator[str]:
    yield from _comment(
        f"A recipe of stage {stage} to begin with. Fill in model and task. A key behind a # has its default: remove "
        f"the # to change it. `leaf recipe {stage} --all` has every key."
    )
    yield "#"
    for command, what in (
        ("leaf data check my.jsonl", "looks at recordings, texts and splits"),
        ("leaf doctor my.yaml", "says whether this machine can run the recipe"),
        ("leaf train my.yaml", "trains, into runs/my; --resume continues a run that was interrupted"),
        ("leaf report runs/my", "writes the curves, trees and predictions into report.html"),
    ):
        yield f"#   {command:26}{what}"
    yield "#"
    yield from _comment(
        "The task is a JSONL, CSV or TSV file with the columns prompt, audio (a file) and reference, and maybe split: "
        "train, validation or test."
    )
    yield ""
    yield f"stage: {stage}"


def _comment(text: str) -> list[str]:
    options = {"initial_indent": "# ", "subsequent_indent": "# ", "break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(text, _WIDTH, **options)


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).strip().removesuffix("...").strip()


def _default(one: dataclasses.Field[Any]) -> Any:
    return one.default_factory() if callable(one.default_factory) else one.default


def _grouped(
    config: type[RunConfig], every: bool, also: Any = ()
) -> Iterator[tuple[str, list[dataclasses.Field[Any]]]]:
    """Yield the groups of a recipe's keys that have any to show."""
    fields = [one for one in dataclasses.fields(config) if one.name != "stage"]
    for group in GROUPS:
        inside = [one for one in fields if one.metadata["group"] == group]
        shown = [one for one in inside if every or one.metadata["common"] or one.name in also]
        if shown:
            yield group, shown


def _list_keys(every: bool) -> None:
    """List the keys of stage rl, and the recipes that come with leaf."""
    table = Table("key", "default", "meaning", box=None, pad_edge=False)
    for group, fields in _grouped(LeafConfig, every):
        table.add_row(Text(group, style="bold"))
        for one in fields:
            default = _default(one)
            table.add_row(f"  {one.name}", "none" if default is None else str(default), one.metadata["help"])
    show(table)
    say("\nleaf recipe rl > my.yaml writes a recipe to begin with; so do leaf recipe sft and leaf recipe align.")
    if not every:
        say("leaf recipe --all lists every key.")
    say(f"\nThese come with leaf, and commands find them from any folder: {', '.join(shipped_recipes())}")
