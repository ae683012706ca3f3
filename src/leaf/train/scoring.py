"""Score the completions of a rollout: with the policy as it is now, and with the reference model."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from leaf.memory import within_memory
from leaf.model.policy import Policy
from leaf.model.sampling import Group
from leaf.model.scoring import Scores, largest_batch, score
from leaf.train.phases import phase


@phase("old")
def old_log_probs(policy: Policy, groups: Sequence[Group]) -> list[Tensor]:
    """Score completions with the policy as it is now, before the update."""
    return scored(policy, groups).log_probs


@phase("reference")
def reference_log_probs(policy: Policy, groups: Sequence[Group]) -> list[Tensor]:
    """Score completions with the reference model: the policy with its adapter switched off."""
    with policy.reference():
        return scored(policy, groups).log_probs


@torch.no_grad()
def scored(policy: Policy, groups: Sequence[Group]) -> Scores:
    """Score completions (K, T) per group without a graph and without dropout, in the layout of the update.

    Layers below the adapter are run once (leaf.model.below): here, or before in the sampler.
    """
    policy.eval()
    prompts, trees = [group.prompt for group in groups], [group.tree for group in groups]
    largest = partial(largest_batch, policy, prompts, trees)
    entries = [group.entry for group in groups]
    return within_memory(policy, lambda: score(policy, prompts, trees, entries=entries), largest=largest)
