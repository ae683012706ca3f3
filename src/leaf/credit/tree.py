"""The prefix tree of a group: built once from token ids, it serves credit, the packed forward and the report."""

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real
from torch import Tensor

from leaf.errors import DataError

# One per completion; True and False count as 1 and 0. Only floating point can say NaN, "could not be scored".
GroupRewards: TypeAlias = Real[Tensor, " K"] | Bool[Tensor, " K"]


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """The trie of K completions: one node per distinct prefix, N nodes in depth-first order.

    Trees are compared and hashed by identity: they hold tensors.

    Attributes:
        tokens: (K, T) int64 token ids, right-padded.
        lengths: (K,) int64.
        node: (K, T) int64 node of every token, −1 at padding.
        token: (N,) int64 token id of a node.
        parent: (N,) int64 parent node, −1 where the parent is the prompt.
        depth: (N,) int64 position of the node's token in its completions, from 0.
        count: (N,) int64 number of completions through the node.
    """

    tokens: Int[Tensor, "K T"]
    lengths: Int[Tensor, " K"]
    node: Int[Tensor, "K T"]
    token: Int[Tensor, " N"]
    parent: Int[Tensor, " N"]
    depth: Int[Tensor, " N"]
    count: Int[Tensor, " N"]

    @classmethod
    def build(cls, tokens: Int[Tensor, "K T"], lengths: Int[Tensor, " K"]) -> "PrefixTree":
        """Build the tree of a group's completions.

        The completions are sorted as rows, so that those with a common prefix are neighbours. Then a token opens a new
        node exactly where it is beyond the prefix shared with the row above, and numbering these tokens row by row is a
        depth-first preorder. Rows 1 3, 1 2 9 and 1 sort to 1, 1 2 9, 1 3 and open the nodes 0, then 1 2, then 3.

        Args:
            tokens: (K, T) token ids of at least 0, right-padded; the padding may hold anything.
            lengths: (K,) tokens per completion, 0 ≤ length ≤ T.

        Raises:
            DataError: shapes do not fit, or a length or an id is out of range.
        """
        if tokens.ndim != 2 or lengths.shape != tokens.shape[:1]:
            raise DataError(
                f"A group needs tokens of shape (K, T) and lengths of shape (K,); got {tuple(tokens.shape)} and "
                f"{tuple(lengths.shape)}."
            )
        size, width = tokens.shape
        ids = tokens.detach().cpu().numpy()
        ends = lengths.detach().cpu().numpy().astype(np.int64)
        if size and (ends.min() < 0 or ends.max() > width):
            raise DataError(f"Lengths must be in 0..{width}, the width of tokens; got {ends.min()}..{ends.max()}.")
        order, common = _sort_rows(ids, ends)
        node, parent, depth, opener = _number_nodes(order, common, ends, width)

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64)).to(tokens.device)

        return cls(
            tokens=tokens.long(),
            lengths=lengths.long(),
            node=tensor(node),
            token=tensor(ids[opener, depth]),
            parent=tensor(parent),
            depth=tensor(depth),
            count=tensor(np.bincount(node[node >= 0], minlength=len(depth))),
        )

    @property
    def num_nodes(self) -> int:
        """Count the nodes: N."""
        return self.token.shape[0]

    @cached_property
    def is_leaf(self) -> Bool[Tensor, " N"]:
        """Mark (N,) the nodes without children."""
        leaf = torch.ones(self.num_nodes, dtype=torch.bool, device=self.parent.device)
        leaf[self.parent[self.parent >= 0]] = False
        return leaf

    @cached_property
    def subtree_end(self) -> Int[Tensor, " N"]:
        """Find (N,) the exclusive end of each subtree in preorder: j descends from i or is i iff i ≤ j < end[i].

        The end is the next node that is not deeper.
        """
        depth = self.depth.cpu().numpy()
        size = len(depth)
        if size == 0:
            return torch.zeros_like(self.depth)
        # The nodes that one row opened form a run of rising depth, so only the start of a run can close subtrees: the
        # subtree of a node at depth d ends at the first later run that starts at depth ≤ d. The loop goes from the last
        # run to the first, so closes[d] is that start. There are at most K runs.
        starts = np.flatnonzero(np.concatenate([[True], depth[1:] <= depth[:-1]]))
        closes = np.full(int(depth.max()) + 1, size, dtype=np.int64)
        end = np.empty(size, dtype=np.int64)
        for start, stop in zip(starts[::-1], np.append(starts[1:], size)[::-1], strict=True):
            end[start:stop] = closes[depth[start:stop]]
            closes[depth[start] :] = start
        return torch.from_numpy(end).to(self.depth.device)

    def prefix_group(self, boundary: int) -> Int[Tensor, " K"]:
        """Group the completions whose first `boundary` tokens are exactly equal, and return (K,) ids of the groups.

        A completion that ended at or before the boundary takes part with its whole token sequence. Ids are node
        numbers (of the prefix's last token); −1 is the empty prefix.
        """
        last = self.lengths.clamp_max(boundary) - 1
        node = self.node.gather(1, last.clamp_min(0)[:, None]).squeeze(1) if self.node.shape[1] else last
        return torch.where(last >= 0, node, torch.full_like(node, -1))

    def node_count(self, counted: Bool[Tensor, " K"] | Float[Tensor, " K"]) -> Float[Tensor, " N"]:
        """Count (N,) the completions through each node, as float64: those marked, or each as often as it counts."""
        return self._sum(counted.double())

    def node_mean(self, rewards: GroupRewards, shares: Float[Tensor, " K"] | None = None) -> Float[Tensor, " N"]:
        """Compute (N,) V̂, the mean reward of the completions through each node, in float64.

        A NaN reward leaves its completion out; a node with no scored completion has NaN. Of distinct completions each
        counts with its share (leaf.credit.sets), Σ w r / Σ w; without shares each counts once.
        """
        counted = ~rewards.isnan() if shares is None else shares * ~rewards.isnan()
        return self._sum(counted * torch.where(counted > 0, rewards.double(), 0.0)) / self.node_count(counted)

    def _sum(self, values: Float[Tensor, " K"]) -> Float[Tensor, " N"]:
        """Sum a value per completion over the completions through each node."""
        total = torch.zeros(self.num_nodes, dtype=torch.float64, device=self.node.device)
        real = self.node >= 0
        spread = values.to(self.node.device)[:, None].expand_as(self.node)
        return total.index_add_(0, self.node[real], spread[real])


