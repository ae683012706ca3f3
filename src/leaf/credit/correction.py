"""Weigh completions that another model drew: importance weights, bounded, and how far the two models are apart.

An engine that samples computes the policy's log-probabilities with other kernels, in another precision, or with weights
one step older. So completions are drawn from μ, not from π. A weight w ≈ π / μ in front of every token's loss makes its
expectation that under π again; its bound trades a little of that for less variance.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from leaf.credit.surrogates import LOG_LIMIT

DIFFERENCE = "sampling/sampling_logp_difference/"


@dataclass(frozen=True)
class Correction:
    """How importance weights are taken.

    Attributes:
        level: `token`: w_t = π(y_t) / μ(y_t), each token by itself; `sequence`: w = π(y) / μ(y), the product over the
            tokens, for all of them; `none`: weights of 1.
        bound: `truncate`: min(w, C); `mask`: w up to C, and 0 beyond, so that what is far off teaches nothing.
        threshold: C.
    """

    level: Literal["token", "sequence", "none"] = "token"
    bound: Literal["truncate", "mask"] = "truncate"
    threshold: float = 2.0


def importance_ratios(
    policy: Float[Tensor, "K T"], sampler: Float[Tensor, "K T"], mask: Bool[Tensor, "K T"], level: str = "token"
) -> Float[Tensor, "K T"]:
    """Compute π / μ of every token, or of its whole completion, from log-probabilities in nats; 1 at padding.

    Sources: truncated importance sampling for engines that sample (Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training"); with C = 2 the default of verl, per token that of TRL.
    """
    if level == "none":
        return torch.ones_like(policy)
    difference = (policy - sampler).masked_fill(~mask, 0.0)
    if level == "sequence":
        difference = difference.sum(1, keepdim=True).expand_as(difference).masked_fill(~mask, 0.0)
    return difference.clamp_max(LOG_LIMIT).exp()


def bounded(ratios: Float[Tensor, "K T"], correction: Correction) -> Float[Tensor, "K T"]:
    """Bound importance ratios: cut them at the threshold, or put 0 in the place of larger ones."""
    if correction.bound == "mask":
        return ratios.masked_fill(ratios > correction.threshold, 0.0)
    return ratios.clamp_max(correction.threshold)


@dataclass(frozen=True)
class Mismatch:
    """How far policy and sampler are apart over some tokens, as numbers that add up over processes.

    Attributes:
        sums: over tokens: their number, |log π − log μ|, the k3 estimate of KL(μ ‖ π), ratios beyond the threshold, the
            weights, and their squares.
        largest: the greatest |log π − log μ|, and the greatest weight and the least, that one negated.
    """

    sums: dict[str, float]
    largest: dict[str, float]

    def record(self) -> dict[str, float]:
        """Compute what is recorded: differences and weights under TRL's names, the rest under verl's."""
        sums, largest = self.sums, self.largest
        tokens = sums["tokens"] or 1.0
        square = sums["squared_weight"] or 1.0
        return {
            f"{DIFFERENCE}mean": sums["difference"] / tokens,
            f"{DIFFERENCE}max": largest["difference"],
            "sampling/importance_sampling_ratio/min": -largest["negated_weight"],
            "sampling/importance_sampling_ratio/mean": sums["weight"] / tokens,
            "sampling/importance_sampling_ratio/max": largest["weight"],
            "rollout_corr/k3_kl": sums["k3"] / tokens,
            "rollout_corr/rollout_is_ratio_fraction_high": sums["beyond"] / tokens,
            # (Σ w)² / (n Σ w²), Kish: the share of the tokens that equal weights would need for the same variance.
            "rollout_corr/rollout_is_eff_sample_size": sums["weight"] ** 2 / (tokens * square),
        }


def mismatch(
    policy: Sequence[Tensor], sampler: Sequence[Tensor], masks: Sequence[Tensor], correction: Correction
) -> tuple[list[Tensor], Mismatch]:
    """Compute the weight of every token (K, T) of some groups, 1 at padding, and how far the two models are apart.

    Args:
        policy, sampler: log-probabilities (K, T) per group.
        masks: (K, T) True at real tokens.
        correction: how weights are taken.
    """
    sums: dict[str, float] = {}
    for name in ("tokens", "difference", "k3", "beyond", "weight", "squared_weight"):
        sums[name] = 0.0
    largest = {"difference": 0.0, "weight": 0.0, "negated_weight": -float("inf")}
    weights = []
    for one, other, mask in zip(policy, sampler, masks, strict=True):
        ratios = importance_ratios(one, other, mask, correction.level)
        weight = bounded(ratios, correction).masked_fill(~mask, 1.0)
        weights.append(weight)
        if not mask.any():
            continue
        apart = (one - other)[mask].double()
        used = weight[mask].double()
        sums["tokens"] += float(mask.sum())
        sums["difference"] += float(apart.abs().sum())
        sums["k3"] += float((torch.expm1(apart.clamp_max(LOG_LIMIT)) - apart).sum())
        sums["beyond"] += float((ratios[mask] > correction.threshold).sum())
        sums["weight"] += float(used.sum())
        sums["squared_weight"] += float((used**2).sum())
        largest["difference"] = max(largest["difference"], float(apart.abs().max()))
        largest["weight"] = max(largest["weight"], float(used.max()))
        largest["negated_weight"] = max(largest["negated_weight"], -float(used.min()))
    return weights, Mismatch(sums, largest)
