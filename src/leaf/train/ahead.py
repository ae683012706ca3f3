"""Draw the next rollout while the update runs: its completions come from weights that are one step old."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leaf.model.sampling import Group
from leaf.train.phases import phase


@dataclass
class Drawn:
    """A rollout that is being drawn ahead.

    Attributes:
        step: it is for.
        version: how many steps had made the weights that it is drawn from.
        rows: that it is drawn for.
        lines, replaced: what became of rows without usable audio.
        weights: of the adapter that it is drawn from.
        finish: waits for the groups.
    """

    step: int
    version: int
    rows: list[dict[str, Any]]
    lines: list[str]
    replaced: int
    weights: Mapping[str, Tensor]
    finish: Callable[[], list[Group]]

    @phase("sample")
    def groups(self) -> list[Group]:
        """Wait until the completions are there."""
        return self.finish()


def in_background(action: Callable[[], list[Group]]) -> Callable[[], list[Group]]:
    """Begin an action in a thread and give a function that waits for its result, or raises its error.

    The thread belongs to the process: where a run ends early, nobody waits for it.
    """
    outcome: list[list[Group]] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(action())
        except BaseException as error:  # raised again by `wait`, in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, name="leaf-ahead", daemon=True)
    thread.start()

    def wait() -> list[Group]:
        while thread.is_alive():  # in short turns, so that Ctrl-C comes through
            thread.join(1.0)
        if failure:
            raise failure[0]
        return outcome[0]

    return wait


def copied(trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the trained parameters as they are now."""
    return {name: value.detach().clone() for name, value in trained.items()}


@contextmanager
@torch.no_grad()
def with_weights(trained: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give the trained parameters other values inside the block."""
    own = copied(trained)
    try:
        for name, value in trained.items():
            value.copy_(weights[name])
        yield
    finally:
        for name, value in trained.items():
            value.copy_(own[name])
