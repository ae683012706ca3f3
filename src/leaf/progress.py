"""Say that something long goes on: a line when it begins, and one every half minute until it ends."""

import threading
import time
from collections.abc import Callable
from types import TracebackType

EVERY = 30.0  # seconds between two lines


class Busy:
    """Say what is being done, and every half minute how far it is, inside a `with` block.

    A thread says the lines, so they come while one long call goes on, too.

    Args:
        say: takes the lines.
        what: is being done, e.g. "scoring 300 rows".
        total: how much there is to do, where `add` counts it.
        quiet: say nothing in the first half minute, for what is mostly short.
    """

    def __init__(self, say: Callable[[str], None], what: str, total: int | None = None, *, quiet: bool = False):
        self.say, self.what, self.total, self.quiet = say, what, total, quiet
        self.done = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Busy":
        if not self.quiet:
            self.say(self.what)
        self._began = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def add(self, count: int) -> None:
        """Count what has been done."""
        self.done += count

    def _watch(self) -> None:
        while not self._ended.wait(EVERY):
            seconds = time.perf_counter() - self._began
            far = "" if self.total is None else f"{self.done} of {self.total}, "
            try:
                self.say(f"{self.what}: {far}{seconds:.0f} s")
            except OSError:  # of a closed pipe; who works in the block meets it at its own next line
                return
