"""Draw the greatest children of a beam: their Gumbel keys, given that the greatest of them equals the beam's own key.

A key is the log-probability of a prefix, perturbed by Gumbel noise. The greatest key of a set of children has the
distribution of a single child that is as likely as all of them together. So the vocabulary is cut into blocks: blocks
draw keys first, and only those of the greatest blocks hand theirs down to their tokens. That gives the same
distribution as a Gumbel for every token, with far fewer random numbers, which are drawn on the CPU. Children that are
drawn given their parent's key are those of Kool, van Hoof and Welling 2019, arXiv 1903.06059, appendix B.

Letters: L live beams, V vocabulary, B blocks of it, C children kept of a beam.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

_NOTHING = -math.inf
_BLOCK = 128  # tokens; for C = 8 and 150,000 tokens the numbers drawn, V / 128 + 128 (C + 1), are fewest near here


@dataclass(frozen=True)
class Children:
    """The C greatest children of each live beam (L, C), and what the others come to."""

    key: Float[Tensor, "L C"]
    log_prob: Float[Tensor, "L C"]  # of the prefix that ends with the child
    token: Int[Tensor, "L C"]
    log_rest: Float[Tensor, " L"]  # log-probability of all other children
    threshold: Float[Tensor, " L"]  # the greatest key among them

    @classmethod
    def of(
        cls,
        logits: Float[Tensor, "L V"],
        log_prob: Float[Tensor, " L"],
        key: Float[Tensor, " L"],
        noise: Float[Tensor, "L N"],
        slots: int,
    ) -> "Children":
        """Draw the children of every beam.

        Args:
            logits: float32, of the next token.
            log_prob, key: float64, of the beams.
            noise: standard Gumbels; N is `noise_width(V, slots)`.
            slots: children to keep, C; all where the vocabulary has fewer.
        """
        blocks = _blocks(logits)
        count, opened = blocks.shape[1], _opened(logits.shape[1], slots)
        mass = blocks.logsumexp(-1).double()  # (L, B)
        normaliser = mass.logsumexp(1, keepdim=True)
        mass = mass - normaliser
        top = (log_prob[:, None] + mass + noise[:, :count]).topk(opened, dim=1)

        row = torch.arange(len(blocks), device=blocks.device)[:, None]
        inner = blocks[row, top.indices].double() - normaliser[..., None]  # (L, opened, 128)
        perturbed = log_prob[:, None, None] + inner + noise[:, count:].view_as(inner)
        keys = _given_greatest(perturbed, _given_greatest(top.values, key)).flatten(1)
        best = keys.topk(min(slots + 1, logits.shape[1]), dim=1)
        index, kept = best.indices[:, :slots], best.values[:, :slots]
        token = top.indices.gather(1, index // _BLOCK) * _BLOCK + index % _BLOCK
        token = token.clamp_max(logits.shape[1] - 1)  # what fills a block up is no token, and its key is −inf

        conditional = inner.flatten(1)
        beside = mass.scatter(1, top.indices, _NOTHING).logsumexp(1)
        others = torch.logaddexp(beside, conditional.scatter(1, index, _NOTHING).logsumexp(1))
        # No block that stayed closed has a key above the greatest of the last one opened.
        more = best.values[:, slots] if best.values.shape[1] > slots else torch.full_like(key, _NOTHING)
        return cls(kept, log_prob[:, None] + conditional.gather(1, index), token, log_prob + others, more)


def noise_width(vocabulary: int, slots: int) -> int:
    """Count the Gumbels that the children of a beam take: one for each block, and for each token of those opened."""
    return -(-vocabulary // _BLOCK) + _opened(vocabulary, slots) * _BLOCK


def gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw standard Gumbels on the CPU, so that a draw does not depend on the device."""
    return -torch.empty(shape, dtype=torch.float64).exponential_(generator=generator).log()


def _opened(vocabulary: int, slots: int) -> int:
    """Count the blocks whose tokens are looked at: the C + 1 greatest children are in the C + 1 greatest blocks."""
    return min(slots + 1, -(-vocabulary // _BLOCK))


def _blocks(logits: Tensor) -> Tensor:
    """Cut the vocabulary into blocks (L, B, 128); tokens that fill the last one up have probability 0."""
    missing = -logits.shape[1] % _BLOCK
    if missing:
        logits = torch.nn.functional.pad(logits, (0, missing), value=_NOTHING)
    return logits.view(len(logits), -1, _BLOCK)


def _given_greatest(perturbed: Tensor, key: Tensor) -> Tensor:
    """Turn independent keys (..., N) into keys whose greatest equals `key` (...); their order stays.

    The truncated Gumbel of appendix B.3, in the form that loses no digits:
    G = G_parent − max(0, v) − log(1 + e^{−|v|}),  v = G_parent − G̃ + log(1 − e^{G̃ − max G̃}).
    """
    below = perturbed - perturbed.amax(-1, keepdim=True)
    v = key[..., None] - perturbed + (-torch.expm1(below)).log()
    drawn = key[..., None] - v.clamp_min(0.0) - torch.log1p((-v.abs()).exp())
    return torch.where(perturbed > _NOTHING, drawn, _NOTHING)
