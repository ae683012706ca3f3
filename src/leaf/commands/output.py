"""The standard streams of a command: what happens where they cannot be written, and what never reaches a terminal."""

import os
import sys
import warnings
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from leaf.visible import visible


class OutputLost(OSError):
    """Standard output cannot be written: its pipe is closed, its disk is full or its terminal is gone."""


class Output(Console):
    """A console on which no text can steer the terminal: what is printed may quote a model, or a cell of data."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as rich does, with control characters spelled out; rich's own controls pass."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text, keep="\n"))


class _Stream:
    """A standard stream that goes nowhere once it could not be written; stdout says so at every line from then on."""

    def __init__(self, stream: Any, *, says_so: bool):
        self._stream, self._says_so = stream, says_so
        self._lost: OutputLost | None = None

    def write(self, text: str) -> int:
        if self._lost is not None and self._says_so:  # the first to hear of it may have been a thread
            raise OutputLost(*self._lost.args)
        self._watched(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._watched(self._stream.flush)

    def _watched(self, action: Any) -> None:
        try:
            action()
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what is still buffered would fail again at the end
            os.close(nowhere)
            # Without its number: rich and click end the process where a pipe is closed, without a word.
            self._lost = OutputLost(0, error.strerror)
            if self._says_so:
                raise self._lost from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def watch_streams() -> None:
    """Let losing stdout be an `OutputLost`, losing stderr be nothing, and a warning's text be harmless."""
    streams: Any = sys
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without a character gets a question mark in its place
            setattr(streams, name, _Stream(stream, says_so=name == "stdout"))
    written = warnings.formatwarning
    # A warning may name a file or quote a row.
    warnings.formatwarning = lambda *args, **options: visible(written(*args, **options), keep="\n")
