"""What may go wrong in the middle of a run, and how it goes on: numbers that are not finite, rows without usable audio.

An optimiser step whose loss or gradient is NaN or infinite is skipped: weights and optimiser state stay as they were,
the learning-rate schedule moves on, because it counts updates. Too many in a row end the run with a diagnosis.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leaf.errors import RunError
from leaf.model.policy import Policy, Prompt
from leaf.model.sampling import Group
from leaf.model.scoring import score

MOST_SKIPPED = 5  # steps in a row: fewer may be bad luck with a batch, more are a run that has gone wrong


@dataclass
class SkippedSteps:
    """Count optimiser steps that had to be skipped one after the other.

    Attributes:
        limit: how many in a row are allowed.
        dtype: precision of the frozen weights, for the advice.
        say: called with every line meant for a person.
        in_a_row: how many there have been since the last step taken.
    """

    limit: int
    dtype: torch.dtype
    say: Callable[[str], None]
    in_a_row: int = 0

    def one(
        self, optimizer: Any, schedule: Any, step: int, loss: float, norm: float, diagnosis: str
    ) -> dict[str, float | None]:
        """Take the step of a stage that runs in one process, or skip it, and return what is recorded of it."""
        finite = math.isfinite(loss) and math.isfinite(norm)
        take_or_skip(optimizer, schedule, finite)
        if finite:
            self.taken()
            return {"loss": loss, "grad_norm": norm, "skipped_steps": 0}
        self.skipped(step, loss, norm, diagnosis)
        return {"loss": None, "grad_norm": None, "skipped_steps": 1}

    def taken(self) -> None:
        """Note a step that was taken."""
        self.in_a_row = 0

    def skipped(self, step: int, loss: float, norm: float, diagnosis: str) -> None:
        """Note a step that was skipped and say why.

        Args:
            step: of the recipe.
            loss, norm: loss and gradient norm over all processes, at least one of them not finite.
            diagnosis: a sentence on which prompt and completions they come from.

        Raises:
            RunError: it is one too many.
        """
        self.in_a_row += 1
        if not math.isfinite(loss):
            what = f"the loss is {loss}"
        else:
            what = f"the gradient norm is {norm} at a finite loss of {loss:.4g}"
        if self.in_a_row <= self.limit:
            self.say(
                f"step {step}: an optimiser step was skipped, the weights stay as they were ({self.in_a_row} in a row, "
                f"{self.limit} allowed): {what}. {diagnosis}"
            )
            return
        precise = "" if self.dtype == torch.float32 else ", use dtype: float32"
        raise RunError(
            f"{self.in_a_row} optimiser steps in a row would have been skipped and {self.limit} are allowed: "
            f"{what}, with weights in {str(self.dtype).removeprefix('torch.')}. {diagnosis} No "
            f"NaN has reached the weights, and the last checkpoint is intact. Leave such rows out, lower learning_rate"
            f"{precise}, and start afresh in another output_dir."
        )


def take_or_skip(optimizer: Any, schedule: Any, taken: bool) -> None:
    """Take a step of the optimiser or none, drop the gradients, and move the schedule on either way."""
    if taken:
        optimizer.step()
    optimizer.zero_grad()
    with warnings.catch_warnings():
        # Of a first update that was skipped; nothing a user could act on.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        schedule.step()


def diagnose(
    policy: Policy,
    names: Sequence[str],
    prompts: Sequence[Prompt],
    groups: Sequence[Group],
    given: Sequence[Sequence[Tensor]],
    parameters: Sequence[nn.Parameter],
) -> str:
    """Return a sentence on which prompt and completions make log-probabilities or gradients that are not finite.

    Every group runs forward and backward alone, so it costs about one step; nothing is left in the gradients.

    Args:
        policy: the policy as it was when it happened.
        names: of the rows, one per group.
        prompts, groups: what was scored.
        given: per group, further (K, T) tensors the loss is made of: advantages, old and reference log-probabilities.
        parameters: what is trained.
    """
    found = []
    for name, prompt, group, tensors in zip(names, prompts, groups, given, strict=True):
        if _odd(prompt.embeddings[None]):
            found.append(f"row {name!r}: its embedded prompt is not finite")
            continue
        if rows := [k for tensor in tensors for k in _odd(tensor)]:
            found.append(f"row {name!r}, {_completions(rows)}: what the loss is made of is not finite")
            continue
        scores = score(policy, [prompt], [group.tree]).log_probs[0]
        if rows := _odd(scores):
            found.append(f"row {name!r}, {_completions(rows)}: the log-probabilities are not finite")
            continue
        rows = [k for k in range(len(scores)) if _odd_gradient(scores[k].sum(), parameters)]
        if rows:
            found.append(f"row {name!r}, {_completions(rows)}: the log-probabilities are finite, their gradient is not")
    if not found:
        return f"None of the rows {', '.join(map(repr, names))} gives it alone and again."
    return f"It comes from {'; '.join(found)}."


def _odd(rows: Tensor) -> list[int]:
    """Return the indices of the rows (K, ...) that hold a value which is not finite."""
    return (~rows.detach().isfinite()).flatten(1).any(1).nonzero().flatten().tolist()


def _odd_gradient(value: Tensor, parameters: Sequence[nn.Parameter]) -> bool:
    # Not `backward`: nothing may be added to .grad, and DDP must not join in.
    gradients = torch.autograd.grad(value, list(parameters), retain_graph=True, allow_unused=True)
    return any(not bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)


def _completions(rows: Sequence[int]) -> str:
    rows = sorted(set(rows))
    return f"completion{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows))}"
