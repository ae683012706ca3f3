"""LEAF's spans: cut completions where they shared a prefix and then parted, and credit every stretch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from leaf.credit.boundaries import select_boundaries
from leaf.credit.tree import GroupRewards, PrefixTree
from leaf.credit.values import (
    ROUNDING,
    counted_completions,
    group_means,
    known_rewards,
    nothing_to_learn,
    root_mean,
    scored_completions,
    spread,
)
from leaf.errors import ConfigError, NotRecorded, shown

Terms = Literal["both", "global", "local"]
_TERM_WEIGHTS = {"both": (1.0, 1.0), "global": (1.0, 0.0), "local": (0.0, 1.0)}  # of GA and LA


@dataclass(frozen=True)
class Span:
    """One stretch of tokens [start, end) of a completion and its credit.

    Attributes:
        start, end: token positions.
        node: the node of the prefix tree at its end, −1 for a tail.
        size: n of that node, the scored completions through it; of distinct ones the sum of their shares.
        value: its V̂; of a tail the completion's own reward.
        raw: the credit before the z-score.
        advantage: the credit after it.
    """

    start: int
    end: int
    node: int
    size: int | float
    value: float
    raw: float
    advantage: float


@dataclass(frozen=True, eq=False)
class SpanTable:
    """The spans of a group, one row per completion and in order, with the fields of `Span` as (K, J) columns.

    Where `kept` is False there is no span: start and end mean nothing and the advantage is 0. Together the spans of a
    scored completion cover exactly its tokens; unscored and empty completions have none.
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
        """Give every token its span's advantage, (K, width), 0 elsewhere."""
        size = self.kept.shape[0]
        # The spans of a row follow each other without a gap, so a row is its advantages, each repeated for as many
        # tokens as its span has, and a 0 repeated for the padding.
        covered = torch.where(self.kept, self.end - self.start, 0)
        widths = torch.cat([covered, width - covered.sum(1, keepdim=True)], 1)
        values = torch.nn.functional.pad(self.advantage, (0, 1))
        return values.flatten().repeat_interleave(widths.flatten(), output_size=size * width).reshape(size, width)


class _Paths(NamedTuple):
    """The spans of a group before they have credit: columns (K, J) as in `SpanTable`, and V̂ of each one's parent.

    `counted` marks what the z-score is taken over: `kept`, and phantom spans if asked for.
    """

    kept: Tensor
    start: Tensor
    end: Tensor
    node: Tensor
    size: Tensor
    value: Tensor
    parent: Tensor
    counted: Tensor


def cut_spans(
    tree: PrefixTree,
    rewards: GroupRewards,
    *,
    surprisal: Float[Tensor, "K T"] | None = None,
    boundaries: Int[Tensor, " B"] | Sequence[int] | None = None,
    max_boundaries: int = 2,
    min_prefix: int = 1,
    terms: Terms = "both",
    normalize: bool = True,
    group_ended: bool = True,
    sqrt_count: bool = True,
    phantom_spans: bool = False,
    shares: Float[Tensor, " K"] | None = None,
) -> SpanTable:
    """Cut each completion at its retained nodes and credit each span (LEAF, arXiv 2606.07610).

    A node v at boundary t is retained when two or more completions share it; its path parent is the retained node
    before it, at first the root v₀, which holds all. With GA(v) = V̂(v) − V̂(v₀) and LA(v) = V̂(v) − V̂(parent), the span
    that ends at v gets (GA + LA) / √n(v), the tail (r − V̂(v₀)) + (r − V̂(last node)); then a z-score over all spans of
    the group (ddof 1, floor 1e-6), each span once. A span never has zero tokens: where a duplicate ended before the
    boundary its node ends with it, and a second such node is dropped (the authors' code counts it).

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
        phantom_spans: count the second node of a duplicate that has ended in the z-score, with its credit but without a
            token, as the authors' code does.
        shares: (K,) how many completions each one stands for, of distinct ones (leaf.credit.sets); default 1. They
            count in n, in V̂ and in the z-score, and a node is retained from a sum of two on.

    Raises:
        NotRecorded: neither surprisal nor boundaries.
        ConfigError: an option out of range.
        DataError: rewards or surprisal do not fit the group.
    """
    if not isinstance(terms, str) or terms not in _TERM_WEIGHTS:
        raise ConfigError(f"terms is {shown(terms)}; allowed are {', '.join(_TERM_WEIGHTS)}.")
    if boundaries is not None:
        cuts = _given_boundaries(boundaries)
    elif surprisal is not None:
        cuts = select_boundaries(surprisal, tree.lengths, max_boundaries=max_boundaries, min_prefix=min_prefix)
    else:
        raise NotRecorded("LEAF needs the surprisal of the sampled tokens, or boundaries of your own; got neither.")
    part = counted_completions(scored_completions(tree, rewards), shares)
    paths = _walk(tree, rewards, part, cuts, group_ended=group_ended, phantom_spans=phantom_spans)
    raw, advantage = _credit_spans(tree, rewards, part, paths, terms, sqrt_count=sqrt_count, normalize=normalize)
    return SpanTable(cuts, *paths[:-2], raw, advantage)


