"""Credit rules that see all groups of a step at once, with the policy's entropy at every token.

One rule, one function, called as `rule(groups, **options)` with a list of `RewardedGroup`. It returns one tensor per
group, (K, T) or (K, 1), and like a rule of one group it may give anything at padding and at unscored completions:
`BatchCredit` puts the zeros there. A group whose rewards are all equal gets zeros too, but for the rules in
`LEARN_FROM_EQUAL`; it takes part in the statistics.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from leaf.credit import rules
from leaf.credit.advantages import guarantee
from leaf.credit.spans import Terms, cut_spans
from leaf.credit.tree import GroupRewards, PrefixTree
from leaf.credit.values import known_rewards, scored_completions
from leaf.errors import ConfigError, NotRecorded


@dataclass(frozen=True, eq=False)
class RewardedGroup:
    """A group as a rule of a batch sees it.

    Attributes:
        tree: the prefix tree of its K completions.
        rewards: (K,), NaN = unscored.
        surprisal: (K, T) −log p in nats under the sampling distribution.
        entropy: (K, T) of the policy's distribution at the sampling temperature, without top-p, in nats; None where
            nobody recorded it.
    """

    tree: PrefixTree
    rewards: GroupRewards
    surprisal: Float[Tensor, "K T"] | None = None
    entropy: Float[Tensor, "K T"] | None = None

    @property
    def learned(self) -> Bool[Tensor, "K T"]:
        """Mark the tokens of scored completions."""
        return (self.tree.node >= 0) & scored_completions(self.tree, self.rewards)[:, None]


BatchRule = Callable[..., list[Tensor]]


@dataclass(frozen=True)
class BatchCredit:
    """A rule of a batch with its options bound; called with groups it gives their advantages, (K, T) each."""

    rule: BatchRule
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(self, groups: Sequence[RewardedGroup]) -> list[Float[Tensor, "_ _"]]:
        """Compute the advantages of all groups, exactly 0 where there is nothing to learn from.

        Raises:
            ConfigError: the rule gave something other than finite advantages of the right shape.
        """
        given = self.rule(groups, **self.options) if groups else []
        if len(given) != len(groups):
            raise ConfigError(f"The credit rule gave {len(given)} tensors for {len(groups)} groups; return one each.")
        equal = self.rule in LEARN_FROM_EQUAL
        return [
            guarantee(self.rule, group.tree, group.rewards, one, from_equal=equal)
            for group, one in zip(groups, given, strict=True)
        ]


def leaf_batch(
    groups: Sequence[RewardedGroup],
    *,
    max_boundaries: int = 2,
    min_prefix: int = 1,
    terms: Terms = "both",
    group_ended: bool = True,
    sqrt_count: bool = True,
) -> list[Tensor]:
    """Give every token its span's credit, z-scored over the spans of all groups, each span once (LEAF, 2606.07610).

    "Across the batch" is what the authors' README says; their code, and the rule `leaf`, take the z-score within a
    group. The options are those of `leaf`.
    """
    tables = [
        cut_spans(
            group.tree,
            group.rewards,
            surprisal=group.surprisal,
            max_boundaries=max_boundaries,
            min_prefix=min_prefix,
            terms=terms,
            normalize=False,
            group_ended=group_ended,
            sqrt_count=sqrt_count,
        )
        for group in groups
    ]
    raw = torch.cat([table.raw[table.kept] for table in tables])
    mean, spread = raw.mean(), _spread(raw).clamp_min(1e-6)
    painted = [table.paint(group.tree.tokens.shape[1]) for table, group in zip(tables, groups, strict=True)]
    return [(one - mean) / spread for one in painted]


def reinforce_pp(groups: Sequence[RewardedGroup]) -> list[Tensor]:
    """Give every token r, whitened over all tokens of the batch (REINFORCE++, arXiv 2501.03262).

    The paper takes a KL penalty off the reward; leaf keeps the divergence in the loss (`kl_coef`). A group whose
    rewards are all equal learns, too: it is better or worse than the batch.

    Reason: the deviation of a batch does not depend on one group's rewards, as that of a group of eight does.
    """
    return _whitened(groups, [_reward(group)[:, None] for group in groups])


def reinforce_pp_baseline(groups: Sequence[RewardedGroup]) -> list[Tensor]:
    """Give every token r − mean of the group, whitened over all tokens of the batch (REINFORCE++ with baseline)."""
    return _whitened(groups, [rules.dr_grpo(group.tree, group.rewards) for group in groups])


def treepo_whitened(groups: Sequence[RewardedGroup]) -> list[Tensor]:
    """Give every token TreePO's advantage, whitened over all tokens of the batch, as its published code does."""
    return _whitened(groups, [rules.treepo(group.tree, group.rewards) for group in groups])


def gtpo(
    groups: Sequence[RewardedGroup], *, alpha: float = 1.0, bonus: float = 0.1, success: float = 0.5
) -> list[Tensor]:
    """Shape the reward of every token by the policy's entropy there (GTPO, arXiv 2508.04349), group by group.

    With H the entropy, and sums over the n completions of the group with r ≥ `success` that have a token t:

        r⁺_{i,t} = α + β n H_{i,t} / Σ_k H_{k,t}         where r_i ≥ success, 0 elsewhere
        r⁻_{i,t} = −α − β m H_{i,t}⁻¹ / Σ_k H_{k,t}⁻¹    over the m others, 0 where r_i ≥ success

    A is the z-score of r⁺ over all tokens of the group plus that of r⁻. The paper's rewards are 0 and 1; others are cut
    at `success`, and a group on one side of it gets 0: the rule would see nothing but entropy. The z-scores (its
    equation 6) and the values of α = `alpha` and β = `bonus` were read from other people's accounts of the paper.

    Raises:
        ConfigError: an option is out of range.

    Reason: where the policy hesitated, a good answer was won and a bad one excusable.
    """
    _check_shaping(alpha, bonus, success)
    return [_shaped(_entropy(group), group.learned, _reward(group) >= success, alpha, bonus) for group in groups]


