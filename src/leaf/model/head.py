"""Read log-probabilities and entropies at hidden states without keeping logits.

For a frozen head W (V, D) and a hidden state h, log p(v | h) = (W h)_v − logsumexp(W h) has the gradient
W_v − Σ_u p_u W_u in h. The sum is the mean output embedding under p. The forward pass computes it from the same
probabilities and keeps it in place of them: D numbers a row instead of V. So logits exist for one chunk of rows at a
time, and the backward pass neither keeps nor recomputes any.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


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
        rows: int,
    ) -> tuple[Tensor, Tensor]:
        # Sorted by row, the tokens of one chunk of rows are neighbours: order[bounds[i] : bounds[i + 1]] for chunk i.
        order = torch.argsort(row, stable=True)
        starts = range(0, hidden.shape[0], rows)
        bounds = torch.searchsorted(row[order], torch.tensor([*starts, hidden.shape[0]], device=row.device)).tolist()
        values = torch.empty(row.shape[0], device=hidden.device)
        entropies = torch.empty(hidden.shape[0], device=hidden.device)
        mean = torch.empty_like(hidden) if hidden.requires_grad else None
        slopes = None if cap is None else torch.empty_like(values)
        for i, start in enumerate(starts):
            part = hidden[start : start + rows]
            logits = nn.functional.linear(part, weight, bias).float().div_(scale)
            at = order[bounds[i] : bounds[i + 1]]
            slope = None
            # A soft cap bends logits to cap·tanh(l / cap), so its slope weighs both terms of the gradient: the token's
            # own by `slopes`, the mean by `slope`.
            if cap is not None and slopes is not None:
                bent = logits.div_(cap).tanh_()
                slope = 1 - bent.square()
                slopes[at] = slope[row[at] - start, token[at]]
                logits = bent.mul_(cap)
            log_probs = logits.sub_(logits.logsumexp(-1, keepdim=True))  # in place: (rows, V) is the largest tensor
            values[at] = log_probs[row[at] - start, token[at]]
            probability = log_probs.exp()
            entropies[start : start + rows] = -torch.linalg.vecdot(probability, log_probs)
            if mean is not None:
                if slope is not None:
                    probability.mul_(slope)
                mean[start : start + rows] = probability.to(weight.dtype) @ weight
            del logits, log_probs, probability  # before the next chunk's are made
        ctx.scale = scale
        ctx.save_for_backward(row, token, weight, mean, slopes)
        ctx.mark_non_differentiable(entropies)
        return values, entropies

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        row, token, weight, mean, slopes = ctx.saved_tensors
        # Tokens that are read at one row share its mean, so their gradients are summed before they meet it.
        total = torch.zeros(mean.shape[0], device=grad.device).index_add_(0, row, grad)
        back = -total[:, None] * mean.float()
        own = grad if slopes is None else grad * slopes
        back.index_add_(0, row, own[:, None] * weight[token].float())
        return (back / ctx.scale).to(mean.dtype), None, None, None, None, None, None, None


def read_log_probs(
    head: nn.Linear,
    hidden: Float[Tensor, "Q D"],
    row: Int[Tensor, " N"],
    token: Int[Tensor, " N"],
    *,
    scale: float,
    rows: int,
    cap: float | None = None,
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Compute float32 log-probabilities and entropies in nats of N tokens, each read at one of Q hidden states.

    Args:
        head: frozen projection to the vocabulary; no gradient reaches its weights.
        hidden: hidden states.
        row: the hidden state that predicts each token.
        token: token ids.
        scale: divides the logits (temperature × the head's own scale), in (0, inf).
        rows: hidden states whose logits exist at once, at least 1.
        cap: bends scaled logits l to cap·tanh(l / cap), whose slope 1 − tanh² then weighs both terms of the gradient;
            None for none.

    Returns:
        Log-probabilities, differentiable in `hidden`, and entropies of the distributions they come from.
    """
    values, entropies = _Read.apply(hidden, row, token, head.weight, head.bias, scale, cap, rows)  # type: ignore[misc]
    return values, entropies[row]
