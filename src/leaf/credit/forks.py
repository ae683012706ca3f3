"""Forkability: at the selected boundaries, do completions share prefixes, and do those groups' rewards differ?"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from leaf.credit.tree import GroupRewards, PrefixTree
from leaf.credit.values import ROUNDING, counted_completions, scored_completions
from leaf.errors import DataError


@dataclass(frozen=True)
class Fork:
    """What happened at one boundary of one group.

    Attributes:
        position: the boundary.
        fires: some prefix there is shared by two or more scored completions.
        usable: the rewards of such completions differ too.
        sizes: how many scored completions share each such prefix.
        spreads: highest minus lowest reward of each.
        prompt: whose completions they are; None where that is of no interest, and for a prompt of its own.
    """

    position: int
    fires: bool
    usable: bool
    sizes: tuple[int, ...]
    spreads: tuple[float, ...]
    prompt: Hashable = None


def forks(
    tree: PrefixTree,
    rewards: GroupRewards,
    boundaries: Int[Tensor, " B"],
    shares: Float[Tensor, " K"] | None = None,
    *,
    prompt: Hashable = None,
) -> list[Fork]:
    """Describe what happened at each boundary of a group (arXiv 2606.07610, forkability).

    Args:
        tree: prefix tree of the group.
        rewards: (K,), NaN = unscored, left out.
        boundaries: (B,) positions from `select_boundaries`.
        shares: (K,) how many completions each distinct one stands for; a prefix is then shared if LEAF credits it, that
            is if its completions also stand for two or more.
        prompt: names the prompt in the result: `fork_rates` takes boundaries of one prompt together.
    """
    found = []
    part = counted_completions(scored_completions(tree, rewards), shares).tolist()
    for t in boundaries.tolist():
        members: dict[int, list[tuple[float, float]]] = {}
        for node, reward, share in zip(tree.prefix_group(t).tolist(), rewards.tolist(), part, strict=True):
            if share:
                members.setdefault(node, []).append((reward, share))
        # As in LEAF's spans, a sum of shares may be off in its last digits.
        crowds = [crowd for crowd in members.values() if len(crowd) > 1 and sum(n for _, n in crowd) >= 2 - ROUNDING]
        shared = [[reward for reward, _ in crowd] for crowd in crowds]
        spreads = tuple(max(values) - min(values) for values in shared)
        found.append(Fork(t, bool(shared), any(s > 0 for s in spreads), tuple(map(len, shared)), spreads, prompt))
    return found


def wilson(successes: int | float, trials: int | float, z: float = 1.959964) -> tuple[float, float]:
    """Compute the Wilson score interval of a rate (Wilson 1927); (0, 1) without trials."""
    if not 0 <= successes <= trials:
        raise DataError(f"A rate of {successes} out of {trials} is impossible; give 0 ≤ successes ≤ trials.")
    if trials == 0:
        return 0.0, 1.0
    rate, square = successes / trials, z * z
    centre = (rate + square / (2 * trials)) / (1 + square / trials)
    half = z / (1 + square / trials) * (rate * (1 - rate) / trials + square / (4 * trials * trials)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


def fork_rates(found: Iterable[Fork]) -> dict[str, float | int | tuple[float, float]]:
    """Count how often forks fire and are usable, with Wilson 95 % intervals, and describe the shared groups.

    Boundaries of one prompt are correlated, so the intervals use a smaller, effective number of trials.

    Returns:
        boundaries (their number), fire_rate, fire_interval, usable_rate, usable_interval, groups (number of shared
        groups), group_size and reward_spread (means over the shared groups, 0 without any).
    """
    found = list(found)
    fires, usable, total = sum(f.fires for f in found), sum(f.usable for f in found), len(found)
    sizes = [size for f in found for size in f.sizes]
    spreads = [spread for f in found for spread in f.spreads]
    return {
        "boundaries": total,
        "fire_rate": fires / total if total else 0.0,
        "fire_interval": _interval(found, [f.fires for f in found]),
        "usable_rate": usable / total if total else 0.0,
        "usable_interval": _interval(found, [f.usable for f in found]),
        "groups": len(sizes),
        "group_size": sum(sizes) / len(sizes) if sizes else 0.0,
        "reward_spread": sum(spreads) / len(spreads) if spreads else 0.0,
    }


def _interval(found: Sequence[Fork], hits: Sequence[bool]) -> tuple[float, float]:
    """Compute the Wilson interval of the share of hits, with the effective number of trials.

    It is rate (1 − rate) over the variance that the rate has by its spread between prompts (Kish's design effect): at
    most the number of boundaries, and at least what is left of it where all of a prompt agree, which is also taken
    where prompts do not differ.
    """
    counts: dict[Hashable, tuple[int, int]] = {}  # prompt → hits and boundaries
    for number, (fork, hit) in enumerate(zip(found, hits, strict=True)):
        key = ("of its own", number) if fork.prompt is None else fork.prompt
        before = counts.get(key, (0, 0))
        counts[key] = (before[0] + hit, before[1] + 1)
    total, prompts = len(found), len(counts)
    if total == 0:
        return wilson(0, 0)
    rate = sum(hits) / total
    effective = fewest = total**2 / sum(size**2 for _, size in counts.values())
    between = sum((some - rate * size) ** 2 for some, size in counts.values())
    if between > 0 and prompts > 1:
        effective = rate * (1 - rate) * total**2 * (prompts - 1) / (prompts * between)
    effective = min(max(effective, fewest), total)
    return wilson(rate * effective, effective)


def fork_rates_by_position(
    found: Iterable[Fork], *, edges: Sequence[int] = (1, 5, 10, 20, 50, 100)
) -> dict[tuple[int, int | None], dict[str, float | int | tuple[float, float]]]:
    """Compute `fork_rates` of the boundaries in each range of positions [edge, next edge); the last one is open."""
    _check_edges(edges)
    found = list(found)
    ends = [*edges[1:], None]
    return {
        (first, end): fork_rates(f for f in found if first <= f.position and (end is None or f.position < end))
        for first, end in zip(edges, ends, strict=True)
    }


def credit_mass(
    advantages: Float[Tensor, "K T"], lengths: Int[Tensor, " K"], *, bins: int = 5
) -> Float[Tensor, " bins"]:
    """Compute the share of Σ|A| in each fifth (or bin) of the completions' relative positions.

    Token t of ℓ is in bin ⌊t · bins / ℓ⌋. Zeros if there is no credit at all. A group of one-token completions has all
    its mass in the first bin, so read this together with `credit_mass_by_position`.
    """
    if bins < 1:
        raise DataError(f"bins is {bins}; at least 1 is needed.")
    position = torch.arange(advantages.shape[1], device=advantages.device)[None]
    length = lengths.to(advantages.device).clamp_min(1)[:, None]
    return _mass_by_bin(advantages, lengths, (position * bins // length).clamp_max(bins - 1), bins)


def credit_mass_by_position(
    advantages: Float[Tensor, "K T"], lengths: Int[Tensor, " K"], *, edges: Sequence[int] = (0, 5, 10, 20, 50, 100)
) -> Float[Tensor, " bins"]:
    """Compute the share of Σ|A| in each range of token positions [edge, next edge); the last one is open.

    The objection to prefix-tree credit is that completions part early, so that only early tokens gain: compare the
    rule's shares with GRPO's on the same group. Zeros if there is no credit at all.
    """
    _check_edges(edges)
    if edges[0] != 0:
        raise DataError(f"The edges {list(edges)} leave out the first tokens; begin with 0.")
    inner = torch.tensor(list(edges[1:]), device=advantages.device, dtype=torch.long)
    position = torch.arange(advantages.shape[1], device=advantages.device)
    index = torch.bucketize(position, inner, right=True)[None].expand(advantages.shape)
    return _mass_by_bin(advantages, lengths, index, len(edges))


def _mass_by_bin(advantages: Tensor, lengths: Tensor, index: Tensor, bins: int) -> Tensor:
    """Sum |A| of the real tokens by bin; `index` (K, T) is the bin of each."""
    real = torch.arange(advantages.shape[1], device=advantages.device) < lengths.to(advantages.device)[:, None]
    mass = torch.zeros(bins, dtype=torch.float64, device=advantages.device)
    mass.index_add_(0, index[real], advantages.abs().double()[real])
    return mass / mass.sum() if float(mass.sum()) > 0 else mass


def _check_edges(edges: Sequence[int]) -> None:
    if not edges or any(b <= a for a, b in pairwise(edges)):
        raise DataError(f"Edges must be ascending token positions, each once; got {list(edges)}.")
