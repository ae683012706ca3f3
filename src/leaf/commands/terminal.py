"""The terminal: what the commands print there, and how they read `~` in their arguments."""

import os
import re
import textwrap
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from typer.core import TyperGroup

from leaf.commands.output import Output
from leaf.visible import visible

# Whatever is printed may come from a model or a user: brackets in it are text, not markup.
console = Output(highlight=False, soft_wrap=True, markup=False)
complaints = Output(highlight=False, soft_wrap=True, markup=False, stderr=True)
_WIDE = 10_000  # columns: more than any table of ours needs


class Commands(TyperGroup):
    """A group of commands whose help has each one's whole sentence; click would cut it off at the end of its line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help or "") for name, command in self.commands.items()])


def say(line: str, to: Console | None = None) -> None:
    """Print a line for a person, wrapped at its words on a terminal, whole in a file or pipe."""
    text = visible(line, keep="\n")  # it may quote a model, or a user's function that does
    to = to or console
    to.print(wrapped(text, to.width) if to.is_terminal else text)


def width() -> int | None:
    """Tell the columns of the terminal; None for a file or pipe, which takes lines of any length."""
    return console.width if console.is_terminal else None


def show(table: Table) -> None:
    """Print a table, wrapped between words to a terminal and not at all to a file or pipe; no word is ever cut."""
    cells = [[str(cell) for cell in (column.header, *column.cells)] for column in table.columns]
    longest = [max(map(cell_len, column)) for column in cells]
    # rich shrinks columns below their longest word and then cuts it: so a column gets the words, and its share of the
    # room that is left.
    words = [max(cell_len(word) for cell in column for word in re.findall(r"^\s*\S+|\S+", cell)) for column in cells]
    wide = Output(file=console.file, width=_WIDE)
    lines = Measurement.get(wide, wide.options, table).maximum - sum(longest)  # what is between the columns
    room = console.width - lines - sum(words) if console.is_terminal else _WIDE
    wanted = [most - least for most, least in zip(longest, words, strict=True)]
    share = min(max(room, 0) / max(sum(wanted), 1), 1)
    for column, least, more in zip(table.columns, words, wanted, strict=True):
        column.width = least + int(more * share)
    wide.print(table)


def wrapped(text: str, width: int) -> str:
    """Break lines between words; a word that is longer than a line, such as a path, stays whole."""
    lines = []
    for line in text.split("\n"):
        indent = line[: len(line) - len(line.lstrip(" "))]
        lines += textwrap.wrap(
            line,
            max(width, len(indent) + 1),
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
            replace_whitespace=False,
        ) or [""]
    return "\n".join(lines)


def with_home(arguments: Sequence[str]) -> list[str]:
    """Put the user's home for a leading `~`, also behind `--option=`, `key=` and `NAME=`, where shells leave it."""
    return [re.sub(r"^((?:--)?[\w.-]+=)?(~[\w.-]*)(?=/|$)", _home, word) for word in arguments]


def _home(found: re.Match[str]) -> str:
    return (found[1] or "") + os.path.expanduser(found[2])
