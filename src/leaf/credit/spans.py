"""LEAF's spans: cut completions where they shared a prefix and then parted, and credit every stretch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from leaf.credit.boundaries import select_boundaries
from leaf.credit.tree import PrefixTree, Rewards
from leaf.credit.values import group_means, known_rewards, nothing_to_learn, root_mean, scored_completions
from leaf.errors import ConfigError, shown

Terms = Literal["both", "global", "local"]
# Weights of GA and LA.
_TERMS = {"both": (1.0, 1.0), "global": (1.0, 0.0), "local": (0.0, 1.0)}


@dataclass(frozen=True)
class Span:
    """Hold one stretch of tokens [start, end) of a completion and its credit.

    `node` is the node of the prefix tree at its end (−1 for a tail), `size` its n, the scored completions through it,
    `value` its V̂, `raw` the credit before and `advantage` after the z-score.
    """

    start: int
    end: int
    node: int
    size: int
    value: float
    raw: float
    advantage: float


@dataclass(frozen=True, eq=False)
class SpanTable:
    """Hold the spans of a group, one row per completion and in order, with the fields of `Span` as (K, J) columns.

    J is B + 1. Where `kept` is False there is no span: start and end mean nothing and the advantage is 0. Together the
    spans of a scored completion cover exactly its tokens; unscored and empty completions have none.
    """

    boundaries: Int[Tensor, " B"]
    kept: Bool[Tensor, "K J"]
    start: Int[Tensor, "K J"]
    end: Int[Tensor, "K J"]
    node: Int[Tensor, "K J"]
    size: Float[Tensor, "K J"]
    value: Float[Tensor, "K J"]
    raw: Float[Tensor, "K J"]
    advantage: Float[Tensor, "K J"]

    def paint(self, width: int) -> Float[Tensor, "K width"]:
        """Return (K, width) every token with its span's advantage, 0 elsewhere."""
        size = self.kept.shape[0]
        covered = torch.where(self.kept, self.end - self.start, 0)
        widths = torch.cat([covered, width - covered.sum(1, keepdim=True)], 1)
        values = torch.nn.functional.pad(self.advantage, (0, 1))
        return values.flatten().repeat_interleave(widths.flatten(), output_size=size * width).reshape(size, width)


