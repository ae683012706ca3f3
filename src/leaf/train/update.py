"""The update: one optimiser step on one part of a rollout. Shapes: K completions of a prompt, T tokens of the longest.

The loss of an update is a sum over its groups, and the weights of the tokens count the whole update, those of other
processes included. So neither micro-batches nor processes change the gradient: parts of a sum are added up.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from leaf.config import LeafConfig
from leaf.credit import policy_loss, surrogate, token_weights
from leaf.data.rows import row_name
from leaf.memory import within_memory
from leaf.model.below import usable
from leaf.model.kept import KeptPrompt, finish, taken
from leaf.model.policy import Policy
from leaf.model.scoring import batches, largest_batch, score
from leaf.runs.processes import Processes
from leaf.runs.skipped import SkippedSteps
from leaf.train.rollout import Rollout
from leaf.train.schedule import seed_dropout

# Summed over all tokens of an update first, divided by their number at the end.
_MEANS_OVER_TOKENS = ("kl", "clip_fraction", "ratio_mean")
_SUMS = ("loss", "entropy", "weight", "tokens", *_MEANS_OVER_TOKENS, "packed_tokens", "plain_tokens")


def optimizer_step(
    policy: Policy,
    part: Rollout,
    config: LeafConfig,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    skips: SkippedSteps,
    processes: Processes,
    *,
    number: int = 0,
) -> tuple[dict[str, float], bool]:
    """Take one optimiser step on a part of a rollout, within memory; skip it where loss or gradient is not finite.

    Args:
        policy: the model that is trained.
        part: of this process; it may have no group.
        config: the loss (loss, clip, kl_coef, reduction) and max_grad_norm.
        optimizer, schedule: what trains.
        skips: takes or skips the step.
        processes: those that share the update.
        number: of this update in its rollout, counted from 0.

    Returns:
        Statistics of the update over all processes, and whether the step was taken.
    """
    masks = [(group.tree.node >= 0).to(policy.device) for group in part.groups]  # (K, T), True at real tokens
    weights = weights_over_all(masks, part.shares, config, processes)
    if part.importance is not None:  # drawn elsewhere
        weights = [weight * factor for weight, factor in zip(weights, part.importance, strict=True)]

    def accumulate() -> dict[str, float]:
        # From the start each time: an attempt that ran out of memory leaves a part of the gradient.
        optimizer.zero_grad()
        seed_dropout(config.seed, part.step, update=number, process=processes.index)
        return add_gradient(policy, part, masks, weights, config)

    # No collective in here: a process that runs out of memory tries again alone, while the others wait for it below.
    largest = partial(largest_batch, policy, [g.prompt for g in part.groups], [g.tree for g in part.groups])
    sums = processes.together(lambda: within_memory(policy, accumulate, largest=largest))
    statistics = over_all(sums, processes)

    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    processes.add_gradients(parameters)  # before the norm is taken: it is that of the whole update
    statistics["grad_norm"] = float(clip_grad_norm_(parameters, config.max_grad_norm))

    def rows() -> str:
        names = processes.gather([row_name(row) for row in part.rows])
        return f"rows {', '.join(repr(name) for given in names for name in given)}"

    loss, norm = statistics["loss"], statistics["grad_norm"]
    return statistics, skips.take(optimizer, schedule, part.step, loss, norm, rows)


def weights_over_all(
    masks: Sequence[Tensor], shares: Sequence[Tensor], config: LeafConfig, processes: Processes
) -> list[Tensor]:
    """Compute the weight of every token (K, T) in the loss of one update over all processes.

    `token_weights` divides by what it is shown: the tokens or the non-empty completions of this process. The loss is to
    be divided by those of all.
    """
    weights = token_weights(masks, reduction=config.reduction, constant_length=config.max_new_tokens, shares=shares)
    by_token = config.reduction == "token_mean"
    count = sum(
        float((share * (mask.sum(1) if by_token else mask.any(1))).sum())
        for mask, share in zip(masks, shares, strict=True)
    )
    (total,) = processes.sum([count])
    return weights if total == count else [weight * (count / total) for weight in weights]


def add_gradient(
    policy: Policy, part: Rollout, masks: Sequence[Tensor], weights: Sequence[Tensor], config: LeafConfig
) -> dict[str, float]:
    """Run the loss forward and backward, micro-batch by micro-batch, and return sums of its statistics.

    `loss` and `entropy` are weighted like the loss; kl, clip_fraction and ratio_mean are sums over `tokens`. Without
    reference log-probabilities there is no `kl`. What the sampler kept of the prompts is used up: another call runs
    them again.
    """
    with taken(policy, [(group.kept, group.tree) for group in part.groups]) as kept:
        sums = _add_gradient(policy, part, masks, weights, config, kept)
        finish(kept or [])
    return sums


def _add_gradient(
    policy: Policy,
    part: Rollout,
    masks: Sequence[Tensor],
    weights: Sequence[Tensor],
    config: LeafConfig,
    kept: Sequence[KeptPrompt] | None,
) -> dict[str, float]:
    prompts, trees = [group.prompt for group in part.groups], [group.tree for group in part.groups]
    gain = surrogate(config.loss, **config.loss_options)
    sums = dict.fromkeys(_SUMS, 0.0) | {"ratio_max": 0.0}
    if part.ref_log_probs is None:
        del sums["kl"]
    for batch in batches(policy, prompts, trees, kept):
        run = None if kept is None else [kept[i] for i in batch]
        entries = usable([part.groups[i].entry for i in batch])
        scores = score(policy, [prompts[i] for i in batch], [trees[i] for i in batch], run, entries)
        loss = torch.zeros((), device=policy.device)
        for i, new, entropies in zip(batch, scores.log_probs, scores.entropies, strict=True):
            # Without stored log-probabilities this forward is that of the policy that sampled, and the ratio is 1.
            old = new.detach() if part.old_log_probs is None else part.old_log_probs[i]
            own, seen = policy_loss(
                new,
                old,
                part.advantages[i],
                masks[i],
                weights=weights[i],
                surrogate=gain,
                clip=config.clip,
                clip_high=config.clip_high,
                ref_logp=None if part.ref_log_probs is None else part.ref_log_probs[i],
                kl_coef=config.kl_coef,
                shares=part.shares[i],
            )
            loss = loss + own
            tokens = float((masks[i] * part.shares[i][:, None]).sum())
            sums["tokens"] += tokens
            sums["weight"] += float(weights[i].sum())
            sums["entropy"] += float((entropies * weights[i]).sum())
            for key in _MEANS_OVER_TOKENS:
                if key in sums:
                    sums[key] += float(seen[key]) * tokens
            sums["ratio_max"] = max(sums["ratio_max"], float(seen["ratio_max"]))
        # A batch of empty completions has no graph. Not accelerator.backward: it would divide by the gradient
        # accumulation of the launcher's configuration.
        if loss.requires_grad:
            loss.backward()
        sums["loss"] += loss.item()
        sums["packed_tokens"] += scores.packed_tokens
        sums["plain_tokens"] += scores.plain_tokens
    return sums


def over_all(sums: dict[str, float], processes: Processes) -> dict[str, float]:
    """Compute the statistics of an update over all processes: means over tokens, and the largest ratio."""
    largest = processes.max({"ratio_max": sums["ratio_max"]})
    total = dict(zip(sums, processes.sum(list(sums.values())), strict=True)) | largest
    tokens, weight = total.pop("tokens") or 1.0, total.pop("weight") or 1.0  # 0 where all completions are empty
    total["entropy"] /= weight
    for key in _MEANS_OVER_TOKENS:
        if key in total:
            total[key] /= tokens
    return total


def update_record(updates: Sequence[tuple[dict[str, float], bool]]) -> dict[str, float | None]:
    """Summarise the updates of a rollout: the mean of each statistic, of ratio_max the largest.

    None stands for what was not measured: kl without a reference, everything where no update was taken.

    Args:
        updates: statistics of each, and whether it was taken; those of skipped ones are left out.
    """
    taken = [statistics for statistics, was_taken in updates if was_taken]
    record: dict[str, float | None] = {"kl": None, **dict.fromkeys(updates[0][0])}
    for name in record:
        if values := [statistics[name] for statistics in taken if name in statistics]:
            record[name] = max(values) if name == "ratio_max" else sum(values) / len(values)
    return {**record, "skipped_steps": len(updates) - len(taken)}
