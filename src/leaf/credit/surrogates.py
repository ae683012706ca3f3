"""Surrogates of the policy gradient by name: what a token adds to the loss for its advantage and its ratio.

One surrogate, one function of log-probabilities (K, T), advantages (K, T), a mask (K, T) that is True at real tokens,
and the bounds ε_low and ε_high of the ratio. Each has the gradient −A ∇log π at a ratio of 1, so they differ only once
the policy has moved away from the one that sampled. At padding they may give anything: `policy_loss` blanks it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from leaf.errors import ConfigError

# Beyond e^60 a ratio may overflow, and inf times an advantage of 0 is NaN. A token clamped here has no gradient.
LOG_LIMIT = 60.0


class Surrogate(NamedTuple):
    """What a surrogate gives for a group.

    Attributes:
        loss: (K, T) per token, with graph.
        held: (K, T) True where the clipping takes the gradient away, or bounds the weight of it.
        ratio: (K, T) ρ as the surrogate uses it, with or without graph.
    """

    loss: Float[Tensor, "K T"]
    held: Bool[Tensor, "K T"]
    ratio: Float[Tensor, "K T"]


def clip(
    new: Float[Tensor, "K T"],
    old: Float[Tensor, "K T"],
    advantage: Float[Tensor, "K T"],
    mask: Bool[Tensor, "K T"],
    low: float,
    high: float,
) -> Surrogate:
    """Compute −min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) with ρ = π_new / π_old per token (PPO, GRPO).

    With ε_high > ε_low this is DAPO's clip-higher (arXiv 2503.14476).
    """
    return _clipped(ratios(new, old), advantage, low, high)


def gspo(
    new: Float[Tensor, "K T"],
    old: Float[Tensor, "K T"],
    advantage: Float[Tensor, "K T"],
    mask: Bool[Tensor, "K T"],
    low: float,
    high: float,
) -> Surrogate:
    """Compute −min(s A, clip(s, 1 − ε_low, 1 + ε_high) A) with one ratio s per completion (GSPO, arXiv 2507.18071).

    s = exp(mean over the completion's tokens of log π_new − log π_old). This is the paper's GSPO-token: token t has the
    value of s and the gradient of its own log-probability, s_t = sg[s] · π_new / sg[π_new]. With one advantage per
    completion and the reduction completion_mean, value and gradient are those of GSPO. The paper's ε are 3e-4 and 4e-4.
    """
    count = mask.sum(1, keepdim=True).clamp_min(1)
    mean = ((new - old).detach() * mask).sum(1, keepdim=True) / count
    sequence = torch.exp(mean.clamp_max(LOG_LIMIT))
    return _clipped(sequence * torch.exp(new - new.detach()), advantage, low, high)


def cispo(
    new: Float[Tensor, "K T"],
    old: Float[Tensor, "K T"],
    advantage: Float[Tensor, "K T"],
    mask: Bool[Tensor, "K T"],
    low: float,
    high: float,
) -> Surrogate:
    """Compute −sg[min(ρ, 1 + ε_high)] A log π_new (CISPO, arXiv 2506.13585): the weight is clipped, no token is lost.

    As in the paper's runs `low` has no effect. The value is no surrogate reward, only its gradient has a meaning.
    """
    ratio = ratios(new, old).detach()
    return Surrogate(-ratio.clamp_max(1 + high) * advantage * new, ratio > 1 + high, ratio)


def sapo(
    new: Float[Tensor, "K T"],
    old: Float[Tensor, "K T"],
    advantage: Float[Tensor, "K T"],
    mask: Bool[Tensor, "K T"],
    low: float,
    high: float,
    *,
    tau_pos: float = 1.0,
    tau_neg: float = 1.05,
) -> Surrogate:
    """Compute −(4 / τ) σ(τ (ρ − 1)) A: a gate that closes softly in place of a clip (SAPO, arXiv 2511.20347).

    τ is `tau_pos` where A > 0 and `tau_neg` elsewhere; the larger τ, the sooner the gate closes. `low` and
    `high` have no effect.

    Raises:
        ConfigError: a τ is not a finite number above 0.
    """
    if not (0 < tau_pos < float("inf") and 0 < tau_neg < float("inf")):
        raise ConfigError(f"tau_pos is {tau_pos} and tau_neg {tau_neg}; both must be finite numbers above 0.")
    ratio = ratios(new, old)
    tau = torch.where(advantage > 0, tau_pos, tau_neg)
    gate = torch.sigmoid(tau * (ratio - 1)) * 4 / tau
    return Surrogate(-gate * advantage, torch.zeros_like(mask), ratio)


SurrogateFunction = Callable[..., Surrogate]
# A plugin adds its own: SURROGATES["mine"] = mine.
SURROGATES: dict[str, SurrogateFunction] = {"clip": clip, "gspo": gspo, "cispo": cispo, "sapo": sapo}


def ratios(new: Float[Tensor, "K T"], old: Float[Tensor, "K T"]) -> Float[Tensor, "K T"]:
    """Compute ρ = π_new / π_old per token."""
    return torch.exp((new - old).clamp_max(LOG_LIMIT))


def _clipped(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Surrogate:
    clipped = ratio.clamp(1 - low, 1 + high)
    held = clipped * advantage < ratio * advantage
    return Surrogate(-torch.minimum(ratio * advantage, clipped * advantage), held, ratio)
