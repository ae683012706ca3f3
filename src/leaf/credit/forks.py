"""Forkability: at the selected boundaries, do completions share prefixes, and do those groups' rewards differ?"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from leaf.credit.tree import PrefixTree
from leaf.errors import DataError


@dataclass(frozen=True)
class Fork:
    """Hold what happened at one boundary of one group.

    `fires`: some prefix there is shared by two or more scored completions; `usable`: such a group's rewards differ too.
    `sizes` and `spreads` (highest minus lowest reward) are those of the shared groups.
    """

    position: int
    fires: bool
    usable: bool
    sizes: tuple[int, ...]
    spreads: tuple[float, ...]


def forks(tree: PrefixTree, rewards: Float[Tensor, " K"], boundaries: Int[Tensor, " B"]) -> list[Fork]:
    """Return one Fork per boundary of a group (arXiv 2606.07610, forkability).

    Args:
        tree: prefix tree of the group.
        rewards: (K,), NaN = unscored, left out.
        boundaries: (B,) positions from `select_boundaries`.
    """
    found = []
    scored = ~rewards.isnan() & (tree.lengths.cpu() > 0)
    for t in boundaries.tolist():
        members: dict[int, list[float]] = {}
        for node, reward, known in zip(tree.prefix_group(t).tolist(), rewards.tolist(), scored.tolist(), strict=True):
            if known:
                members.setdefault(node, []).append(reward)
        shared = [values for values in members.values() if len(values) >= 2]
        spreads = tuple(max(values) - min(values) for values in shared)
        found.append(Fork(t, bool(shared), any(s > 0 for s in spreads), tuple(map(len, shared)), spreads))
    return found


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson score interval of a rate (Wilson 1927); (0, 1) without trials."""
    if not 0 <= successes <= trials:
        raise DataError(f"A rate of {successes} out of {trials} is impossible; give 0 ≤ successes ≤ trials.")
    if trials == 0:
        return 0.0, 1.0
    rate, square = successes / trials, z * z
    centre = (rate + square / (2 * trials)) / (1 + square / trials)
    half = z / (1 + square / trials) * (rate * (1 - rate) / trials + square / (4 * trials * trials)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def fork_rates(found: Iterable[Fork]) -> dict[str, float | int | tuple[float, float]]:
    """Return fire and usable rates over forks with their Wilson 95 % intervals."""
    found = list(found)
    fires, usable, total = sum(f.fires for f in found), sum(f.usable for f in found), len(found)
    return {
        "boundaries": total,
        "fire_rate": fires / total if total else 0.0,
        "fire_interval": wilson(fires, total),
        "usable_rate": usable / total if total else 0.0,
        "usable_interval": wilson(usable, total),
    }


def credit_mass(
    advantages: Float[Tensor, "K T"], lengths: Int[Tensor, " K"], *, bins: int = 5
) -> Float[Tensor, " bins"]:
    """Return the share of Σ|A| that lies in each fifth (or bin) of the completions' relative positions.

    Token t of ℓ lies in bin ⌊t · bins / ℓ⌋. Zeros if there is no credit at all.
    """
    position = torch.arange(advantages.shape[1], device=advantages.device)[None]
    length = lengths.to(advantages.device).clamp_min(1)[:, None]
    index = (position * bins // length).clamp_max(bins - 1)
    mass = advantages.abs().double().masked_fill(position >= lengths.to(advantages.device)[:, None], 0.0)
    total = torch.zeros(bins, dtype=torch.float64, device=advantages.device)
    total.index_add_(0, index.flatten(), mass.flatten())
    return total / total.sum() if float(total.sum()) > 0 else total
