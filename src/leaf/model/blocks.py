"""Attention in blocks: a few rows at a time, with the keys that at least one of them sees and no others.

A dense mask makes every position of a packed row look at every other one. Behind a prompt of L positions, M nodes in
depth-first order need far less: a block of m rows needs the prompt, the ancestors of its first row and its own rows,
because an ancestor of a later row is one of these. And a block of the prompt needs what stands before its end. So the
work falls from (L + M)² to about L² / 2 + M · (L + depth + m).

On a CPU a block is three matrix products, which run several times faster there than torch's fused kernel, above all in
half precision. Its probabilities are computed again in the backward pass, as fused kernels do, so that less is kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from leaf.model.packing import PackedGroup

ROWS = 128  # of a block; measured best of 64 to 256 on a CPU, in float32 and bfloat16


@dataclass(frozen=True)
class Block:
    """Rows that attend together.

    Attributes:
        rows: which queries they are.
        keys: the keys that they need: a range, or numbers (n,).
        mask: (m, t) added to their scores with the last t of these keys: 0, or the least number where a key is not
            seen. They see all keys before.
    """

    rows: slice
    keys: slice | Int[Tensor, " n"]
    mask: Float[Tensor, "m t"]


@dataclass(frozen=True)
class Blocks:
    """A plan (leaf.model.kernels) of blocks, which cover the queries of one packed row."""

    blocks: Sequence[Block]

    def attend(
        self,
        query: Float[Tensor, "1 H Q D"],
        key: Float[Tensor, "1 G S D"],
        value: Float[Tensor, "1 G S E"],
        scale: float,
    ) -> Float[Tensor, "1 Q H E"]:
        """Attend block by block."""
        return _Attend.apply(query, key, value, self.blocks, scale)  # type: ignore[return-value]


class _Attend(torch.autograd.Function):
    """softmax(scale · q kᵀ + mask) v by blocks; keeps q, k, v and the output for the backward pass."""

    @staticmethod
    def forward(ctx, query, key, value, blocks: Sequence[Block], scale: float):
        heads, groups = query.shape[1], key.shape[1]
        out = query.new_empty(query.shape[2], heads, value.shape[-1])
        for block in blocks:
            probability = _probabilities(_rows(query, block, groups) * scale, _keys(key, block), block)
            seen = torch.bmm(probability, _keys(value, block))
            out[block.rows] = seen.view(heads, -1, value.shape[-1]).transpose(0, 1)
        ctx.blocks, ctx.scale = blocks, scale
        ctx.save_for_backward(query, key, value, out)
        return out[None]

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients):  # pyright: ignore[reportIncompatibleMethodOverride]
        query, key, value, out = ctx.saved_tensors
        groups, scale = key.shape[1], ctx.scale
        gradient = gradients[0].transpose(1, 2)  # (1, H, Q, E)
        # Σⱼ pⱼ ∂pⱼ of every query, which the softmax takes off the gradient of its scores.
        mean = (gradients[0][0] * out).sum(-1, keepdim=True, dtype=torch.float32).to(query.dtype)[None].transpose(1, 2)
        d_query = torch.empty_like(query)
        # Several blocks add to a key, so they are added up in single precision.
        d_key = torch.zeros(key.shape[1:], dtype=torch.float32, device=key.device)
        d_value = torch.zeros(value.shape[1:], dtype=torch.float32, device=key.device)
        for block in ctx.blocks:
            rows, keys, values = _rows(query, block, groups) * scale, _keys(key, block), _keys(value, block)
            given = _rows(gradient, block, groups)
            probability = _probabilities(rows, keys, block)
            scores = torch.bmm(given, values.transpose(1, 2)).sub_(_rows(mean, block, groups)).mul_(probability)
            d_query[0, :, block.rows] = torch.bmm(scores, keys).mul_(scale).view(query.shape[1], -1, query.shape[-1])
            _add(d_key, torch.bmm(scores.transpose(1, 2), rows), block)
            _add(d_value, torch.bmm(probability.transpose(1, 2), given), block)
        return d_query, d_key.to(key.dtype)[None], d_value.to(value.dtype)[None], None, None


def _rows(heads: Tensor, block: Block, groups: int) -> Tensor:
    """Take the rows of a block from (1, H, Q, D): (G, H / G · m, D), the heads that share keys behind one another."""
    return heads[0, :, block.rows].reshape(groups, -1, heads.shape[-1])


def _keys(heads: Tensor, block: Block) -> Tensor:
    """Take the keys of a block, or their values, from (1, G, S, D): (G, n, D)."""
    return heads[0, :, block.keys] if isinstance(block.keys, slice) else heads[0].index_select(1, block.keys)


def _probabilities(rows: Tensor, keys: Tensor, block: Block) -> Tensor:
    """Compute what rows (G, H / G · m, D) attend to: (G, H / G · m, n)."""
    scores = torch.bmm(rows, keys.transpose(1, 2))
    size, masked = block.mask.shape
    scores.view(-1, size, keys.shape[1])[..., keys.shape[1] - masked :].add_(block.mask)
    return scores.softmax(-1)  # inside, torch computes it in float32


def _add(total: Tensor, part: Tensor, block: Block) -> None:
    """Add the gradient (G, n, D) of a block's keys to that of all, (G, S, D)."""
    if isinstance(block.keys, slice):
        total[:, block.keys].add_(part)
    else:
        total.index_add_(1, block.keys, part.to(total.dtype))