def cut_spans(
    tree: PrefixTree,
    rewards: Rewards,
    *,
    surprisal: Float[Tensor, "K T"] | None = None,
    boundaries: Int[Tensor, " B"] | Sequence[int] | None = None,
    max_boundaries: int = 2,
    min_prefix: int = 1,
    terms: Terms = "both",
    normalize: bool = True,
    group_ended: bool = True,
    sqrt_count: bool = True,
) -> SpanTable:
    """Cut each completion at its retained nodes and credit each span (LEAF, arXiv 2606.07610).

    A node v at boundary t is retained when two or more completions share it; its path parent is the retained node
    before it, the root v₀ holding all. With GA(v) = V̂(v) − V̂(v₀) and LA(v) = V̂(v) − V̂(parent), the span that ends at
    v gets (GA + LA) / √n(v), the tail (r − V̂(v₀)) + (r − V̂(last node)); then a z-score over all spans of the group
    (ddof 1, floor 1e-6), each span once. A span never has zero tokens: where a duplicate ended before the boundary its
    node ends with it, and a second such node is dropped (the authors' code counts it).

    Args:
        tree: prefix tree of the group.
        rewards: (K,) terminal rewards, NaN = unscored: left out of n and V̂, and without spans.
        surprisal: (K, T) nats; chooses the boundaries unless they are given. Unscored completions take part in that.
        boundaries: (B,) ascending positions from 1, tensor or list, in place of surprisal's choice.
        max_boundaries, min_prefix: see `select_boundaries`.
        terms: "both", "global" (GA only) or "local" (LA only), in the tail too.
        normalize: apply the z-score.
        group_ended: a completion that ended at or before a boundary takes part with its whole sequence; False leaves
            it out (ablation).
        sqrt_count: divide by √n(v); False is an ablation.

    Raises:
        ConfigError: neither surprisal nor boundaries, or an option out of range.
        DataError: rewards or surprisal do not fit the group.
    """
    if not isinstance(terms, str) or terms not in _TERMS:
        raise ConfigError(f"terms is {shown(terms)}; allowed are {', '.join(_TERMS)}.")
    if boundaries is None:
        boundaries = _choose(tree, surprisal, max_boundaries, min_prefix)
    else:
        boundaries = _checked_boundaries(boundaries)
    scored = scored_completions(tree, rewards)
    reward = known_rewards(rewards, scored)
    root = root_mean(reward, scored)
    start, above = torch.zeros_like(tree.lengths), root.expand_as(reward)
    columns = []
    for t in boundaries.tolist():
        node = tree.prefix_group(t)
        part = scored if group_ended else scored & (tree.lengths > t)
        size, value = group_means(node, reward, part)
        end = tree.lengths.clamp_max(t)
        kept = part & (size >= 2) & (end > start)
        columns.append((kept, start, end, node, size, value, above))
        start, above = torch.where(kept, end, start), torch.where(kept, value, above)
    tail = scored & (start < tree.lengths)
    no_node, one = torch.full_like(start, -1), torch.ones_like(reward)
    columns.append((tail, start, tree.lengths, no_node, one, reward, above))

    kept, start, end, node, size, value, above = (torch.stack(column, 1) for column in zip(*columns, strict=True))
    of_root, of_parent = _TERMS[terms]
    raw = of_root * (value - root) + of_parent * (value - above)
    if sqrt_count:
        raw = raw / size.clamp_min(1).sqrt()
    if nothing_to_learn(rewards, scored):
        raw = torch.zeros_like(raw)
        advantage = raw
    else:
        credit = raw[kept]
        # Two scored completions have at least two spans, so the deviation exists.
        advantage = (raw - credit.mean()) / credit.std().clamp_min(1e-6) if normalize else raw
    advantage = advantage.masked_fill(~kept, 0.0)
    return SpanTable(boundaries, kept, start, end, node, size, value, raw, advantage)


def leaf_spans(
    tree: PrefixTree,
    rewards: Rewards,
    *,
    surprisal: Float[Tensor, "K T"] | None = None,
    **options: Any,
) -> tuple[Int[Tensor, " B"], list[list[Span]]]:
    """Return the boundaries used and, for every completion, its spans in order; for options see `cut_spans`."""
    table = cut_spans(tree, rewards, surprisal=surprisal, **options)
    fields = (table.start, table.end, table.node, table.size.long(), table.value, table.raw, table.advantage)
    flat = zip(*(column[table.kept].tolist() for column in fields), strict=True)
    return table.boundaries, [[Span(*next(flat)) for _ in range(n)] for n in table.kept.sum(1).tolist()]


def _choose(tree: PrefixTree, surprisal: Tensor | None, max_boundaries: int, min_prefix: int) -> Tensor:
    if surprisal is None:
        raise ConfigError("LEAF needs the surprisal of the sampled tokens, or boundaries of your own; got neither.")
    return select_boundaries(surprisal, tree.lengths, max_boundaries=max_boundaries, min_prefix=min_prefix)


def _checked_boundaries(boundaries: Tensor | Sequence[int]) -> Tensor:
    positions = boundaries.tolist() if isinstance(boundaries, Tensor) else boundaries
    whole = isinstance(positions, Sequence) and all(type(t) is int for t in positions)
    if not whole or any(t < 1 for t in positions) or any(b <= a for a, b in pairwise(positions)):
        raise ConfigError(f"Boundaries must be ascending positions of at least 1, each once; got {shown(positions)}.")
    return torch.as_tensor(boundaries, dtype=torch.long)
