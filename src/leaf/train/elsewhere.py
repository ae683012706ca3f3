"""What changes where a sampler elsewhere drew the completions: the policy scores, checks and weighs them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from leaf.credit.correction import Correction, Mismatch, mismatch
from leaf.errors import ModelError
from leaf.model.policy import Policy
from leaf.model.sampler import LocalSampler, Sampler
from leaf.model.sampling import Group
from leaf.runs.processes import Processes
from leaf.train.phases import phase
from leaf.train.scoring import scored

IN_A_ROW = 2  # rollouts on which sampler and policy may disagree before the run ends
WORST = 50  # times the tolerance of the mean that a single token may be off


@dataclass(frozen=True)
class Source:
    """Where the completions of a rollout come from.

    Attributes:
        sampler: draws them.
        correction: how those are weighed that a sampler elsewhere draws.
        drawn: groups that it has drawn ahead, for all rows.
    """

    sampler: Sampler = field(default_factory=LocalSampler)
    correction: Correction = Correction()
    drawn: list[Group] | None = None


@dataclass(frozen=True)
class Compared:
    """What the policy says of completions that were drawn elsewhere; lists have one entry per group.

    Attributes:
        groups: with the policy's entropy.
        log_probs: (K, T) under the policy.
        weights: (K, T) importance weights.
        mismatch: how far policy and sampler are apart.
    """

    groups: list[Group]
    log_probs: list[Tensor]
    weights: list[Tensor]
    mismatch: Mismatch


@phase("old")
def compare(policy: Policy, groups: Sequence[Group], correction: Correction) -> Compared:
    """Score completions with the policy as it is now, and weigh them."""
    scores = scored(policy, groups)
    masks = [(group.tree.node >= 0).to(policy.device) for group in groups]
    # Where the sampler's own is not known, nothing is learned from the completion (`unscore_unsampled`).
    drawn = [-group.surprisal.to(policy.device) for group in groups]
    drawn = [torch.where(one.isfinite(), one, own) for one, own in zip(drawn, scores.log_probs, strict=True)]
    weights, apart = mismatch(scores.log_probs, drawn, masks, correction)
    with_entropy = [
        replace(group, entropy=entropy.detach().masked_fill(~mask, 0.0).cpu())
        for group, entropy, mask in zip(groups, scores.entropies, masks, strict=True)
    ]
    return Compared(with_entropy, scores.log_probs, weights, apart)


def over_processes(one: Mismatch, processes: Processes) -> Mismatch:
    """Add up what the processes found of their own completions."""
    sums = dict(zip(one.sums, processes.sum(list(one.sums.values())), strict=True))
    return Mismatch(sums, processes.max(one.largest))


class Agreement:
    """Watch whether a sampler still draws from the policy, rollout by rollout.

    Args:
        tolerance: largest mean |log π − log μ|, in nats per token.
        say: takes a line on a rollout that is off.
    """

    def __init__(self, tolerance: float, say: Callable[[str], None]):
        self.tolerance, self.say = tolerance, say
        self.in_a_row = 0

    def step(self, number: int, mean: float, largest: float) -> None:
        """Look at the differences of a rollout.

        Raises:
            ModelError: this one and the one before were off.
        """
        if mean <= self.tolerance and largest <= WORST * self.tolerance:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        found = (
            f"step {number}: the sampler's log-probabilities differ from the policy's by {mean:.2g} nats per token, at "
            f"most {largest:.2g}; allowed are {self.tolerance:g} and {WORST * self.tolerance:g}"
        )
        if self.in_a_row >= IN_A_ROW:
            raise ModelError(
                f"{found}, for {self.in_a_row} rollouts in a row. The server does not draw from the adapter that is "
                "trained: check its log, and that nobody else loads adapters there. The last checkpoint is as it was; "
                "continue with --resume. sampler_options.tolerance allows more, as half precision may need."
            )
        self.say(f"{found}. The run ends if the next rollout is off, too")
