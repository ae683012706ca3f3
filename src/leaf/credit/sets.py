"""Weigh K distinct completions, drawn without replacement, so that they stand for everything the policy could say.

A set S of K completions is drawn from the policy one after the other, each from what is left: that is what
`leaf.model.distinct` does. A completion s of probability p(s) then has the share c_s of the gradient estimate

    Σ_s c_s ∇ log p(s),    c_s = w_s (r_s − b_s),

and an estimator below says what w and b are. The probability of a set, in whatever order, is

    P(S) = ∫₀^∞ e^{−t} Π_{s∈S} (1 − e^{−x_s t}) dt,    x_s = p(s) / (1 − Σ_{s∈S} p(s)):

all completions of S arrive, each at its own rate, before the first of all others does, at time t. This is the integral
of Kool, van Hoof and Welling (2020, arXiv 2002.06043, appendix) with u = e^{−t}.

Everything is in log space and float64, because completions may have a probability of e^{−80} and sets a mass of
1 − 10⁻⁹. Letters: K completions of the set, Q points of the integral.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from leaf.credit.tree import GroupRewards, PrefixTree
from leaf.credit.values import known_rewards
from leaf.errors import ConfigError, DataError

# Points in τ = log t. The integrand is smooth there and vanishes doubly exponentially to the right and like e^τ to the
# left, so that a plain sum over equal steps is exact to the last digits: 3·10⁻¹⁶ for the integrals of up to K = 64.
_STEP, _FIRST = 0.1, -40.0
_ROUNDING = 1e-4  # by how much probabilities computed in float32 may add up to more than 1


@dataclass(frozen=True)
class SetDraw:
    """What the sampler says of a set of distinct completions.

    Attributes:
        log_prob: (K,) log p(s) in nats at the sampling temperature.
        log_rest: () log of the probability of everything that is not in the set; −inf where nothing is left.
        threshold: () the greatest perturbed log-probability outside of the set; −inf where nothing is left.
    """

    log_prob: Float[Tensor, " K"]
    log_rest: Float[Tensor, ""]
    threshold: Float[Tensor, ""]

    @classmethod
    def of(cls, log_prob: Float[Tensor, " K"]) -> "SetDraw":
        """Make one of log-probabilities alone; there is no threshold then, which `importance` needs."""
        log_prob = log_prob.double()
        mass = float(log_prob.exp().sum())
        if log_prob.numel() == 0 or mass > 1 + _ROUNDING:
            raise DataError(f"The probabilities of a set of {log_prob.numel()} completions add up to {mass:.6f}.")
        nothing = log_prob.new_tensor(-math.inf)
        return cls(log_prob, _log1mexp(log_prob.logsumexp(0).clamp_max(0.0)), nothing)

    @property
    def mass(self) -> float:
        """The probability of the whole set."""
        return float(self.log_prob.double().exp().sum())


Estimator = Callable[[SetDraw], tuple[Float[Tensor, " K"], Float[Tensor, "K K"]]]


def unordered_set(draw: SetDraw) -> tuple[Float[Tensor, " K"], Float[Tensor, "K K"]]:
    """Compute weights (K,) and baseline coefficients (K, K) of the unordered-set estimator; it is unbiased.

    w_s = p(s) R(S, s), with R(S, s) = P^{D∖s}(S∖s) / P(S): how much likelier the rest of the set becomes once s is
    known to be in it. The baseline of s is Σ_{s'} B[s, s'] r_{s'}, with B[s, s] = p(s) and elsewhere
    B[s, s'] = p(s') R^{D∖s}(S, s'). Both w and each row of B add up to 1, and r_s − b_s is (1 − p(s)) times the
    distance of r_s from a mean of the others. Source: Kool et al. 2020, arXiv 2002.06043, section 4.

    Where the set holds all there is, w = p and b = Σ p r: the exact gradient. Where every p(s) is tiny, w = 1/K and b
    is the mean of the others: RLOO.
    """
    log_prob = draw.log_prob.double()
    count = log_prob.numel()
    whole, without, without_two = _log_set_probabilities(log_prob, draw.log_rest.double())
    weight = (log_prob + without - whole).exp()
    # B[s, s'] = p(s') P^{D∖{s,s'}}(S∖{s,s'}) / P^{D∖s}(S∖s)
    baseline = (log_prob[None, :] + without_two - without[:, None]).exp()
    itself = torch.eye(count, dtype=torch.bool, device=log_prob.device)
    return weight, torch.where(itself, log_prob.exp()[None, :], baseline)


def rescaled_set(draw: SetDraw) -> tuple[Float[Tensor, " K"], Float[Tensor, "K K"]]:
    """Divide each term of `unordered_set` by 1 − p(s); biased towards likely completions.

    A completion of probability near 1 has r − b near 0 in the unbiased estimator, and none of that damping here.
    """
    weight, baseline = unordered_set(draw)
    keep = (-torch.expm1(draw.log_prob.double().clamp_max(-1e-12)))[:, None]
    others = baseline / keep
    return weight, others - torch.diag_embed(others.diagonal())


def importance(draw: SetDraw) -> tuple[Float[Tensor, " K"], Float[Tensor, "K K"]]:
    """Compute normalised importance weights with the threshold κ; biased, and consistent as K grows.

    w_s ∝ p(s) / q(s), where q(s) = 1 − exp(−exp(log p(s) − κ)) is the probability that s beats the threshold. The
    baseline is the weighted mean, the same for all. Source: Kool et al. 2019, arXiv 1903.06059, section 4.
    """
    log_prob = draw.log_prob.double()
    if not bool(draw.threshold.isfinite()) and bool(draw.log_rest.isfinite()):
        raise DataError("Importance weights need the threshold of the draw; take the groups from leaf.model.distinct.")
    beaten = _log_chance(log_prob - draw.threshold.double())
    weight = (log_prob - beaten).softmax(0)
    return weight, weight.expand(log_prob.numel(), -1)


def nbest(draw: SetDraw) -> tuple[Float[Tensor, " K"], Float[Tensor, "K K"]]:
    """Take the probabilities, renormalised over the set, as weights (MWER, Prabhavalkar et al. 2018); biased.

    The baseline is the weighted mean. It is the gradient of the expected reward under the renormalised policy.
    """
    weight = draw.log_prob.double().softmax(0)
    return weight, weight.expand(weight.numel(), -1)


def set_rule(estimator: Estimator) -> Callable[..., Float[Tensor, "K 1"]]:
    """Make a credit rule of an estimator: every token of completion s gets r_s − b_s.

    The weight w_s is no part of it. It multiplies all terms of the loss, the divergence too; see `token_weights`.
    """

    def rule(
        tree: PrefixTree, rewards: GroupRewards, *, surprisal: Tensor | None = None, draw: SetDraw | None = None
    ) -> Float[Tensor, "K 1"]:
        if draw is None:
            raise ConfigError(
                f"The credit rule {estimator.__name__} weighs distinct completions, and these were drawn "
                "independently. Set rollout: distinct, or choose another rule."
            )
        scored = ~rewards.isnan()
        reward = known_rewards(rewards, scored)
        return (reward - baseline_of(draw, scored, estimator) @ reward)[:, None]

    rule.__name__, rule.__doc__ = estimator.__name__, estimator.__doc__
    return rule


ESTIMATORS: dict[str, Estimator] = {
    "unordered_set": unordered_set,
    "rescaled_set": rescaled_set,
    "importance": importance,
    "nbest": nbest,
}
SET_RULES = {name: set_rule(estimator) for name, estimator in ESTIMATORS.items()}


def set_shares(draw: SetDraw, estimator: Estimator = unordered_set) -> Float[Tensor, " K"]:
    """Compute how many of K completions each distinct one stands for, K w_s; they add up to K."""
    return draw.log_prob.numel() * estimator(draw)[0]


def shares_of_draw(draw: SetDraw | None) -> Float[Tensor, " K"] | None:
    """Compute the shares with which rules of the tree count distinct completions; None for independent ones."""
    return None if draw is None else set_shares(draw)


def baseline_of(draw: SetDraw, scored: Bool[Tensor, " K"], estimator: Estimator = unordered_set) -> Tensor:
    """Compute the baseline coefficients (K, K) of an estimator, with nothing on completions that are not scored."""
    # Each row of a baseline adds up to 1; without the unscored completions it has to do so again.
    shares = estimator(draw)[1] * scored
    return shares / shares.sum(1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def pairwise_deviations(
    tree: PrefixTree, reward: Float[Tensor, " K"], baseline: Float[Tensor, "K K"]
) -> Float[Tensor, "K L"]:
    """Sum B[s, s'] (r_s − r_s') over the completions s' that share a prefix with s, by prefix length, (K, T + 1).

    Column 0 is the empty prefix, where the sum is r_s − b_s. Its expectation at a prefix v is p(v) (r_s − V(v)).
    """
    same = (tree.node[:, None] == tree.node[None]) & (tree.node >= 0)[:, None]
    common = same.sum(2)  # tokens that two completions have in common at the start
    apart = baseline * (reward[:, None] - reward[None])
    by_common = apart.new_zeros(len(reward), tree.node.shape[1] + 1).scatter_add_(1, common, apart)
    return by_common.flip(1).cumsum(1).flip(1)


def _log_set_probabilities(log_prob: Tensor, log_rest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute log P of the set (), of the set without one completion (K,), and without two (K, K), each on its domain.

    Taking a completion out of domain and set leaves what is outside of the set as it was, so that all three integrals
    have the same x and differ by factors.
    """
    count = log_prob.numel()
    if bool(log_rest == -math.inf):  # nothing is outside: the set is the only one of its size
        zero = log_prob.new_zeros(())
        return zero, zero.expand(count), zero.expand(count, count)
    last = math.log(count + 12 * math.sqrt(count) + 60)
    tau = torch.arange(_FIRST, last, _STEP, dtype=torch.float64, device=log_prob.device)
    density = tau - tau.exp()  # of e^{−t} dt in τ = log t
    factor = _log_chance(log_prob[:, None] - log_rest + tau)  # (K, Q)
    total = density + factor.sum(0)
    step = math.log(_STEP)
    whole = total.logsumexp(-1) + step
    without = (total - factor).logsumexp(-1) + step
    without_two = (total - factor[:, None] - factor[None, :]).logsumexp(-1) + step
    return whole, without, without_two


def _log_chance(x: Tensor) -> Tensor:
    """Compute log(1 − exp(−e^x)), the log-probability that something of rate e^x happens by the time 1; any x.

    e^x vanishes below −745, where the result is x; and it overflows where the result is 0.
    """
    return torch.where(x < -30, x, _log1mexp(-x.clamp_max(100.0).exp()))


def _log1mexp(x: Tensor) -> Tensor:
    """Compute log(1 − e^x) for x ≤ 0; accurate for x near 0 and for x far below."""
    # Mächler (2012): below −log 2 log1p loses nothing, above it expm1 does not.
    return torch.where(x < -math.log(2), torch.log1p(-x.exp()), (-torch.expm1(x)).log())
