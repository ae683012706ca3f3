"""MkDocs hook: fill the tables that are made from the code."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import typer

from leaf.commands.main import app
from leaf.config import STAGES, RunConfig


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put the keys of a stage where a page says `<!-- keys: rl -->`, and the commands for `<!-- commands -->`."""
    markdown = re.sub(r"<!-- keys: (\w+) -->", lambda found: _keys(found[1]), markdown)
    return markdown.replace("<!-- commands -->", "\n".join(_commands(typer.main.get_command(app), "leaf")))


def _keys(stage: str) -> str:
    """Return a table of a stage's own keys, or of those that every stage has (`all`)."""
    shared = {field.name for field in dataclasses.fields(RunConfig)}
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for field in dataclasses.fields(RunConfig if stage == "all" else STAGES[stage]):
        if stage == "all" or field.name not in shared:
            value = field.default_factory() if callable(field.default_factory) else field.default
            lines.append(
                f"| `{field.name}` | `{'null' if value is None else value}` | {_cell(field.metadata['help'])} |"
            )
    return "\n".join(lines)


def _commands(command: Any, name: str) -> Iterator[str]:
    """Yield the lines of a heading for each command, with its arguments and options, sub-commands behind it."""
    if name != "leaf":
        yield f"## {name}\n\n{_cell(command.help or '')}\n"
        shown = [parameter for parameter in command.params if parameter.name != "help"]
        if shown:
            yield "| | default | |\n|---|---|---|"
        for parameter in shown:
            option = parameter.param_type_name == "option"
            names = ", ".join(f"`{text}`" for text in (parameter.opts if option else [parameter.name.upper()]))
            default = "" if parameter.default in (None, False) or callable(parameter.default) else parameter.default
            yield f"| {names} | {f'`{default}`' if default != '' else ''} | {_cell(parameter.help or '')} |"
        yield ""
    for key, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, f"{name} {key}")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
