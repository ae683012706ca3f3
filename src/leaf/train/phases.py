"""The phases of a step (embed, sample, reward, ...), so that a loop can time them and stop between them.

A function that is a phase is marked with `@phase(name)` and does nothing else for it. Whoever wants to know when phases
begin and end calls them inside `watched_by(...)`. So neither clocks nor signals show in the code of a step, which runs
the same without a watcher.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
Watcher = Callable[[str], AbstractContextManager[None]]  # name of a phase → what is put around it

_watcher: ContextVar[Watcher] = ContextVar("watcher", default=lambda name: nullcontext())


def phase(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Mark a function as a phase of a step."""

    def mark(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def watched(*args: P.args, **kwargs: P.kwargs) -> T:
            with _watcher.get()(name):
                return function(*args, **kwargs)

        return watched

    return mark


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Put `watcher(name)` around every phase that runs inside the block."""
    before = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(before)
