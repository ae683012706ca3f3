"""What asks a training run to stop: signals, and lines that nobody can read any more.

It is noted when it comes, and obeyed where nothing is half done.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from leaf.visible import visible

_ASKING = {"SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT"}


class StopRequested(Exception):
    """Carries a request to stop from where it is obeyed up to the loop, which saves the run."""


class StopSignals:
    """Note SIGTERM, SIGUSR1, SIGHUP and the first Ctrl-C inside a `with` block.

    A second Ctrl-C is a KeyboardInterrupt at once. At the end of the block the handlers from before are put back.
    Python delivers signals to the main thread only; elsewhere the block changes nothing. Ignored signals (as under
    nohup) stay ignored.

    Attributes:
        received: the signal that came first, None if none did.
        lost: why a line for a person could not be written, None if all could.
        tell: takes the answer to a signal, inside its handler; a live view has its own, as stderr would tear it.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self.lost: OSError | None = None
        self.tell = _tell
        self._may_stop = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.received = None
        if threading.current_thread() is threading.main_thread():
            for number in signal.Signals:
                if number.name in _ASKING and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python, which Python cannot put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    @property
    def asked(self) -> bool:
        """Whether the run is to stop."""
        return self.received is not None or self.lost is not None

    def heard(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """Make a `say` that asks the run to stop, and says so on stderr, where the line cannot be written.

        The pipe may be closed (`| head`), the disk of the log full, the terminal gone. A line may quote a model or a
        row, so what would steer a terminal is spelled out.
        """

        def say_or_note(line: str) -> None:
            try:
                say(visible(line, keep="\n"))
            except OSError as error:
                if self.lost is None:
                    self.lost = error
                    self.tell(f"the output cannot be written ({error.strerror or error}), saving as soon as it is safe")

        return say_or_note

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Only noted: an exception raised here could come in the middle of an optimiser step or of writing a file.
        again, self.received = self.received, self.received or signal.Signals(number)
        if again is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.tell(answer(self.received))

    @contextlib.contextmanager
    def obeyed(self, allowed: bool = True) -> Iterator[None]:
        """Let `check` stop the run inside the block: nothing done there is part of the run's state yet.

        `allowed` is False where the run has to get through the block all the same.
        """
        self._may_stop = allowed
        try:
            self.check()
            yield
        finally:
            self._may_stop = False

    def check(self) -> None:
        """Raise StopRequested if the run was asked to stop and may do so here."""
        if self._may_stop and self.asked:
            raise StopRequested

    def why(self) -> str:
        """Say what asked the run to stop."""
        if self.received is not None:
            return f"{self.received.name} asked to stop"
        if self.lost is not None:
            return f"The output cannot be written ({self.lost.strerror or self.lost})"
        return "Another process asked to stop"


@contextlib.contextmanager
def signals_at_once() -> Iterator[Callable[[], set[int]]]:
    """Give a function that tells which signals have come, even while the main thread is inside one long operation.

    A handler runs between two operations only. Python writes down the signal at once, into a pipe; here in the main
    thread alone, since no other may ask for it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield set
        return
    read, write = os.pipe2(os.O_NONBLOCK)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    come: set[int] = set()

    def look() -> set[int]:
        with contextlib.suppress(BlockingIOError):  # nothing new
            come.update(os.read(read, 64))
        return come

    try:
        yield look
    finally:
        signal.set_wakeup_fd(before)
        os.close(read)
        os.close(write)


def answer(number: signal.Signals) -> str:
    """Say what becomes of a run after a signal."""
    more = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
    return f"{number.name} received, saving as soon as it is safe{more}"


def _tell(text: str) -> None:
    # Not print(): a signal may have come while the same stream was being written. A closed stream is no reason to lose
    # the run.
    with contextlib.suppress(OSError):
        os.write(2, f"\nleaf: {text}\n".encode())
