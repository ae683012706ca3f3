"""Credit by words: completions share a node where they said the same words, however these are spelled or tokenised.

RTMC (arXiv 2604.11037) groups completions by state, not by exact tokens. Here a state is the words said so far. Only
credit looks at this tree; sampling, scoring and the report share computation by tokens, as ever.
"""

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from leaf.credit.batches import RewardedGroup
from leaf.credit.tree import PrefixTree


def by_words(group: RewardedGroup, word: Int[Tensor, "K T"], ids: Int[Tensor, "K W"]) -> RewardedGroup:
    """Put a group on the tree of its words: one position per word.

    The surprisal of a word is the sum over its tokens, and so is its entropy: that of the word given those before.

    Args:
        group: by tokens.
        word: (K, T) number of the word that each token belongs to, rising from 0 in every completion; −1 at padding.
        ids: (K, W) which word it is; equal ids are equal words. Padding may hold anything.
    """
    lengths = word.amax(1) + 1 if word.shape[1] else torch.zeros(word.shape[0], dtype=torch.long)
    tree = PrefixTree.build(ids, lengths)

    def summed(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        real = values.masked_fill(word < 0, 0.0)
        return real.new_zeros(ids.shape).scatter_add(1, word.clamp_min(0), real)

    return replace(group, tree=tree, surprisal=summed(group.surprisal), entropy=summed(group.entropy))


def to_tokens(advantages: Float[Tensor, "K W"], word: Int[Tensor, "K T"]) -> Float[Tensor, "K T"]:
    """Give every token the advantage of its word, 0 at padding."""
    return advantages.gather(1, word.clamp_min(0)).masked_fill(word < 0, 0.0)