def grpo_s(
    groups: Sequence[RewardedGroup], *, alpha: float = 1.0, bonus: float = 0.1, success: float = 0.5
) -> list[Tensor]:
    """Shape the reward of a completion by its mean entropy (GRPO-S, arXiv 2508.04349); `gtpo` with one token each."""
    _check_shaping(alpha, bonus, success)
    shaped = []
    for group in groups:
        count = group.learned.sum(1, keepdim=True)
        entropy = (_entropy(group) * group.learned).sum(1, keepdim=True) / count.clamp_min(1)
        shaped.append(_shaped(entropy, count > 0, _reward(group) >= success, alpha, bonus))
    return shaped


# Rules that compare a completion with those of other prompts, so that a group with equal rewards teaches something.
LEARN_FROM_EQUAL: set[BatchRule] = {reinforce_pp}
# A plugin adds its own: BATCH_RULES["mine"] = mine.
BATCH_RULES: dict[str, BatchRule] = {
    "leaf_batch": leaf_batch,
    "reinforce_pp": reinforce_pp,
    "reinforce_pp_baseline": reinforce_pp_baseline,
    "treepo_whitened": treepo_whitened,
    "gtpo": gtpo,
    "grpo_s": grpo_s,
}


def most_uncertain(groups: Sequence[RewardedGroup], share: float) -> list[Bool[Tensor, "_ _"]]:
    """Mark, per group (K, T), the share of the tokens of all scored completions that have the highest entropy.

    Of n tokens ⌈share · n⌉ are marked, and those of the same entropy as the last one (arXiv 2506.01939; there 20 %).

    Args:
        groups: with entropy.
        share: in (0, 1].
    """
    entropies = torch.cat([_entropy(group)[group.learned] for group in groups])
    if not entropies.numel():
        return [group.learned for group in groups]
    keep = max(1, -int(-share * entropies.numel() // 1))
    least = entropies.sort(descending=True).values[keep - 1]
    return [(_entropy(group) >= least) & group.learned for group in groups]


def _check_shaping(alpha: float, bonus: float, success: float) -> None:
    if not (0 < alpha < float("inf") and 0 <= bonus < float("inf") and math.isfinite(success)):
        raise ConfigError(
            f"alpha is {alpha}, bonus {bonus} and success {success}; allowed are a finite alpha above 0, a finite "
            "bonus of at least 0, and a finite success."
        )


def _shaped(
    entropy: Float[Tensor, "K T"], part: Bool[Tensor, "K T"], good: Bool[Tensor, " K"], alpha: float, bonus: float
) -> Float[Tensor, "K T"]:
    """Add the z-scores of r⁺ and r⁻ of `gtpo` over `part`; 0 where all of it is good, or none."""
    won, lost = part & good[:, None], part & ~good[:, None]
    if not (won.any() and lost.any()):
        return torch.zeros_like(entropy)
    plus = torch.where(won, alpha + bonus * _share(entropy, won), 0.0)
    minus = torch.where(lost, -alpha - bonus * _share(1 / entropy.clamp_min(1e-6), lost), 0.0)
    return _z_score(plus, part) + _z_score(minus, part)


def _entropy(group: RewardedGroup) -> Float[Tensor, "K T"]:
    if group.entropy is None:
        raise NotRecorded("This credit reads the policy's entropy, and the rollout did not record it.", what="entropy")
    return group.entropy.double().masked_fill(group.tree.node < 0, 0.0)  # padding may hold anything


def _reward(group: RewardedGroup) -> Float[Tensor, " K"]:
    return known_rewards(group.rewards, scored_completions(group.tree, group.rewards))


def _spread(values: Float[Tensor, " _"]) -> Float[Tensor, ""]:
    """Compute the standard deviation with ddof 1, 0 of fewer than two values."""
    return (values - values.mean()).square().sum().div(max(values.numel() - 1, 1)).sqrt()


def _whitened(groups: Sequence[RewardedGroup], given: Sequence[Tensor]) -> list[Tensor]:
    """Take the z-score of (K, 1) advantages over all tokens of scored completions; 1e-8 is added to the variance."""
    spread_out = [one.expand(group.tree.node.shape) for group, one in zip(groups, given, strict=True)]
    values = torch.cat([one[group.learned] for group, one in zip(groups, spread_out, strict=True)])
    scale = (_spread(values).square() + 1e-8).sqrt()
    return [(one - values.mean()) / scale for one in given]


def _share(values: Float[Tensor, "K T"], part: Bool[Tensor, "K T"]) -> Float[Tensor, "K T"]:
    """Compute n v / Σ v at every position, over the n completions in `part` there; 1 on average, 0 outside."""
    values = values.masked_fill(~part, 0.0)
    total = values.sum(0)
    return torch.where(part, torch.where(total > 0, part.sum(0) * values / total, 1.0), 0.0)


def _z_score(values: Float[Tensor, "K T"], part: Bool[Tensor, "K T"]) -> Float[Tensor, "K T"]:
    """Compute (v − mean) / std over `part`, ddof 1; 0 where they are all equal."""
    inside = values[part]
    spread = _spread(inside)
    return (values - inside.mean()) / spread if spread > 0 else torch.zeros_like(values)
