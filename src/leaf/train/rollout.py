"""What one step works on: groups with what they earned, gathered from all processes or cut into updates."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from leaf.model.policy import Prompt
from leaf.model.sampling import Group
from leaf.runs.processes import Processes

RECORDED = 2  # groups of a step that groups.jsonl keeps


@dataclass(frozen=True)
class Rollout:
    """Hold one batch of groups with what they earned: rewards (K,), advantages (K, T) and log-probabilities (K, T)."""

    step: int
    rows: list[dict[str, Any]]
    groups: list[Group]
    rewards: list[Tensor]
    advantages: list[Tensor]
    old_log_probs: list[Tensor] | None
    ref_log_probs: list[Tensor] | None
    positions: list[int]  # of the groups in the rollout of all processes
    accidents: dict[str, int]  # what was left out: completions by reward_errors, rows by bad_audio
    unsaid: list[str]  # sentences about them that the main process has still to say

    def gathered(self, processes: Processes) -> "Rollout":
        """Return the rollout of all processes, in order, without embedded prompts and log-probabilities.

        Rows are there for the groups that may be recorded, the first two.
        """
        if processes.alone:
            return self
        nothing = Prompt(torch.empty(0, 0), torch.empty(0, dtype=torch.bool))
        # Selected, that is copied: the tensors may be views, and each would carry the storage of the whole batch along.
        sent = [replace(group.select(list(range(group.tokens.shape[0]))), prompt=nothing) for group in self.groups]
        mine = [
            (position, row if position < RECORDED else {}, group, reward.clone(), advantage.cpu())
            for position, row, group, reward, advantage in zip(
                self.positions, self.rows, sent, self.rewards, self.advantages, strict=True
            )
        ]
        everyone = sorted((one for given in processes.gather(mine) for one in given), key=lambda one: one[0])
        positions, rows, groups, rewards, advantages = (list(part) for part in zip(*everyone, strict=True))
        accidents = dict(zip(self.accidents, map(int, processes.sum([*self.accidents.values()])), strict=True))
        unsaid = [line for given in processes.gather(self.unsaid) for line in given]
        return Rollout(self.step, rows, groups, rewards, advantages, None, None, positions, accidents, unsaid)

    def parts(self, size: int | None, groups: int) -> "Iterator[Rollout]":
        """Cut a rollout into parts of `size` completions, group by group; it stays whole where they fit into one part.

        Completions are counted over the `groups` of all processes: each gets its own of every part, which may be none.
        """
        completions = self.groups[0].tokens.shape[0]
        if size is None or size >= groups * completions:
            yield self
            return
        for at in range(0, groups * completions, size):
            chosen: dict[int, list[int]] = {}
            for i, position in enumerate(self.positions):
                first = position * completions
                mine = range(max(at - first, 0), min(at + size - first, completions))
                if mine:
                    chosen[i] = list(mine)
            yield replace(
                self,
                rows=[self.rows[i] for i in chosen],
                groups=[self.groups[i].select(ks) for i, ks in chosen.items()],
                rewards=[self.rewards[i][ks] for i, ks in chosen.items()],
                advantages=[self.advantages[i][ks] for i, ks in chosen.items()],
                old_log_probs=_select(self.old_log_probs, chosen),
                ref_log_probs=_select(self.ref_log_probs, chosen),
                positions=[self.positions[i] for i in chosen],
            )


def _select(tensors: list[Tensor] | None, chosen: dict[int, list[int]]) -> list[Tensor] | None:
    return None if tensors is None else [tensors[i][ks] for i, ks in chosen.items()]


def unscore_unsampled(groups: Sequence[Group], rewards: Sequence[Tensor]) -> tuple[list[Group], list[Tensor], int]:
    """Leave completions unscored that were drawn from logits which are not finite, and count them.

    Their surprisal becomes 0, so that no boundary is put where nothing is known. The others of a group keep theirs.
    """
    kept, scores, count = [], [], 0
    for group, reward in zip(groups, rewards, strict=True):
        odd = ~group.surprisal.isfinite().all(1)
        if bool(odd.any()):
            count += int(odd.sum())
            group = replace(group, surprisal=group.surprisal.masked_fill(odd[:, None], 0.0))
            reward = reward.masked_fill(odd, math.nan)
        kept.append(group)
        scores.append(reward)
    return kept, scores, count
