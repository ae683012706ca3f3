"""The policy loss, a surrogate and the k3 divergence, and the weight of every token in it.

The weights are computed once over the whole batch of an update, the loss group by group: so the losses of micro-batches
add up to the loss of the batch, however it is cut.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from leaf.credit import surrogates
from leaf.credit.surrogates import LOG_LIMIT
from leaf.errors import ConfigError, did_you_mean

Reduction = Literal["completion_mean", "token_mean", "constant"]


def k3(new_logp: Float[Tensor, "K T"], ref_logp: Float[Tensor, "K T"]) -> Float[Tensor, "K T"]:
    """Compute the k3 estimate of KL(π_new ‖ π_ref) per token: e^d − d − 1 with d = log π_ref − log π_new, at least 0.

    Source: Schulman, "Approximating KL divergence" (2020). Inputs in nats.
    """
    d = (ref_logp - new_logp).clamp_max(LOG_LIMIT)
    return torch.expm1(d) - d


def token_weights(
    masks: Sequence[Bool[Tensor, "_ _"]],
    *,
    reduction: Reduction = "completion_mean",
    constant_length: int | None = None,
    shares: Sequence[Float[Tensor, " _"]] | None = None,
) -> list[Float[Tensor, "_ _"]]:
    """Compute the weight of every token in the loss of one update.

    The weights belong to the whole batch: `policy_loss` of each part with its own weights adds up to the loss of the
    whole, however the parts are cut.

    Args:
        masks: per group (K, T), True at real tokens, for all groups of the update. K and T may differ.
        reduction: "completion_mean": mean over the tokens of each completion, then over the non-empty completions
            (published); "token_mean": mean over all tokens; "constant": sum over tokens divided by the number of
            non-empty completions times `constant_length` (Dr. GRPO).
        constant_length: divisor of "constant", in tokens, e.g. the longest completion allowed.
        shares: per group (K,), how many completions each one stands for; default 1. Means over completions and tokens
            are weighted means. Of distinct completions it is K times the weight of the estimator (leaf.credit.sets).

    Returns:
        For every mask its (K, T) float32 weights, 0 at padding.

    Raises:
        ConfigError: the reduction is unknown, or "constant" came without a length.
    """
    counted = [mask.float() for mask in masks]
    if shares is not None:
        counted = [mask * share.float()[:, None] for mask, share in zip(masks, shares, strict=True)]
    # 1 where there is nothing to divide: all its weights are 0.
    completions = sum(float(count.amax(1).sum()) if count.numel() else 0.0 for count in counted) or 1.0
    tokens = sum(float(count.sum()) for count in counted) or 1.0
    if reduction == "token_mean":
        return [count / tokens for count in counted]
    if reduction == "constant":
        if not constant_length or constant_length < 1:
            raise ConfigError(f"The reduction constant needs constant_length of at least 1; got {constant_length}.")
        return [count / (completions * constant_length) for count in counted]
    if reduction != "completion_mean":
        known = get_args(Reduction)
        hint = did_you_mean(reduction, known)
        raise ConfigError(f"The reduction {reduction!r} is unknown; allowed are {', '.join(known)}.{hint}")
    lengths = [mask.sum(1, keepdim=True).clamp_min(1) for mask in masks]
    return [count / (length * completions) for count, length in zip(counted, lengths, strict=True)]


def policy_loss(
    new_logp: Float[Tensor, "K T"],
    old_logp: Float[Tensor, "K T"],
    advantages: Float[Tensor, "K T"],
    mask: Bool[Tensor, "K T"],
    *,
    weights: Float[Tensor, "K T"],
    surrogate: surrogates.SurrogateFunction = surrogates.clip,
    clip: float = 0.2,
    clip_high: float | None = None,
    ref_logp: Float[Tensor, "K T"] | None = None,
    kl_coef: float = 0.02,
    shares: Float[Tensor, " K"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Compute Σ weight · [surrogate + β k3] and its statistics; LEAF's surrogate is `clip` (arXiv 2606.07610).

    Args:
        new_logp: (K, T) log-probabilities under the policy, with graph.
        old_logp: (K, T) the same when the completions were sampled.
        advantages: (K, T).
        mask: (K, T) True at real tokens; values elsewhere have no effect, not on the gradient either.
        weights: (K, T) of every token, from `token_weights` over the whole batch of the update.
        surrogate: a function of leaf.credit.surrogates, with its own options bound.
        clip, clip_high: ε below and above; `clip_high` defaults to `clip`.
        ref_logp: (K, T) log-probabilities under the reference model; None leaves the divergence out.
        kl_coef: β.
        shares: (K,) how many completions each one stands for in the statistics; default 1. The loss has it in weights.

    Returns:
        The scalar loss, and detached over the real tokens: mean kl (only with `ref_logp`), clip_fraction, ratio_mean,
        and ratio_max. clip_fraction counts tokens where the clipped term is the smaller one, so that they have no
        gradient (cispo: where the weight of the gradient is bounded).

    Raises:
        ConfigError: clip, clip_high or kl_coef is out of range.
    """
    if not (0 <= clip < 1 and (clip_high is None or clip_high >= 0) and kl_coef >= 0):
        raise ConfigError(
            f"clip is {clip}, clip_high {clip_high} and kl_coef {kl_coef}; allowed are 0 ≤ clip < 1, clip_high ≥ 0 and "
            "kl_coef ≥ 0."
        )
    # Padding is blanked before any exp: 0 times the gradient of an inf there would be NaN.
    new, old, advantage = (x.masked_fill(~mask, 0.0) for x in (new_logp, old_logp, advantages))
    given = surrogate(new, old, advantage, mask, clip, clip if clip_high is None else clip_high)
    divergence = None if ref_logp is None else k3(new, ref_logp.masked_fill(~mask, 0.0))
    per_token = given.loss if divergence is None else given.loss + kl_coef * divergence
    total = (weights * per_token).masked_fill(~mask, 0.0).sum()
    counted = mask.to(weights.dtype) if shares is None else mask * shares[:, None]
    return total, _statistics(given.ratio.detach(), given.held, divergence, mask, counted)


@torch.no_grad()
def _statistics(
    ratio: Tensor, binding: Tensor, divergence: Tensor | None, mask: Tensor, counted: Tensor
) -> dict[str, Tensor]:
    """Average over the real tokens, each as often as it counts: those of a completion that stands for two, twice."""
    count = counted.sum().clamp_min(torch.finfo(counted.dtype).tiny)

    def mean(values: Tensor) -> Tensor:
        return (values.masked_fill(~mask, 0) * counted).sum() / count

    found = {
        "clip_fraction": mean(binding),
        "ratio_mean": mean(ratio),
        "ratio_max": ratio.masked_fill(~mask, 0.0).max() if mask.any() else ratio.new_zeros(()),
    }
    return found if divergence is None else found | {"kl": mean(divergence)}
