"""Pack groups for one forward: each prompt once, then the prefix tree of its completions, each shared prefix once.

Row layout of a group: the P prompt embeddings, then the tree's inner nodes in depth-first order. A node sits at
position P + depth and sees the prompt and its ancestors. A node without children (a leaf) is left out: its own
log-probability is read at its parent. Siblings share one row of logits.
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
    """The row of one group: prompt of P tokens, M inner nodes, N nodes in all, row length S = P + M.

    Attributes:
        prompt_length: P.
        tree: the prefix tree of the completions.
        node: (M,) the inner nodes, ascending.
        position: (S,) position ids.
        parents: (Q,) rows whose logits are needed, ascending.
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
        """Compute where a position (query) sees another (key); S² values, so only for whoever needs them."""
        start, end = self.node, self.tree.subtree_end[self.node]
        mask = torch.ones(self.length, self.length, dtype=torch.bool, device=start.device).tril_()
        # In preorder, i is an ancestor of j (or j itself) exactly when j is in i's subtree interval.
        among = (start[None, :] <= start[:, None]) & (start[:, None] < end[None, :])
        mask[self.prompt_length :, self.prompt_length :] = among
        return mask


def pack(prompt_length: int, tree: PrefixTree) -> PackedGroup:
    """Lay the prefix tree of one group out behind its prompt (see the module's text)."""
    device = tree.token.device
    inner = ~tree.is_leaf
    row = torch.full_like(tree.parent, -1)
    row[inner] = prompt_length + torch.arange(int(inner.sum()), device=device)
    node = inner.nonzero().squeeze(1)  # (M,) preorder ids of the nodes that are fed
    position = torch.cat([torch.arange(prompt_length, device=device), prompt_length + tree.depth[node]])
    parent_row = torch.where(tree.parent < 0, prompt_length - 1, row[tree.parent.clamp_min(0)])
    parents, parent_of = torch.unique(parent_row, sorted=True, return_inverse=True)
    return PackedGroup(prompt_length, tree, node, position, parents, parent_of)


@dataclass(frozen=True)
class PackedBatch:
    """Hold several packed groups as right-padded rows (R rows of length S, width D).

    Attributes:
        embeddings: (R, S, D) prompt embeddings followed by token embeddings; 1 at padding, where 0 would give some
            models a norm of nothing (NaN in the gradient).
        position: (R, S) position ids.
        visible: (R, S, S) True where a row sees another; a padding row sees only itself, so that no softmax is empty.
        parents: (Q,) flat indices into R·S of the rows whose logits are needed, group after group.
    """

    embeddings: Float[Tensor, "R S D"]
    position: Int[Tensor, "R S"]
    visible: Bool[Tensor, "R S S"]
    parents: Int[Tensor, " Q"]


def collate(prompts: list[Tensor], groups: list[PackedGroup], embed_tokens: Callable[[Tensor], Tensor]) -> PackedBatch:
    """Right-pad packed groups to one batch; `prompts[i]` is the (P, D) embedding matrix of group i's prompt."""
    size = max(group.length for group in groups)
    device = prompts[0].device
    if device.type == "cuda":
        size = -(-size // 8) * 8  # attention kernels copy a mask whose rows are not aligned in every layer
    tokens = embed_tokens(torch.cat([group.token.to(device) for group in groups]))
    tokens = tokens.to(prompts[0].dtype).split([group.token.shape[0] for group in groups])
    embeddings = torch.stack(
        [
            torch.nn.functional.pad(torch.cat([prompt, token]), (0, 0, 0, size - group.length), value=1.0)
            for prompt, token, group in zip(prompts, tokens, groups, strict=True)
        ]
    )
    position = torch.zeros(len(groups), size, dtype=torch.long, device=device)
    visible = torch.eye(size, dtype=torch.bool, device=device).repeat(len(groups), 1, 1)
    parents = []
    for i, group in enumerate(groups):
        position[i, : group.length] = group.position.to(device)
        visible[i, : group.length, : group.length] = group.mask.to(device)
        parents.append(group.parents.to(device) + i * size)
    return PackedBatch(embeddings, position, visible, torch.cat(parents))


def micro_batches(lengths: list[int], token_budget: int) -> list[list[int]]:
    """Split groups (given by row length) into batches whose padded size rows × longest stays within the budget.

    Longest first, so that rows of like length share a batch; a single row longer than the budget gets a batch of its
    own. Returns lists of indices; every group occurs exactly once.
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


def unpack(log_probs: Float[Tensor, " N"], tree: PrefixTree) -> Float[Tensor, "K T"]:
    """Spread per-node values over the (K, T) grid of a group's completions; padding is 0."""
    # Padding is node −1: the 0 that is put behind the nodes, of which there may be none.
    return torch.nn.functional.pad(log_probs, (0, 1))[tree.node.to(log_probs.device)]