def leaf_spans(
    tree: PrefixTree,
    rewards: GroupRewards,
    *,
    surprisal: Float[Tensor, "K T"] | None = None,
    **options: Any,
) -> tuple[Int[Tensor, " B"], list[list[Span]]]:
    """List the spans of every completion in order, after the boundaries used; for options see `cut_spans`."""
    table = cut_spans(tree, rewards, surprisal=surprisal, **options)
    size = table.size if options.get("shares") is not None else table.size.long()
    fields = (table.start, table.end, table.node, size, table.value, table.raw, table.advantage)
    flat = zip(*(column[table.kept].tolist() for column in fields), strict=True)
    return table.boundaries, [[Span(*next(flat)) for _ in range(n)] for n in table.kept.sum(1).tolist()]


def _walk(
    tree: PrefixTree, rewards: GroupRewards, part: Tensor, cuts: Tensor, *, group_ended: bool, phantom_spans: bool
) -> _Paths:
    """Follow the completions from boundary to boundary, all at once, and note the span that each one ends there."""
    scored = scored_completions(tree, rewards)
    reward = known_rewards(rewards, scored)
    # Where the current span of each completion began, and V̂ of the node there: at first the root's.
    start, parent = torch.zeros_like(tree.lengths), root_mean(reward, part).expand_as(reward)
    columns = []
    for t in cuts.tolist():
        node = tree.prefix_group(t)
        there = part if group_ended else part * (tree.lengths > t)
        size, value = group_means(node, reward, there)
        end = tree.lengths.clamp_max(t)
        # A completion that ended before the last boundary already has end = start: it gets no second, empty span.
        retained = (there > 0) & (size >= 2 - ROUNDING)
        kept = retained & (end > start)
        columns.append((kept, start, end, node, size, value, parent, retained if phantom_spans else kept))
        start, parent = torch.where(kept, end, start), torch.where(kept, value, parent)
    # What is left after the last node is the tail: a group of one, worth the completion's own reward.
    tail = scored & (start < tree.lengths)
    no_node, one = torch.full_like(start, -1), torch.ones_like(reward)
    columns.append((tail, start, tree.lengths, no_node, one, reward, parent, tail))
    return _Paths(*(torch.stack(column, 1) for column in zip(*columns, strict=True)))


def _credit_spans(
    tree: PrefixTree,
    rewards: GroupRewards,
    part: Tensor,
    paths: _Paths,
    terms: Terms,
    *,
    sqrt_count: bool,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the raw credit and the advantage of every span, (K, J) each."""
    scored = scored_completions(tree, rewards)
    root = root_mean(known_rewards(rewards, scored), part)
    of_root, of_parent = _TERM_WEIGHTS[terms]
    # A tail has value r and n = 1, so the formula of a node is its formula too.
    raw = of_root * (paths.value - root) + of_parent * (paths.value - paths.parent)
    if sqrt_count:
        raw = raw / paths.size.clamp_min(1).sqrt()
    if nothing_to_learn(rewards, scored):
        # Rounding could leave 1e-17 here, which the z-score would blow up.
        zero = torch.zeros_like(raw)
        return zero, zero
    credit = raw[paths.counted]
    often = None if part.dtype == torch.bool else part[:, None].expand_as(raw)[paths.counted]
    mean = credit.mean() if often is None else often @ credit / often.sum()
    # Two scored completions have at least two spans, so the deviation exists.
    advantage = (raw - mean) / spread(credit, often).clamp_min(1e-6) if normalize else raw
    return raw, advantage.masked_fill(~paths.kept, 0.0)


def _given_boundaries(boundaries: Tensor | Sequence[int]) -> Tensor:
    """Check boundaries of the caller's own and convert them to (B,) int64."""
    positions = boundaries.tolist() if isinstance(boundaries, Tensor) else boundaries
    whole = isinstance(positions, Sequence) and all(type(t) is int for t in positions)
    if not whole or any(t < 1 for t in positions) or any(b <= a for a, b in pairwise(positions)):
        raise ConfigError(f"Boundaries must be ascending positions of at least 1, each once; got {shown(positions)}.")
    return torch.as_tensor(boundaries, dtype=torch.long)
