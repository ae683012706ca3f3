"""Choose the groups that a step learns from: draw more prompts where groups are flat, or keep those that differ most.

`dynamic_sampling` is DAPO's (arXiv 2503.14476): groups whose rewards are all equal teach nothing, so further prompts
are drawn until there are enough others. `keep_groups` keeps the share of groups whose rewards vary most. What is drawn
and chosen is a function of seed and step, so nothing has to be saved, and the number of processes changes nothing.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from leaf.config import LeafConfig
from leaf.data.rows import shuffled
from leaf.errors import ConfigError
from leaf.runs.processes import Processes
from leaf.train.rollout import Rollout


@dataclass(frozen=True)
class PassedOver:
    """What was sampled in a step and not learned from, over this process or all.

    Attributes:
        groups, completions, tokens: how many there were, and the tokens decoded for them.
        reward, weight: the sum of their rewards, each with its share, and that of the shares of scored completions.
    """

    groups: float = 0
    completions: float = 0
    tokens: float = 0
    reward: float = 0.0
    weight: float = 0.0

    @classmethod
    def of(cls, rollout: Rollout, left: Sequence[int]) -> "PassedOver":
        """Count groups of a rollout, by number."""
        reward = weight = 0.0
        for i in left:
            scored = ~rollout.rewards[i].isnan()
            share = rollout.shares[i].cpu().double()[scored]
            reward, weight = reward + float(share @ rollout.rewards[i][scored].double()), weight + float(share.sum())
        groups = [rollout.groups[i] for i in left]
        completions = sum(len(group.lengths) for group in groups)
        return cls(len(left), completions, sum(group.tokens_decoded for group in groups), reward, weight)

    def over_all(self, processes: Processes) -> "PassedOver":
        """Add up those of all processes."""
        return PassedOver(*processes.sum([float(getattr(self, one.name)) for one in fields(self)]))


def passed_over_statistics(rollout: Rollout) -> dict[str, float | None]:
    """Compute what a step sampled in all, where some groups were passed over: it replaces figures of the chosen ones.

    `reward_drawn` is the mean over everything that was sampled, as `reward_mean` is over the chosen groups.
    """
    if rollout.passed_over is None:
        return {}
    every = PassedOver.of(rollout, range(len(rollout.groups)))
    total = [float(getattr(every, one.name) + getattr(rollout.passed_over, one.name)) for one in fields(every)]
    groups, completions, tokens, reward, weight = total
    return {
        "groups_drawn": int(groups),
        "completions": int(completions),
        "tokens_decoded": int(tokens),
        "reward_drawn": reward / weight if weight > 0 else None,
    }


def chooses(config: LeafConfig) -> bool:
    """Tell whether a step learns from some of its groups only."""
    return config.dynamic_sampling > 0 or config.keep_groups < 1


def check_choosing(config: LeafConfig) -> None:
    """Refuse what does not go with a choice of groups."""
    if not chooses(config):
        return
    key = "dynamic_sampling" if config.dynamic_sampling else "keep_groups"
    if config.completions_per_update is not None:
        raise ConfigError(
            f"{key} is {getattr(config, key)} and completions_per_update {config.completions_per_update}: one update "
            "takes the chosen groups. Set completions_per_update=null."
        )
    if config.sampler != "local":
        raise ConfigError(
            f"{key} is {getattr(config, key)} and sampler is {config.sampler}: groups are chosen only where the policy "
            f"itself draws. Set sampler=local, or leave {key} out."
        )


def further_rows(config: LeafConfig, num_rows: int, step: int, first: Sequence[int], number: int) -> list[int]:
    """Choose the rows of a further round (from 1) of a step: none of `first`, and none of another round."""
    taken = sorted(set(first))
    order = shuffled(num_rows - len(taken), f"{config.seed}/{step}/dynamic sampling")
    # The number of a row among those not taken, plus the taken ones before it, is the row.
    before = [row - i for i, row in enumerate(taken)]
    size = config.prompts_per_rollout
    return [row + bisect_right(before, row) for row in order[(number - 1) * size : number * size]]


def choose(
    first: Rollout, config: LeafConfig, processes: Processes, further: Callable[[int], Rollout | None]
) -> Rollout:
    """Draw further rounds as the recipe says, and choose the groups of all of them that the step learns from.

    With too few groups that differ after the last round flat ones fill up, so that a step always has as many groups.

    Args:
        first: the step's rollout, of this process.
        config: dynamic_sampling, keep_groups and prompts_per_rollout.
        processes: choose together.
        further: makes the rollout of a round, from 1, in all processes; None where no rows are left.

    Returns:
        A rollout of the chosen groups, in the order of their positions, with what was passed over.
    """
    wanted = config.prompts_per_rollout
    rollout, spreads = first, _spreads(first, processes)
    for number in range(1, config.dynamic_sampling + 1):
        if sum(spread > 0 for spread in spreads.values()) >= wanted:
            break
        more = further(number)
        if more is None:
            break
        rollout = _joined(rollout, more)
        spreads = _spreads(rollout, processes)
    # Groups that differ before flat ones, each in the order in which they were drawn.
    chosen = sorted(spreads, key=lambda position: (spreads[position] == 0, position))[:wanted]
    if config.keep_groups < 1:
        count = max(1, math.ceil(config.keep_groups * len(chosen)))
        chosen = sorted(chosen, key=lambda position: (-spreads[position], position))[:count]
    place = {position: i for i, position in enumerate(sorted(chosen))}
    taken = [i for i, position in enumerate(rollout.positions) if position in place]
    left = [i for i in range(len(rollout.groups)) if i not in taken]
    kept = _only(rollout, taken)
    passed = PassedOver.of(rollout, left)
    return replace(kept, positions=[place[position] for position in kept.positions], passed_over=passed)


def _spreads(rollout: Rollout, processes: Processes) -> dict[int, float]:
    """Compute the variance of every group's rewards over all processes, by position; exactly 0 where all are equal."""
    mine = {}
    for position, reward, share in zip(rollout.positions, rollout.rewards, rollout.shares, strict=True):
        scored = ~reward.isnan()
        known, weight = reward[scored].double(), share.cpu().double()[scored]
        flat = len(known) < 2 or bool((known == known[0]).all())
        mean = weight @ known / weight.sum()
        mine[position] = 0.0 if flat else float(weight @ (known - mean).square() / weight.sum())
    return {position: value for part in processes.gather(mine) for position, value in part.items()}


