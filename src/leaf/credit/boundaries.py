"""Choose the boundaries of a group: token positions just before which its completions are likely to part."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from leaf.errors import ConfigError


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
    """Select positions uniformly at random under the same spacing rule (ablation)."""
    width = int(lengths.max()) if lengths.numel() else 0
    score = torch.rand((lengths.shape[0], width), generator=generator)
    return _greedy(score, lengths.cpu(), max_boundaries, min_prefix)


def even_boundaries(
    lengths: Int[Tensor, " K"], *, max_boundaries: int = 2, min_prefix: int = 1
) -> Int[Tensor, " B"]:
    """Cut the shortest non-empty completion into B + 1 stretches of like length (ablation)."""
    _check(max_boundaries, min_prefix)
    alive = lengths[lengths > 0]
    if alive.numel() == 0 or max_boundaries == 0:
        return torch.zeros(0, dtype=torch.long)
    shortest = int(alive.min())
    cuts = {shortest * (i + 1) // (max_boundaries + 1) for i in range(max_boundaries)}
    return torch.tensor(sorted(t for t in cuts if max(1, min_prefix) <= t < shortest), dtype=torch.long)


def _greedy(score: Tensor, lengths: Tensor, max_boundaries: int, min_prefix: int) -> Tensor:
    """Take the best positions of a (K, T) score under the spacing rule.

    Only positions are chosen, so each stands for its best completion. Equal scores at different positions are ordered
    by the completion that reaches them first, as in the pool of all candidates.
    """
    _check(max_boundaries, min_prefix)
    none = torch.zeros(0, dtype=torch.long, device=score.device)
    alive = lengths[lengths > 0]
    if max_boundaries == 0 or alive.numel() == 0 or score.shape[1] == 0:
        return none
    position = torch.arange(score.shape[1], device=score.device)
    candidate = (position[None] >= max(1, min_prefix)) & (position[None] < lengths[:, None])
    best = score.masked_fill(~candidate, -torch.inf).amax(0)
    first = (score == best).logical_and(candidate).int().argmax(0)  # max() does not promise the lowest index
    usable = candidate.any(0).nonzero().squeeze(1)
    # Stable sorts from the last key to the first: position (already ascending), completion, score.
    order = usable[torch.argsort(first[usable], stable=True)]
    order = order[torch.argsort(best[order], descending=True, stable=True)]
    spacing = max(2, int(alive.min()) // (max_boundaries + 1))
    taken: list[int] = []
    for t in order.tolist():
        if all(abs(t - other) >= spacing for other in taken):
            taken.append(t)
            if len(taken) == max_boundaries:
                break
    return torch.tensor(sorted(taken), dtype=torch.long, device=score.device)


def _check(max_boundaries: int, min_prefix: int) -> None:
    if max_boundaries < 0 or min_prefix < 0:
        raise ConfigError(
            f"max_boundaries is {max_boundaries} and min_prefix {min_prefix}; both must be whole numbers of at least 0."
        )
