"""Read log-probabilities and entropies at hidden states without keeping logits.

For a frozen head W (V, D) and a hidden state h, log p(v | h) = (W h)_v − logsumexp(W h) has the gradient
W_v − Σ_u p_u W_u in h. The sum is the mean output embedding under p. The forward pass computes it from the same
probabilities and keeps it in place of them: D numbers a row instead of V. The backward pass neither keeps nor
recomputes any logits.

The forward pass goes through the vocabulary in parts and keeps sums over those seen so far (Milakov and Gimelshein,
2018, "Online normalizer calculation for softmax"). So logits exist for one tile of rows × words at a time. On a CPU a
tile stays in the cache while it is worked on, and a block of rows reads the head's weights once.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def tile_on(device: torch.device) -> tuple[int, int]:
    """Choose for how many rows and words logits exist at once.

    On a CPU a tile of float32 takes 2 MiB: half or twice as many rows or words take the same time within 5 %. Elsewhere
    it takes 64 MiB, so that a tile is more work than starting it; this has not been measured.
    """
    return (512, 1024) if device.type == "cpu" else (1024, 16384)


class _Sums:
    """Sums over the words seen so far, for a block of rows: all that a softmax and its moments need.

    A word's weight is e = exp(l − top), where `top` is the largest logit so far. When a larger one comes, the sums
    shrink by exp(top − larger).

    Attributes:
        top: (rows, 1) the largest logit.
        total: (rows, 1) Σ e.
        distance: (rows, 1) Σ e · (l − top), which the entropy needs.
        mean: (rows, D) Σ e · slope · W, the mean output embedding times `total`; None where no gradient is needed.
    """

    def __init__(self, hidden: Tensor, *, with_mean: bool):
        options: dict[str, Any] = {"device": hidden.device, "dtype": torch.float32}
        # Finite, because −inf − (−inf) is not a number where all words of a first part have −inf.
        self.top = torch.full((len(hidden), 1), torch.finfo(torch.float32).min / 2, **options)
        self.total = torch.zeros(len(hidden), 1, **options)
        self.distance = torch.zeros(len(hidden), 1, **options)
        self.mean = torch.zeros(hidden.shape, **options) if with_mean else None

    def add(self, logits: Tensor, slope: Tensor | None, weight: Tensor) -> None:
        """Take in the logits (rows, words) of further words, which are overwritten, and their weights (words, D)."""
        top = torch.maximum(self.top, logits.amax(-1, keepdim=True))
        moved = self.top - top
        shrink = moved.exp()
        below = logits.sub_(top)
        e = below.exp()
        self.distance = shrink * (self.distance + moved * self.total) + torch.linalg.vecdot(e, below)[:, None]
        self.total = shrink * self.total + e.sum(-1, keepdim=True)
        self.top = top
        if self.mean is not None:
            weighed = e if slope is None else e.mul_(slope)
            self.mean.mul_(shrink).add_(weighed.to(weight.dtype) @ weight)

    def normaliser(self) -> Tensor:
        """Compute the log-sum-exp (rows,) of the logits."""
        return (self.top + self.total.log()).squeeze(1)

    def entropy(self) -> Tensor:
        """Compute the entropy (rows,): log Σ e − Σ e·(l − top) / Σ e."""
        return (self.total.log() - self.distance / self.total).squeeze(1)


class _Read(torch.autograd.Function):
    """Compute log-probabilities (N,) of tokens at rows of hidden states (Q, D), and entropies (Q,)."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        row: Tensor,
        token: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        cap: float | None,
        tile: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        (rows, words), (size, _) = tile, weight.shape
        values = torch.empty(row.shape[0], device=hidden.device)
        normaliser = torch.empty(hidden.shape[0], device=hidden.device)
        entropies = torch.empty_like(normaliser)
        mean = torch.empty_like(hidden) if hidden.requires_grad else None
        slopes = None if cap is None else torch.empty_like(values)
        tiles = iter(_by_tile(row, token, hidden.shape[0], size, tile))
        for start in range(0, hidden.shape[0], rows):
            block = slice(start, start + rows)
            sums = _Sums(hidden[block], with_mean=mean is not None)
            for first in range(0, size, words):
                part = slice(first, first + words)
                logits = nn.functional.linear(hidden[block], weight[part], None if bias is None else bias[part])
                logits, slope = _bend(logits.float().div_(scale), cap)
                at = next(tiles)
                place = (row[at] - start, token[at] - first)
                values[at] = logits[place]
                if slopes is not None and slope is not None:
                    slopes[at] = slope[place]
                sums.add(logits, slope, weight[part])
                del logits, slope  # before the next tile's are made
            normaliser[block], entropies[block] = sums.normaliser(), sums.entropy()
            if mean is not None and sums.mean is not None:
                mean[block] = sums.mean.div_(sums.total)
        ctx.scale = scale
        ctx.save_for_backward(row, token, weight, mean, slopes)
        ctx.mark_non_differentiable(entropies)
        return values.sub_(normaliser[row]), entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        row, token, weight, mean, slopes = ctx.saved_tensors
        # Tokens that are read at one row share its mean, so their gradients are summed before they meet it.
        total = torch.zeros(mean.shape[0], device=grad.device).index_add_(0, row, grad)
        back = -total[:, None] * mean.float()
        own = grad if slopes is None else grad * slopes
        back.index_add_(0, row, own[:, None] * weight[token].float())
        return (back / ctx.scale).to(mean.dtype), None, None, None, None, None, None, None


def _by_tile(row: Tensor, token: Tensor, states: int, size: int, tile: tuple[int, int]) -> tuple[Tensor, ...]:
    """Sort tokens (their indices) by the tile that has their logit, block of rows after block of rows."""
    blocks, parts = -(-states // tile[0]), -(-size // tile[1])
    # An id beyond the vocabulary falls into the last part, where it is an IndexError.
    key = row // tile[0] * parts + (token // tile[1]).clamp_max(parts - 1)
    order = torch.argsort(key, stable=True)
    ends = torch.searchsorted(key[order], torch.arange(1, blocks * parts + 1, device=row.device))
    return order.tensor_split(ends.cpu())


def _bend(logits: Tensor, cap: float | None) -> tuple[Tensor, Tensor | None]:
    """Apply a soft cap in place. Its slope weighs both terms of the gradient: the token's own, and the mean."""
    if cap is None:
        return logits, None
    bent = logits.div_(cap).tanh_()
    slope = 1 - bent.square()
    return bent.mul_(cap), slope


def read_log_probs(
    head: nn.Linear,
    hidden: Float[Tensor, "Q D"],
    row: Int[Tensor, " N"],
    token: Int[Tensor, " N"],
    *,
    scale: float,
    cap: float | None = None,
    tile: tuple[int, int] | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Compute float32 log-probabilities and entropies in nats of N tokens, each read at one of Q hidden states.

    Args:
        head: frozen projection to the vocabulary; no gradient reaches its weights.
        hidden: hidden states.
        row: the hidden state that predicts each token.
        token: token ids.
        scale: divides the logits (temperature × the head's own scale), in (0, inf).
        cap: bends scaled logits l to cap·tanh(l / cap), whose slope 1 − tanh² then weighs both terms of the gradient;
            None for none.
        tile: rows and words whose logits exist at once, each at least 1; default as the device likes it.

    Returns:
        Log-probabilities, differentiable in `hidden`, and entropies of the distributions they come from.
    """
    tile = tile or tile_on(hidden.device)
    values, entropies = _Read.apply(hidden, row, token, head.weight, head.bias, scale, cap, tile)  # type: ignore[misc]
    return values, entropies[row]
