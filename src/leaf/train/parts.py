"""A rollout over several processes and several updates: gather it for the records, cut it into optimiser steps."""

from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from leaf.config import LeafConfig
from leaf.credit import BatchCredit, CreditRule
from leaf.data.recordings import plain_audio
from leaf.model.below import Entry
from leaf.model.policy import Prompt
from leaf.model.sampling import Group
from leaf.runs.processes import Processes
from leaf.train.rollout import Rollout, assign_credit, credit_keys, reads_entropy

RECORDED = 2  # groups of a step that groups.jsonl keeps


def gathered(rollout: Rollout, processes: Processes) -> Rollout:
    """Put the groups of all processes into their order, for statistics and records.

    Embedded prompts, what was kept of their run, and log-probabilities stay where they are, because they are large and
    nobody records them. Rows come for the groups that may be recorded, the first ones.
    """
    if processes.alone:
        return rollout
    mine = [
        (
            position,
            _plain(rollout.rows[i]) if position < RECORDED else {},
            _sent(rollout.groups[i]),
            rollout.rewards[i].clone(),
            rollout.advantages[i].cpu(),
            rollout.shares[i].cpu(),
            {name: values.clone() for name, values in rollout.by_function[i].items()},
            rollout.extra[i] if position < RECORDED else {},
        )
        for i, position in enumerate(rollout.positions)
    ]
    everyone = sorted((one for given in processes.gather(mine) for one in given), key=lambda one: one[0])
    positions, rows, groups, rewards, advantages, shares, by_function, extra = (
        list(part) for part in zip(*everyone, strict=True)
    )
    logged: dict[str, list[float]] = {}
    for given in processes.gather(rollout.logged):
        for name, value in given.items():
            logged.setdefault(name, []).append(value)
    reward_errors, bad_audio = map(int, processes.sum([rollout.reward_errors, rollout.bad_audio]))
    left_out = [line for given in processes.gather(rollout.left_out) for line in given]
    return Rollout(
        rows,
        groups,
        rewards,
        advantages,
        shares,
        None,
        None,
        reward_errors,
        left_out,
        by_function,
        extra,
        {name: fmean(values) for name, values in logged.items()},
        passed_over=None if rollout.passed_over is None else rollout.passed_over.over_all(processes),
        step=rollout.step,
        positions=positions,
        bad_audio=bad_audio,
    )


def _sent(group: Group) -> Group:
    """Copy what of a group is sent.

    Its tensors may be views into those of the whole batch, and a view travels with all of its storage; `select` copies.
    """
    nothing = Prompt(torch.empty(0, 0), torch.empty(0, dtype=torch.bool))
    copy = group.select(list(range(len(group.tokens))))
    return replace(copy, prompt=nothing, kept=None, entry=Entry(), draw=group.draw, beams=group.beams)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """Make a row that can be sent: an open decoder cannot."""
    return {**row, "audio": plain_audio(row["audio"])} if "audio" in row else row


def credited_together(
    rollout: Rollout, rule: CreditRule | BatchCredit, config: LeafConfig, processes: Processes, tokenizer: Any
) -> Rollout:
    """Credit groups anew with those of all processes in sight, where the rule or the share looks at the whole batch."""
    if (processes.alone and rollout.passed_over is None) or not reads_entropy(rule, config):
        return rollout
    mine = [
        (position, group.tokens, group.lengths, group.surprisal.clone(), group.entropy, earned.clone())
        for position, group, earned in zip(rollout.positions, rollout.groups, rollout.rewards, strict=True)
    ]
    everyone = sorted((one for given in processes.gather(mine) for one in given), key=lambda one: one[0])
    nothing = Prompt(torch.empty(0, 0), torch.empty(0, dtype=torch.bool))
    groups = [
        Group(nothing, tokens, lengths, surprisal, torch.zeros(len(lengths), dtype=torch.bool), entropy=entropy)
        for _, tokens, lengths, surprisal, entropy, _ in everyone
    ]
    device = rollout.advantages[0].device if rollout.advantages else torch.device("cpu")
    advantages = assign_credit(rule, groups, [one[-1] for one in everyone], device, **credit_keys(config, tokenizer))
    by_position = dict(zip((one[0] for one in everyone), advantages, strict=True))
    return replace(rollout, advantages=[by_position[position] for position in rollout.positions])


def cut(rollout: Rollout, size: int | None, prompts: int, mix: int = 1) -> Iterator[Rollout]:
    """Cut a rollout into the parts that one optimiser step each takes; it stays whole where one step takes all of it.

    Parts are counted over all processes. So every process yields as many as the others, its own completions of each,
    and meets them in the collectives of every step; a process may have no completion in a part.

    Args:
        rollout: of this process.
        size: completions in a part, group by group and in order; None for all.
        prompts: prompts of the rollout, over all processes.
        mix: lanes that every part takes equally many completions from. Lane m has the prompts m, m + mix, ...
    """
    if size is None:  # a process may have no group then, where groups are chosen
        yield rollout
        return
    completions = rollout.groups[0].tokens.shape[0]
    total = prompts * completions
    if size >= total:
        yield rollout
        return
    share = size // mix
    for start in range(0, total // mix, share):
        chosen: dict[int, list[int]] = {}  # group of this process → its completions in this part
        for i, position in enumerate(rollout.positions):
            # Completion k of the group at `position` is number (position // mix) * completions + k of its lane.
            first = position // mix * completions
            inside = range(max(start - first, 0), min(start + share - first, completions))
            if inside:
                chosen[i] = list(inside)
        yield replace(
            rollout,
            rows=[rollout.rows[i] for i in chosen],
            groups=[rollout.groups[i].select(ks) for i, ks in chosen.items()],
            rewards=[rollout.rewards[i][ks] for i, ks in chosen.items()],
            advantages=[rollout.advantages[i][ks] for i, ks in chosen.items()],
            shares=[rollout.shares[i][ks] for i, ks in chosen.items()],
            old_log_probs=_select(rollout.old_log_probs, chosen),
            ref_log_probs=_select(rollout.ref_log_probs, chosen),
            importance=_select(rollout.importance, chosen),
            by_function=[],  # these two are recorded of the whole rollout
            extra=[],
            positions=[rollout.positions[i] for i in chosen],
        )


def _select(tensors: list[Tensor] | None, chosen: dict[int, list[int]]) -> list[Tensor] | None:
    return None if tensors is None else [tensors[i][ks] for i, ks in chosen.items()]