# -- which blocks ------------------------------------------------------------------------------------------------------
class Cutter:
    """Cuts what stands in a row, where that begins among queries and among keys, into blocks.

    Args:
        window: how many positions back a row sees, itself included; None for all.
        dtype, device: of the scores.
    """

    def __init__(self, window: int | None, dtype: torch.dtype, device: torch.device):
        self.window, self.dtype, self.device = window, dtype, device

    def prompt(self, length: int, start: int) -> list[Block]:
        """Cut a prompt; its rows see what stands before them, as far as the window reaches."""
        made = []
        for first in range(0, length, ROWS):
            end = min(first + ROWS, length)
            if self.window is None or end <= self.window:
                masked, reached = first, 0  # rows see all that stands before their block
            else:
                masked = reached = max(first + 1 - self.window, 0)
            distance = torch.arange(first, end)[:, None] - torch.arange(masked, end)
            seen = (distance >= 0) & (distance < (self.window or end))
            keys = slice(start + reached, start + end)
            made.append(self._block(slice(start + first, start + end), keys, seen))
        return made

    def tree(self, group: PackedGroup, query: int, prompt: int, node: int) -> list[Block]:
        """Cut the inner nodes of a group; they see the prompt and their ancestors, as far as the window reaches.

        Args:
            group: the packed group.
            query: where its nodes begin among the queries.
            prompt, node: where its prompt and its nodes begin among the keys.
        """
        length, number = group.prompt_length, group.node.cpu()
        stop, position = group.tree.subtree_end.cpu()[number], group.position.cpu()
        made = []
        for first in range(0, len(number), ROWS):
            end = min(first + ROWS, len(number))
            own = number[first:end, None]
            above = ((number[:first] <= number[first]) & (number[first] < stop[:first])).nonzero().squeeze(1)
            inner = torch.cat([above, torch.arange(first, end)])
            # In preorder, i is an ancestor of j (or j itself) exactly when j is in i's subtree interval.
            seen = (number[inner] <= own) & (own < stop[inner])
            rows, reached = position[length + first : length + end, None], 0
            if self.window is not None and int(rows.max()) >= self.window:
                reached = min(max(int(rows.min()) + 1 - self.window, 0), length)  # the first that one of them sees
                whole = torch.ones(end - first, length - reached, dtype=torch.bool)
                distance = rows - torch.cat([torch.arange(reached, length), position[length + inner]])
                seen = torch.cat([whole, seen], 1) & (distance < self.window)
            if len(above) == first and prompt + length == node:  # all that stands before
                keys: slice | Tensor = slice(prompt + reached, node + end)
            else:
                keys = torch.cat([torch.arange(prompt + reached, prompt + length), node + inner])
            made.append(self._block(slice(query + first, query + end), keys, seen))
        return made

    def _block(self, rows: slice, keys: slice | Tensor, seen: Tensor) -> Block:
        mask = torch.zeros(seen.shape, dtype=self.dtype).masked_fill_(~seen, torch.finfo(self.dtype).min)
        return Block(rows, keys if isinstance(keys, slice) else keys.to(self.device), mask.to(self.device))