def _sort_rows(ids: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the rows lexicographically, and count the tokens that each shares with the row above.

    Rows are compared as bytes of id + 1: big-endian, because then the order of the bytes is the order of the numbers.
    Padding is 0, so a row that ended comes before those that continue it, whatever its padding holds.

    Returns:
        (K,) the stable order of the rows, and (K,) the length of the common prefix, 0 for the first.
    """
    size, width = ids.shape
    real = np.arange(width) < ends[:, None]
    shifted = np.where(real, ids, 0)
    lowest, highest = (int(shifted.min()), int(shifted.max())) if shifted.size else (0, 0)
    if lowest < 0:
        raise DataError(f"Token ids must be at least 0 within a completion; got {lowest}.")
    kind = np.dtype(np.uint32 if highest < 2**32 - 1 else np.uint64)
    keys = np.add(shifted, real, dtype=np.int64).astype(kind.newbyteorder(">"))
    if size < 2 or width == 0:
        return np.arange(size), np.zeros(size, dtype=np.int64)
    order = np.argsort(keys.view(np.dtype((np.void, width * kind.itemsize))).ravel(), kind="stable")
    rows = keys.view(kind)[order]
    differs = rows[1:] != rows[:-1]
    common = np.where(differs.any(1), differs.argmax(1), ends[order[1:]])
    return order, np.concatenate([[0], common])


def _number_nodes(
    order: np.ndarray, common: np.ndarray, ends: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Number the nodes in the order of the sorted rows.

    Returns:
        (K, T) the node of every token, −1 at padding; and for the nodes (N,) their parent, their depth, and the
        completion that opened each.
    """
    # Row r opens its tokens from common[r] on; before them it shares the nodes of the row above.
    opened = ends[order] - common
    first = np.cumsum(opened) - opened  # the first node that each row opens
    number = np.arange(int(opened.sum()), dtype=np.int64)
    node = np.full((len(order), width), -1, dtype=np.int64)
    above = number[:0]  # the first row shares nothing
    for row, shared, end, start in zip(
        order.tolist(), common.tolist(), ends[order].tolist(), first.tolist(), strict=True
    ):
        node[row, :shared] = above[:shared]
        node[row, shared:end] = number[start : start + end - shared]
        above = node[row]

    depth = number - np.repeat(first - common, opened)
    # Within a row the parent is the node before; the first node continues the prefix shared with the row above.
    parent = number - 1
    opens = opened > 0
    parent[first[opens]] = np.where(common[opens] > 0, node[order[opens], np.maximum(common[opens] - 1, 0)], -1)
    return node, parent, depth, np.repeat(order, opened)
