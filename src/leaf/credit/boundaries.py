"""Choose the boundaries of a group: token positions just before which its completions are likely to part.

Surprisal is high where the policy hesitated, so a boundary just before a surprising token tends to have completions
that agree up to it and differ after it. The other choices are ablations.
"""

from numbers import Integral

import torch
from jaxtyping import Float, Int
from torch import Tensor

from leaf.errors import ConfigError, DataError, shown


def select_boundaries(
    surprisal: Float[Tensor, "K T"],
    lengths: Int[Tensor, " K"],
    *,
    max_boundaries: int = 2,
    min_prefix: int = 1,
) -> Int[Tensor, " B"]:
    """Select up to B positions in descending surprisal, at least Δ apart (LEAF, arXiv 2606.07610, section on forking).

    Candidates are all (i, t) with max(1, min_prefix) ≤ t < length_i, in one pool over the group. A position nearer than
    Δ = max(2, ⌊ℓ_min / (B + 1)⌋) to one already taken is skipped; ℓ_min is the shortest non-empty completion. Ties go
    to the lower completion, then the lower position.

    Args:
        surprisal: (K, T) −log p in nats under the sampling distribution; padding is ignored.
        lengths: (K,) tokens per completion.
        max_boundaries: B ≥ 0; 0 gives none (the authors' code takes one even then; we do not).
        min_prefix: shortest prefix before a boundary, in tokens.

    Returns:
        (≤ B,) int64 positions, ascending.

    Raises:
        ConfigError: max_boundaries or min_prefix is negative.
        DataError: shapes do not fit, or a candidate's surprisal is NaN.
    """
    return _greedy(surprisal, lengths, max_boundaries, min_prefix)


def entropy_boundaries(
    entropy: Float[Tensor, "K T"], lengths: Int[Tensor, " K"], *, max_boundaries: int = 2, min_prefix: int = 1
) -> Int[Tensor, " B"]:
    """Select positions by the entropy (nats) of the next-token distribution instead of surprisal (ablation)."""
    return _greedy(entropy, lengths, max_boundaries, min_prefix)


def random_boundaries(
    lengths: Int[Tensor, " K"],
    *,
    generator: torch.Generator,
    max_boundaries: int = 2,
    min_prefix: int = 1,
) -> Int[Tensor, " B"]:
    """Select candidates (i, t) uniformly at random from the same pool under the same spacing rule (ablation)."""
    width = int(lengths.max()) if lengths.numel() else 0
    score = torch.rand((lengths.shape[0], width), generator=generator, device=generator.device)
    return _greedy(score, lengths, max_boundaries, min_prefix)


def even_boundaries(lengths: Int[Tensor, " K"], *, max_boundaries: int = 2, min_prefix: int = 1) -> Int[Tensor, " B"]:
    """Cut the shortest non-empty completion into B + 1 parts of about the same length (ablation).

    A cut that is no candidate, or nearer than 2 tokens to the one before, is left out.
    """
    _check_budget(max_boundaries, min_prefix)
    shortest = _shortest(lengths)
    taken: list[int] = []
    for i in range(1, max_boundaries + 1):
        t = shortest * i // (max_boundaries + 1)
        if max(1, min_prefix) <= t < shortest and (not taken or t - taken[-1] >= 2):
            taken.append(t)
    return torch.tensor(taken, dtype=torch.long, device=lengths.device)


def _greedy(score: Tensor, lengths: Tensor, max_boundaries: int, min_prefix: int) -> Tensor:
    """Take the best positions of a (K, T) score under the spacing rule.

    The pool holds all candidates (completion, position), but only positions are chosen, and once one is taken its other
    completions are too near to it. So T positions are ranked by their best score, not K · T candidates; ties follow the
    order of the pool.
    """
    _check_budget(max_boundaries, min_prefix)
    lengths = lengths.to(score.device)
    if score.ndim != 2 or lengths.shape != score.shape[:1] or bool((lengths > score.shape[1]).any()):
        raise DataError(
            f"Scores must have the shape (K, T) of the tokens, with T at least the longest completion; got "
            f"{tuple(score.shape)} for lengths {lengths.tolist()}."
        )
    shortest = _shortest(lengths)
    if max_boundaries == 0 or shortest == 0:
        return torch.zeros(0, dtype=torch.long, device=score.device)
    low, longest = max(1, min_prefix), int(lengths.max())
    position = torch.arange(longest, device=score.device)
    candidate = (position >= low) & (position < lengths[:, None])
    pool = score.detach()[:, :longest].masked_fill(~candidate, -torch.inf)
    best = pool.amax(0)
    if bool(best.isnan().any()):
        raise DataError("A surprisal (or score) inside a completion is NaN; every sampled token needs a number.")
    # Every position from `low` on has a candidate, in the longest completion at least. The sort is stable, so that of
    # equal scores the lower position comes first.
    order = position[low:]
    order = order[best[order].argsort(descending=True, stable=True)]
    ranked = best[order]
    if bool((ranked[1:] == ranked[:-1]).any()):
        # Of equal scores the one of the lower completion comes first: sort by completion, then by score, stably. argmax
        # promises the first of several, max does not; so `first` is the lowest completion that has the best score.
        first = ((pool == best) & candidate).byte().argmax(0)
        order = order[first[order].argsort(stable=True)]
        order = order[best[order].argsort(descending=True, stable=True)]
    spacing = max(2, shortest // (max_boundaries + 1))
    taken: list[int] = []
    for t in order.tolist():
        if all(abs(t - other) >= spacing for other in taken):
            taken.append(t)
            if len(taken) == max_boundaries:
                break
    return torch.tensor(sorted(taken), dtype=torch.long, device=score.device)


def _shortest(lengths: Tensor) -> int:
    """Find ℓ_min, the length of the shortest non-empty completion; 0 if all are empty."""
    alive = lengths[lengths > 0]
    return int(alive.min()) if alive.numel() else 0


def _check_budget(max_boundaries: int, min_prefix: int) -> None:
    if not all(isinstance(value, Integral) and value >= 0 for value in (max_boundaries, min_prefix)):
        raise ConfigError(
            f"max_boundaries is {shown(max_boundaries)} and min_prefix {shown(min_prefix)}; both must be whole numbers "
            "of at least 0."
        )
