"""The gradient of one RL update: token weights, the loss of packed groups, and what is reported of it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from leaf.config import LeafConfig
from leaf.credit import policy_loss, token_weights
from leaf.model.policy import Policy
from leaf.model.sampling import Group
from leaf.model.scoring import batches, score
from leaf.runs.processes import Processes
from leaf.train.rollout import Rollout

_SUMS = "loss entropy weight tokens kl clip_fraction ratio_mean ratio_max packed_tokens plain_tokens".split()
_OVER_TOKENS = ("kl", "clip_fraction", "ratio_mean")


def update_weights(part: Rollout, config: LeafConfig, processes: Processes, device: torch.device) -> list[Tensor]:
    """Return the weight of every token (K, T) in the loss of one update, over the groups of all processes."""
    masks = _masks(part.groups, device)
    weights = token_weights(masks, reduction=config.reduction, constant_length=config.max_new_tokens)
    # The weights divide by what this process counts; what all count is to be divided by.
    by_token = config.reduction == "token_mean"
    count = float(sum(int(mask.sum() if by_token else mask.any(1).sum()) for mask in masks))
    (total,) = processes.sum([count])
    return weights if total == count else [weight * (count / total) for weight in weights]


def add_gradient(policy: Policy, part: Rollout, weights: Sequence[Tensor], config: LeafConfig) -> dict[str, float]:
    """Run the loss forward and backward over micro-batches of packed groups and return sums of its statistics.

    `loss` and `entropy` are weighted like the loss; kl, clip_fraction and ratio_mean are sums over `tokens`. Without
    reference log-probabilities there is no `kl`.
    """
    prompts, trees = [group.prompt for group in part.groups], [group.tree for group in part.groups]
    device = policy.device
    masks = _masks(part.groups, device)
    sums = {key: 0.0 for key in _SUMS if key != "kl" or part.ref_log_probs is not None}
    for batch in batches(policy, prompts, trees):
        scores = score(policy, [prompts[i] for i in batch], [trees[i] for i in batch])
        loss = torch.zeros((), device=device)
        for position, i in enumerate(batch):
            new = scores.log_probs[position]
            one, extra = policy_loss(
                new,
                new.detach() if part.old_log_probs is None else part.old_log_probs[i],
                part.advantages[i],
                masks[i],
                weights=weights[i],
                clip=config.clip,
                clip_high=config.clip_high,
                ref_logp=None if part.ref_log_probs is None else part.ref_log_probs[i],
                kl_coef=config.kl_coef,
            )
            loss = loss + one
            tokens = int(masks[i].sum())
            sums["tokens"] += tokens
            sums["weight"] += float(weights[i].sum())
            sums["entropy"] += float((scores.entropies[position] * weights[i]).sum())
            for key in extra.keys() & _OVER_TOKENS:
                sums[key] += float(extra[key]) * tokens
            sums["ratio_max"] = max(sums["ratio_max"], float(extra["ratio_max"]))
        # Not accelerator.backward: it divides by what the launcher says of gradient accumulation.
        if loss.requires_grad:
            loss.backward()
        sums["loss"] += loss.item()
        sums["packed_tokens"] += scores.packed_tokens
        sums["plain_tokens"] += scores.plain_tokens
    return sums


def update_statistics(sums: dict[str, float], processes: Processes) -> dict[str, float]:
    """Return the statistics of an update over all processes: means over tokens, and the largest ratio."""
    largest = processes.max({"ratio_max": sums["ratio_max"]})
    total = dict(zip(sums, processes.sum(list(sums.values())), strict=True)) | largest
    tokens, weight = total.pop("tokens"), total.pop("weight")
    total["entropy"] /= weight or 1.0
    return total | {key: total[key] / (tokens or 1.0) for key in _OVER_TOKENS if key in total}


def update_record(updates: Sequence[tuple[dict[str, float], bool]]) -> dict[str, float | None]:
    """Return what is recorded of the updates of a rollout: the mean of each statistic, of ratio_max the largest.

    None is what was not measured: kl without a reference, everything where no update was taken.

    Args:
        updates: the statistics of each, and whether it was taken; those of skipped ones are left out.
    """
    taken = [statistics for statistics, was_taken in updates if was_taken]
    record: dict[str, float | None] = {"kl": None, **dict.fromkeys(updates[0][0])}
    for name in record:
        if values := [statistics[name] for statistics in taken if name in statistics]:
            record[name] = max(values) if name == "ratio_max" else sum(values) / len(values)
    return {**record, "skipped_steps": len(updates) - len(taken)}


def _masks(groups: Sequence[Group], device: torch.device) -> list[Tensor]:
    return [(group.tree.node >= 0).to(device) for group in groups]
