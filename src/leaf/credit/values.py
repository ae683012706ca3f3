"""What the completions of a group earned: who counts, V̂ of a set of completions, V̂ of every prefix.

All rules read rewards through these functions. A NaN reward ("could not be scored") and an empty completion are left
out of every mean and every count. Arithmetic is float64.

A completion counts once, or as many times as it stands for: distinct completions have shares, K times their weights
(leaf.credit.sets). So n is the sum of the shares and V̂ = Σ w r / Σ w. A share of 2 is worth two equal completions.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from leaf.credit.tree import GroupRewards, PrefixTree
from leaf.errors import DataError

ROUNDING = 1e-9  # of shares that should add up to a whole number


def scored_completions(tree: PrefixTree, rewards: GroupRewards) -> Bool[Tensor, " K"]:
    """Mark (K,) the completions that have a reward and at least one token.

    Raises:
        DataError: not one reward per completion, or an infinite one.
    """
    if rewards.shape != tree.lengths.shape:
        raise DataError(
            f"A group of {tree.lengths.shape[0]} completions came with rewards of shape {tuple(rewards.shape)}; give "
            "one reward per completion, NaN where it could not be scored."
        )
    if bool(rewards.isinf().any()):
        raise DataError(
            f"Rewards must be finite, or NaN where a completion could not be scored; got {rewards.tolist()}."
        )
    return ~rewards.isnan().to(tree.lengths.device) & (tree.lengths > 0)


def known_rewards(rewards: GroupRewards, scored: Bool[Tensor, " K"]) -> Float[Tensor, " K"]:
    """Convert the rewards (K,) to float64 on the device of `scored`, 0 where unscored."""
    return rewards.to(scored.device).double().masked_fill(~scored, 0.0)


def counted_completions(
    scored: Bool[Tensor, " K"], shares: Float[Tensor, " K"] | None = None
) -> Bool[Tensor, " K"] | Float[Tensor, " K"]:
    """Tell how often each completion counts (K,): as `scored` marks them, or with their shares, 0 where unscored."""
    return scored if shares is None else torch.where(scored, shares.to(scored.device).double(), 0.0)


def nothing_to_learn(rewards: GroupRewards, scored: Bool[Tensor, " K"]) -> bool:
    """Check whether fewer than two completions are scored or all scored rewards are equal.

    Such a group gets exactly 0. The rewards themselves are compared, because a mean in floating point may differ in the
    last bit from the equal terms it is the mean of.
    """
    known = rewards.to(scored.device)[scored]
    return known.numel() < 2 or bool((known == known[0]).all())


def group_means(
    group: Int[Tensor, " K"], reward: Float[Tensor, " K"], part: Bool[Tensor, " K"] | Float[Tensor, " K"]
) -> tuple[Float[Tensor, " K"], Float[Tensor, " K"]]:
    """Compute n and V̂ of every completion's group: how many of its members are in `part`, and their mean reward.

    Args:
        group: (K,) group ids, e.g. from `PrefixTree.prefix_group`.
        reward: (K,) from `known_rewards`.
        part: (K,) how often each counts, or True for those that do. A group without any has n = 0 and V̂ = 0.
    """
    index = group.unique(return_inverse=True)[1]
    count = torch.zeros_like(reward).index_add_(0, index, part.to(reward.dtype))
    total = torch.zeros_like(reward).index_add_(0, index, reward * part)
    return count[index], _quotient(total, count)[index]


def root_mean(reward: Float[Tensor, " K"], part: Bool[Tensor, " K"] | Float[Tensor, " K"]) -> Float[Tensor, ""]:
    """Compute V̂ of the root, the mean over all completions that count (see `group_means`); 0 without any."""
    return _quotient((reward * part).sum(), part.sum())


def spread(values: Float[Tensor, " _"], part: Float[Tensor, " _"] | None = None) -> Float[Tensor, ""]:
    """Compute the standard deviation, ddof 1, of values that count once each, or as often as `part` says."""
    if part is None:
        return values.std()
    count = part.sum()
    square = (part * (values - part @ values / count).square()).sum()
    return (square / (count - 1).clamp_min(1)).sqrt()


def prefix_counts(tree: PrefixTree, part: Bool[Tensor, " K"] | Float[Tensor, " K"]) -> Float[Tensor, "K L"]:
    """Compute n of every prefix of every completion, (K, T + 1) by prefix length; column 0 is the root.

    Beyond a completion's end it means nothing.
    """
    return _by_prefix(tree, tree.node_count(part), part.sum().double())


def prefix_values(
    tree: PrefixTree, reward: Float[Tensor, " K"], part: Bool[Tensor, " K"] | Float[Tensor, " K"]
) -> tuple[Float[Tensor, "K L"], Float[Tensor, "K L"]]:
    """Compute n and V̂ of every prefix of every completion, (K, T + 1) by prefix length; column 0 is the root.

    So column t belongs to the prefix before token t and column t + 1 to the prefix through it. Beyond a completion's
    end, and for prefixes that no scored completion has, the values mean nothing. `part` is as in `group_means`.
    """
    count, total = prefix_counts(tree, part), tree.node_count(reward * part)
    mean = root_mean(reward, part)
    value = _quotient(_by_prefix(tree, total, (reward * part).sum()), count)
    # Where everybody scored passes, V̂ is the root's to the last bit, so that no credit arises from rounding.
    members = count if part.dtype == torch.bool else prefix_counts(tree, part > 0)
    return count, torch.where(members == members[:, :1], mean, value)


def _quotient(total: Tensor, count: Tensor) -> Tensor:
    """Divide, and give 0 where nothing counts."""
    return total / torch.where(count > 0, count, 1)


def _by_prefix(tree: PrefixTree, of_node: Float[Tensor, " N"], of_root: Float[Tensor, ""]) -> Float[Tensor, "K L"]:
    """Spread a value per node out over the prefixes (K, L) that the nodes are."""
    # A last entry for the empty prefix serves index −1 too: padding reads the root.
    return torch.cat([of_node, of_root[None]])[torch.nn.functional.pad(tree.node, (1, 0), value=-1)]


def shrunken_values(
    count: Float[Tensor, "K L"],
    value: Float[Tensor, "K L"],
    reward: Float[Tensor, " K"],
    kappa: float | Float[Tensor, " L"],
    *,
    leave_one_out: bool,
) -> Float[Tensor, "K L"]:
    """Compute Ṽ of every prefix of every completion: V̂ shrunk towards Ṽ of the prefix one token shorter.

    Ṽ(v) = (n V̂(v) + κ Ṽ(parent)) / (n + κ), and Ṽ(v₀) = V̂(v₀). With `leave_one_out`, n and V̂ are those of the other
    completions; a prefix that no other completion has keeps its parent's Ṽ.

    Args:
        count, value: (K, L) from `prefix_values`, by prefix length; column 0 is the root.
        reward: (K,) from `known_rewards`.
        kappa: κ ≥ 0, the weight of the parent in completions, for all prefixes or by prefix length. 0 gives V̂.
    """
    total = count * value  # Σ r of the completions that have the prefix
    if leave_one_out:
        # All prefixes of row k are k's own, so k itself is among the n of each.
        count, total = (count - 1).clamp_min(0), total - reward[:, None]
    return shrunken(count, total, kappa)


def shrunken(
    count: Float[Tensor, "K L"], total: Float[Tensor, "K L"], kappa: float | Float[Tensor, " L"]
) -> Float[Tensor, "K L"]:
    """Compute x of every prefix by x(v) = (total(v) + κ x(parent)) / (count(v) + κ), at the root total / count."""
    weight = count + kappa
    # Where nobody else has the prefix, Ṽ stays the parent's: κ / κ = 1. With κ = 0 both quotients would be 0 / 0.
    keep = torch.where(weight > 0, kappa / weight, 1.0)
    step = torch.where(count > 0, total / weight, 0.0)
    # The root has no parent; Ṽ(v₀) is the plain mean.
    keep[:, 0], step[:, 0] = 0.0, _quotient(total[:, 0], count[:, 0])
    # Ṽ_t = keep_t Ṽ_{t−1} + step_t runs down each completion. A loop over tokens would take L rounds; a scan takes
    # log₂ L: each round composes every map x → keep x + step with the one `reach` tokens before it. In the end all of
    # them reach back to the root, whose keep is 0, so step is Ṽ.
    reach = 1
    while reach < keep.shape[1]:
        step[:, reach:] = step[:, reach:] + keep[:, reach:] * step[:, :-reach]
        keep[:, reach:] = keep[:, reach:] * keep[:, :-reach]
        reach *= 2
    return step
