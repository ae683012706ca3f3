"""The unbranched stretches of a prefix tree, for the rules that credit every branching node."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from leaf.credit.tree import GroupRewards, PrefixTree
from leaf.credit.values import (
    counted_completions,
    known_rewards,
    prefix_counts,
    prefix_values,
    root_mean,
    scored_completions,
)


@dataclass(frozen=True, eq=False)
class Stretches:
    """Stretches laid out on the (K, T) grid of tokens.

    A stretch opens where fewer scored completions go on than before. All its tokens are on the paths of the same
    completions and so have the same n and V̂. Example, with rewards 1, 1/4, 1/4:

        tokens    stretches    opens    count (n)    value (V̂)        before           parent
        1 2 3     [1 2][3]     1 0 1    2 2 1        5/8 5/8  1       1/2 5/8 5/8      1/2 1/2 5/8
        1 2 4     [1 2][4]     1 0 1    2 2 1        5/8 5/8 1/4      1/2 5/8 5/8      1/2 1/2 5/8
        5 6 7     [5 6 7]      1 0 0    1 1 1        1/4 1/4 1/4      1/2 1/4 1/4      1/2 1/2 1/2

    Attributes:
        opens: True at the first token of a stretch. The very first token counts only if not the whole group shares it:
            otherwise the completions are still the root's.
        count, value: n and V̂ of the prefix through the token.
        before: V̂ of the prefix before the token.
        parent: V̂ of the stretch before, the root's for a first stretch.
        root: V̂(v₀).
    """

    opens: Bool[Tensor, "K T"]
    count: Float[Tensor, "K T"]
    value: Float[Tensor, "K T"]
    before: Float[Tensor, "K T"]
    parent: Float[Tensor, "K T"]
    root: Float[Tensor, ""]


def stretches(tree: PrefixTree, rewards: GroupRewards, shares: Float[Tensor, " K"] | None = None) -> Stretches:
    """Cut the completions of a group into the unbranched stretches of their tree.

    `shares` says how many completions each one stands for in n and V̂; see leaf.credit.values.
    """
    scored = scored_completions(tree, rewards)
    reward, part = known_rewards(rewards, scored), counted_completions(scored, shares)
    by_length, value = prefix_values(tree, reward, part)
    members = by_length if shares is None else prefix_counts(tree, scored)
    count, before = by_length[:, 1:], value[:, :-1]
    opens = (members[:, 1:] != members[:, :-1]) & (tree.node >= 0)
    # The running maximum of the positions at which a stretch opened is the first token of each token's stretch. V̂
    # before that one is V̂ of the stretch before.
    position = torch.arange(count.shape[1], device=count.device).expand_as(count)
    first = torch.where(opens, position, 0).cummax(1).values if position.numel() else position
    return Stretches(opens, count, value[:, 1:], before, before.gather(1, first), root_mean(reward, part))