_LISTS = ("rows", "groups", "rewards", "advantages", "shares", "by_function", "extra", "positions")
_LOG_PROBS = ("old_log_probs", "ref_log_probs")


def _joined(one: Rollout, other: Rollout) -> Rollout:
    """Put two rollouts of a step together."""
    both: dict[str, Any] = {name: [*getattr(one, name), *getattr(other, name)] for name in _LISTS}
    for name in _LOG_PROBS:
        ours, theirs = getattr(one, name), getattr(other, name)
        both[name] = None if ours is None else [*ours, *theirs]
    counts = {name: getattr(one, name) + getattr(other, name) for name in ("reward_errors", "bad_audio", "left_out")}
    # The mean of two rounds of as many prompts; what functions log is of no group in particular.
    logged = {
        name: torch.tensor([r.logged[name] for r in (one, other) if name in r.logged]).mean().item()
        for name in {**one.logged, **other.logged}
    }
    return replace(one, **both, **counts, logged=logged)


def _only(rollout: Rollout, taken: Sequence[int]) -> Rollout:
    """Keep some groups of a rollout, by number."""
    part: dict[str, Any] = {name: [getattr(rollout, name)[i] for i in taken] for name in _LISTS}
    for name in _LOG_PROBS:
        given = getattr(rollout, name)
        part[name] = None if given is None else [given[i] for i in taken]
    return replace(rollout, **part)
