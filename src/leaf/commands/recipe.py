"""The command `leaf recipe`: list the keys of a recipe by group, with their defaults."""

import dataclasses
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from leaf.commands.terminal import console, show
from leaf.config import GROUPS, stage_class


def recipe(
    stage: Annotated[str, typer.Argument(help="rl, sft or align")] = "rl",
    every: Annotated[bool, typer.Option("--all", help="every key, not only those that most recipes set")] = False,
) -> None:
    """List the keys of a recipe with their defaults."""
    fields = dataclasses.fields(stage_class(stage))
    listed = [one for one in fields if every or one.metadata["common"]]
    table = Table("key", "default", "meaning", box=None, pad_edge=False)
    for group in GROUPS:
        rows = [one for one in listed if one.metadata["group"] == group]
        if rows:
            table.add_row(Text(group, style="bold"))
        for one in rows:
            default = one.default_factory() if callable(one.default_factory) else one.default
            table.add_row(f"  {one.name}", "none" if default is None else str(default), one.metadata["help"])
    show(table)
    if not every:
        console.print(f"\n{len(fields) - len(listed)} more keys: leaf recipe {stage} --all")
