"""MkDocs hook: fill the tables that are made from the code, and take pages in that are outside docs/."""

import ast
import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from leaf.commands.main import app
from leaf.config import GROUPS, STAGES, RunConfig

ROOT = Path(__file__).parents[1]
# Where the site has pages from outside docs/. Their links work in the repository; `_link` changes them for the site.
OUTSIDE = {ROOT / "CHANGELOG.md": "changelog.md", ROOT / "CONTRIBUTING.md": "contributing.md"} | {
    path: f"notebooks/{path.name}" for path in sorted((ROOT / "benchmarks/notebooks").glob("*.md"))
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are outside docs/."""
    for path, place in OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Write what `<!-- keys: rl -->`, `<!-- commands -->` and `<!-- modules -->` ask for; point links into the site."""
    markdown = re.sub(r"<!-- keys: (\w+) -->", lambda found: _keys(found[1]), markdown)
    markdown = markdown.replace("<!-- commands -->", "\n".join(_commands(typer.main.get_command(app), "leaf")))
    markdown = markdown.replace("<!-- modules -->", _modules())
    return re.sub(r"\]\((?!\w+:)([^)#]+)", lambda found: f"]({_link(page.file, found[1])}", markdown)


def _link(file: File, target: str) -> str:
    """Turn a link from one file of the repository to another into the link between their pages."""
    assert file.abs_src_path is not None
    path = Path(os.path.normpath(Path(file.abs_src_path).parent / target))
    place = OUTSIDE.get(path) or os.path.relpath(path, ROOT / "docs")
    return os.path.relpath(place, os.path.dirname(file.src_uri))


def _modules() -> str:
    """Write a table of all modules, room by room, with the first line of their docstrings."""
    lines = ["| module | what it is |", "|---|---|"]
    source = ROOT / "src/leaf"
    for file in sorted(source.rglob("*.py"), key=lambda file: (len(file.relative_to(source).parts) > 1, file)):
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        if said and file.name != "__init__.py":
            lines.append(f"| `{file.relative_to(source)}` | {_cell(said.splitlines()[0])} |")
    return "\n".join(lines)


def _keys(stage: str) -> str:
    """Write a table of a stage's own keys, or of those that every stage has (`all`), by group."""
    shared = {field.name for field in dataclasses.fields(RunConfig)}
    fields = dataclasses.fields(RunConfig if stage == "all" else STAGES[stage])
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for group in GROUPS:
        rows = [field for field in fields if field.metadata["group"] == group]
        rows = [field for field in rows if stage == "all" or field.name not in shared]
        lines += [f"| **{group}** | | |"] if rows else []
        for field in rows:
            value = field.default_factory() if callable(field.default_factory) else field.default
            shown = "null" if value is None else value
            lines.append(f"| `{field.name}` | `{shown}` | {_cell(field.metadata['help'])} |")
    return "\n".join(lines)


def _commands(command: Any, name: str) -> Iterator[str]:
    """Write a heading for each command, with its arguments and options, and then its sub-commands."""
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
