"""Optimiser steps whose loss or gradient is NaN or infinite: they are skipped, and too many in a row end the run.

A skipped step leaves weights and optimiser state as they were. The learning-rate schedule moves on, because it counts
updates.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

from leaf.errors import RunError

MOST_SKIPPED = 5  # steps in a row: fewer may be bad luck with a batch, more are a run that has gone wrong


@dataclass
class SkippedSteps:
    """Take optimiser steps, skip those that are not finite, and count the skipped ones in a row.

    Attributes:
        dtype: precision of the frozen weights, for the advice.
        say: takes every line meant for a person.
        limit: how many in a row are allowed.
        in_a_row: how many there have been since the last step taken.
    """

    dtype: torch.dtype
    say: Callable[[str], None]
    limit: int = MOST_SKIPPED
    in_a_row: int = 0

    def take(
        self,
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
        step: int,
        loss: float,
        norm: float,
        rows: Callable[[], str],
    ) -> bool:
        """Take an optimiser step, or skip it and say so; tell whether it was taken. The gradients are gone afterwards.

        Args:
            optimizer, schedule: what trains.
            step: number of the step, for the message.
            loss, norm: loss and gradient norm over all processes, which therefore decide alike.
            rows: says which rows the update has, as "rows 'a', 'b'"; called only where the step is skipped.

        Raises:
            RunError: it is one skipped step too many.
        """
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            optimizer.step()
        optimizer.zero_grad()
        with warnings.catch_warnings():
            # torch warns where the first update of all was skipped; a user cannot do anything about it.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            schedule.step()
        if finite:
            self.in_a_row = 0
        else:
            self._skipped(step, loss, norm, rows())
        return finite

    def _skipped(self, step: int, loss: float, norm: float, rows: str) -> None:
        self.in_a_row += 1
        if not math.isfinite(loss):
            what = f"the loss is {loss}"
        else:
            what = f"the gradient norm is {norm} at a finite loss of {loss:.4g}"
        where = f"This update has the {rows}."
        if self.in_a_row <= self.limit:
            self.say(
                f"step {step}: an optimiser step was skipped, the weights stay as they were ({self.in_a_row} in a row, "
                f"{self.limit} allowed): {what}. {where}"
            )
            return
        precise = "" if self.dtype == torch.float32 else ", use dtype: float32"
        raise RunError(
            f"{self.in_a_row} optimiser steps in a row would have been skipped and {self.limit} are allowed: "
            f"{what}, with weights in {str(self.dtype).removeprefix('torch.')}. {where} No NaN "
            "has reached the weights, and the last checkpoint is intact. Leave such rows out, lower "
            f"learning_rate{precise}, and start afresh in another output_dir."
        )
