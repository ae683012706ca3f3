"""Signals that ask a training run to stop: noted when they come, obeyed where the state is whole."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

from leaf.errors import RunInterrupted

_ASKING = {"SIGTERM", "SIGUSR1", "SIGINT"}


class StopRequested(Exception):
    """Carries a request to stop from a safe point up to where the run is saved."""


class StopSignals:
    """Note SIGTERM, SIGUSR1 and the first Ctrl-C inside a `with` block; `check` raises for them at safe points.

    A second Ctrl-C is a KeyboardInterrupt at once. The handlers before are put back at the end of the block. Outside of
    the main thread Python delivers no signals, and ignored ones (as under nohup) stay ignored.

    Attributes:
        received: the signal that came first, None if none did.
        safe: whether `check` may raise: set by the loop while nothing is half done.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self.safe = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        self.received, self.safe = None, False
        if threading.current_thread() is threading.main_thread():
            for number in signal.Signals:
                if number.name in _ASKING and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            # None stands for a handler that was not set from Python and cannot be put back from here.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received, self.received or signal.Signals(number)
        if again is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        more = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        # Not print(): the signal may have come while the same stream was being written.
        with contextlib.suppress(OSError):
            os.write(2, f"\nleaf: {self.received.name} received, saving as soon as it is safe{more}\n".encode())

    def interrupted(self, step: int, steps: int) -> RunInterrupted:
        """Return the error that ends a run which has been saved after a step."""
        asked = "Another process" if self.received is None else self.received.name
        return RunInterrupted(
            f"{asked} asked to stop: the run is saved after step {step} of {steps}. Give the same command with "
            "`--resume` to go on."
        )

    def check(self) -> None:
        """Raise StopRequested if a signal has come and this is a safe point."""
        if self.safe and self.received is not None:
            raise StopRequested
