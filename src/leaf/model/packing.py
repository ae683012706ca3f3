"""Pack groups for one forward: each prompt once, then the prefix tree of its completions, each shared prefix once.

The row of a group holds the L prompt embeddings, then the tree's inner nodes in depth-first order. A node is at
position L + depth and sees the prompt and its ancestors. A node without children (a leaf) is left out, since a node's
own log-probability is read at its parent. Siblings share one row of logits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from leaf.credit.tree import PrefixTree


@dataclass(frozen=True)
class PackedGroup:
    """The row of one group: prompt of L positions, M inner nodes, N nodes in all, row length S = L + M.

    Attributes:
        prompt_length: L.
        tree: the prefix tree of the completions.
        node: (M,) the inner nodes, ascending.
        position: (S,) position ids.
        parents: (Q,) positions in the row whose logits are needed, ascending.
        parent_of: (N,) index into `parents` for every tree node.
    """

    prompt_length: int
    tree: PrefixTree
    node: Int[Tensor, " M"]
    position: Int[Tensor, " S"]
    parents: Int[Tensor, " Q"]
    parent_of: Int[Tensor, " N"]

    @property
    def length(self) -> int:
        """S, the length of the row."""
        return self.position.shape[0]

    @property
    def token(self) -> Int[Tensor, " M"]:
        """Token ids that are fed after the prompt."""
        return self.tree.token[self.node]

    @cached_property
    def mask(self) -> Bool[Tensor, "S S"]:
        """Where a position (query) sees another (key). It has S² values, so only the layout `tree` asks for it."""
        start, end = self.node, self.tree.subtree_end[self.node]
        mask = torch.ones(self.length, self.length, dtype=torch.bool, device=start.device).tril_()
        # In preorder, i is an ancestor of j (or j itself) exactly when j is in i's subtree interval.
        inside = (start[None, :] <= start[:, None]) & (start[:, None] < end[None, :])
        mask[self.prompt_length :, self.prompt_length :] = inside
        return mask


def pack(prompt_length: int, tree: PrefixTree) -> PackedGroup:
    """Lay the prefix tree of one group out behind its prompt (see the module's text)."""
    device = tree.token.device
    inner = ~tree.is_leaf
    node = inner.nonzero().squeeze(1)  # preorder numbers, so ascending is depth-first
    place = torch.full_like(tree.parent, -1)  # of every inner node in the row
    place[inner] = prompt_length + torch.arange(node.shape[0], device=device)
    position = torch.cat([torch.arange(prompt_length, device=device), prompt_length + tree.depth[node]])
    # A first token has no parent in the tree (−1): the prompt's last position predicts it.
    parent = torch.where(tree.parent < 0, prompt_length - 1, place[tree.parent.clamp_min(0)])
    parents, parent_of = torch.unique(parent, sorted=True, return_inverse=True)
    return PackedGroup(prompt_length, tree, node, position, parents, parent_of)


@dataclass(frozen=True)
class PackedBatch:
    """The rows of P groups, right-padded to one length S, with embeddings of width D.

    Attributes:
        embeddings: (P, S, D) prompt embeddings followed by token embeddings. They are 1 at padding, because some models
            would divide by the norm of a 0 and make the gradient NaN.
        position: (P, S) position ids.
        visible: (P, S, S) True where a position sees another. Padding sees only itself, so that no softmax is empty.
        places: flat indices into P·S of all positions that are no padding, group after group.
        parents: (Q,) those of the positions whose logits are needed, group after group.
    """

    embeddings: Float[Tensor, "P S D"]
    position: Int[Tensor, "P S"]
    visible: Bool[Tensor, "P S S"]
    places: Int[Tensor, " _"]
    parents: Int[Tensor, " Q"]


@dataclass(frozen=True)
class PackedRow:
    """The rows of all groups behind one another in a single one, without padding; S positions, width D.

    Attributes:
        embeddings: (1, S, D) of each group its prompt's embeddings followed by token embeddings.
        position: (1, S) position ids.
        starts: where each group begins.
        parents: (Q,) positions whose logits are needed, group after group.
    """

    embeddings: Float[Tensor, "1 S D"]
    position: Int[Tensor, "1 S"]
    starts: list[int]
    parents: Int[Tensor, " Q"]


def join(
    prompts: list[Float[Tensor, "_ D"]],
    groups: list[PackedGroup],
    embed_tokens: Callable[[Int[Tensor, " _"]], Float[Tensor, "_ D"]],
) -> PackedRow:
    """Put packed groups behind one another; arguments as `collate` takes them."""
    device = prompts[0].device
    parts = _embedded(prompts, groups, embed_tokens)
    lengths = [group.length for group in groups]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    parents = [group.parents.to(device) + start for group, start in zip(groups, starts, strict=True)]
    position = torch.cat([group.position.to(device) for group in groups])
    return PackedRow(torch.cat(parts)[None], position[None], starts, torch.cat(parents))


def _embedded(
    prompts: list[Float[Tensor, "_ D"]],
    groups: list[PackedGroup],
    embed_tokens: Callable[[Int[Tensor, " _"]], Float[Tensor, "_ D"]],
) -> list[Tensor]:
    """Embed the row (S, D) of each group."""
    # One call for all groups: embedding them one by one would start as many kernels.
    tokens = embed_tokens(torch.cat([group.token.to(prompts[0].device) for group in groups]))
    tokens = tokens.to(prompts[0].dtype).split([group.token.shape[0] for group in groups])
    return [torch.cat(pair) for pair in zip(prompts, tokens, strict=True)]


def collate(
    prompts: list[Float[Tensor, "_ D"]],
    groups: list[PackedGroup],
    embed_tokens: Callable[[Int[Tensor, " _"]], Float[Tensor, "_ D"]],
) -> PackedBatch:
    """Right-pad packed groups to one batch.

    Args:
        prompts: the embeddings (L, D) of each group's prompt.
        groups: the packed groups.
        embed_tokens: embeds token ids.
    """
    size = max(group.length for group in groups)
    device = prompts[0].device
    if device.type == "cuda":
        size = -(-size // 8) * 8  # attention kernels copy a mask whose rows are not aligned, and do so in every layer
    embeddings = torch.stack(
        [
            torch.nn.functional.pad(part, (0, 0, 0, size - len(part)), value=1.0)
            for part in _embedded(prompts, groups, embed_tokens)
        ]
    )
    position = torch.zeros(len(groups), size, dtype=torch.long, device=device)
    visible = torch.eye(size, dtype=torch.bool, device=device).repeat(len(groups), 1, 1)
    places, parents = [], []
    for i, group in enumerate(groups):
        position[i, : group.length] = group.position.to(device)
        visible[i, : group.length, : group.length] = group.mask.to(device)
        places.append(torch.arange(group.length, device=device) + i * size)
        parents.append(group.parents.to(device) + i * size)
    return PackedBatch(embeddings, position, visible, torch.cat(places), torch.cat(parents))


def micro_batches(lengths: list[int], token_budget: int) -> list[list[int]]:
    """Split rows into batches whose padded size, rows × longest row, stays within the budget.

    Longest first, so that rows of like length share a batch and little is padding. A single row over the budget gets a
    batch of its own.

    Args:
        lengths: of the rows.
        token_budget: the largest padded size of a batch.

    Returns:
        Lists of indices of rows; every row is in exactly one.
    """
    batches: list[list[int]] = []
    current: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if current and (len(current) + 1) * lengths[current[0]] > token_budget:
            batches.append(current)
            current = []
        current.append(i)
    if current:
        batches.append(current)
    return batches


def unpack(values: Float[Tensor, " N"], tree: PrefixTree) -> Float[Tensor, "K T"]:
    """Spread one value per node over the grid of a group's completions; padding is 0."""
    # Padding is node −1, which indexes the 0 that is put behind the nodes, of which there may be none.
    return torch.nn.functional.pad(values, (0, 1))[tree.node.to(values.device)]
