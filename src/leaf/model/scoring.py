"""Three ways to run the completions of a group through the language model; all give the same numbers.

tree         one row per group: the prompt, then the prefix tree of its completions (leaf.model.packing).
prompt_once  the prompt once with its cache kept in the graph, then the completions as a batch behind it. For recurrent
             layers and for kernels that take no dense mask.
copies       the prompt copied for every completion, as a plain forward would. Where the cache cannot be kept: recurrent
             layers or mask-free kernels under gradient checkpointing.

A layout returns hidden states at the rows that `PackedGroup.parents` names, so that what is read from them is one code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from leaf.credit.tree import PrefixTree
from leaf.model.attention import refuse_long
from leaf.model.packing import PackedGroup, collate, pack, unpack

if TYPE_CHECKING:
    from leaf.model.policy import Policy, Prompt

Layout = Literal["tree", "prompt_once", "copies"]


@dataclass(frozen=True)
class Scores:
    """Hold per-group (K, T) tensors: log-probabilities and entropies in nats at the policy's temperature, 0 at padding.

    `packed_tokens` counts the rows the forward ran, `plain_tokens` those that K separate copies would have needed.
    """

    log_probs: list[Tensor]
    entropies: list[Tensor]
    packed_tokens: int
    plain_tokens: int


def score(
    policy: "Policy", prompts: Sequence["Prompt"], trees: Sequence[PrefixTree], batches: Sequence[Sequence[int]]
) -> Scores:
    """Score the completions of each prompt's group, a batch of groups per forward.

    Args:
        policy: the model, its layout, temperature and rows of logits at once.
        prompts, trees: one of each per group.
        batches: indices of the groups that share a forward; every group once.
    """
    layout = LAYOUTS[policy.layout]
    refuse_long(policy.text_config, ((p.length, int(t.lengths.max())) for p, t in zip(prompts, trees, strict=True)))
    log_probs: list[Tensor] = [torch.empty(0)] * len(trees)
    entropies: list[Tensor] = [torch.empty(0)] * len(trees)
    for batch in batches:
        packed = [pack(prompts[i].length, trees[i]) for i in batch]
        hidden = layout.hidden(policy, [prompts[i] for i in batch], packed, [trees[i] for i in batch])
        parent_of, rows = [], 0
        for group in packed:
            parent_of.append(group.parent_of.to(policy.device) + rows)
            rows += group.parents.shape[0]
        nodes = torch.cat([trees[i].token.to(policy.device) for i in batch])
        values, entropy = policy.read(hidden, torch.cat(parent_of), nodes)
        sizes = [trees[i].num_nodes for i in batch]
        for i, value, spread in zip(batch, values.split(sizes), entropy.split(sizes), strict=True):
            log_probs[i], entropies[i] = unpack(value, trees[i]), unpack(spread, trees[i])
    pairs = list(zip(prompts, trees, strict=True))
    plain = sum(p.length * t.lengths.shape[0] + int((t.lengths - 1).clamp_min(0).sum()) for p, t in pairs)
    return Scores(log_probs, entropies, sum(layout.size(p.length, t) for p, t in pairs), plain)


def tree_hidden(
    policy: "Policy", prompts: Sequence["Prompt"], packed: Sequence[PackedGroup], trees: Sequence[PrefixTree]
) -> Tensor:
    """Run packed rows and return hidden states (Q, D) at all groups' parents, group after group."""
    rows = collate([prompt.embeddings for prompt in prompts], list(packed), policy.embed_tokens)
    hidden = policy.decode(
        rows.embeddings,
        attention_mask=policy.attention.masks(rows.visible, rows.position, rows.position, policy.base.dtype),
        position_ids=rows.position,
        use_cache=False,
    )
    return hidden.flatten(0, 1)[rows.parents]


def prompt_once_hidden(
    policy: "Policy", prompts: Sequence["Prompt"], packed: Sequence[PackedGroup], trees: Sequence[PrefixTree]
) -> Tensor:
    """Run each prompt once and its completions behind its cache; returns hidden states (Q, D) at the parents."""
    return torch.cat([_prompt_once(policy, *one) for one in zip(prompts, packed, trees, strict=True)])


def _prompt_once(policy: "Policy", prompt: "Prompt", group: PackedGroup, tree: PrefixTree) -> Tensor:
    tokens, lengths, places = _branches(policy, group, tree)
    cache = DynamicCache(config=policy.text_config)
    hidden = policy.decode(prompt.embeddings[None], past_key_values=cache, use_cache=True)[0, -1:]
    if tokens.shape[1] > 0:
        cache.reorder_cache(torch.zeros(len(lengths), dtype=torch.long, device=policy.device))  # type: ignore[arg-type]
        slots = torch.arange(prompt.length + tokens.shape[1], device=policy.device)
        behind = policy.decode(
            policy.embed_tokens(tokens),
            attention_mask=(slots < prompt.length + lengths[:, None]).long(),
            position_ids=slots[prompt.length :].expand(len(lengths), -1),
            past_key_values=cache,
            use_cache=True,
        )
        hidden = torch.cat([hidden, behind.flatten(0, 1)])
    return hidden[places]


def copies_hidden(
    policy: "Policy", prompts: Sequence["Prompt"], packed: Sequence[PackedGroup], trees: Sequence[PrefixTree]
) -> Tensor:
    """Run a copy of the prompt before every distinct completion; returns hidden states (Q, D) at the parents."""
    return torch.cat([_copies(policy, *one) for one in zip(prompts, packed, trees, strict=True)])


def _copies(policy: "Policy", prompt: "Prompt", group: PackedGroup, tree: PrefixTree) -> Tensor:
    tokens, lengths, places = _branches(policy, group, tree)
    copies = prompt.embeddings[None].expand(len(lengths), -1, -1)
    slots = torch.arange(prompt.length + tokens.shape[1], device=policy.device)
    hidden = policy.decode(
        torch.cat([copies, policy.embed_tokens(tokens).to(copies.dtype)], 1),
        attention_mask=(slots < prompt.length + lengths[:, None]).long(),
        position_ids=slots.expand(len(lengths), -1),
        use_cache=False,
    )
    return torch.cat([hidden[0, prompt.length - 1 : prompt.length], hidden[:, prompt.length :].flatten(0, 1)])[places]


def _branches(policy: "Policy", group: PackedGroup, tree: PrefixTree) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a group into its distinct completions without their last token, (C, T), right-padded.

    Returns:
        Tokens (C, T), lengths (C,), and for each of the group's parents its place (Q,) in the flat C·T hidden states
        counted from 1; 0 is the prompt's last position.
    """
    device, home = policy.device, tree.node.device  # the tree's own, wherever it was built
    if tree.num_nodes == 0:  # every completion is empty: the prompt alone, and nothing to read at it
        nothing = torch.zeros(1, 0, dtype=torch.long, device=device)
        return nothing, nothing.sum(1), nothing[0]
    ends = tree.node.gather(1, (tree.lengths - 1).clamp_min(0)[:, None]).squeeze(1)
    ends = torch.where((tree.lengths > 0) & tree.is_leaf[ends], ends, -1)  # what runs on in another is covered by it
    order = ends.argsort(stable=True)
    ends = ends[order]
    first = torch.ones_like(ends, dtype=torch.bool)
    first[1:] = ends[1:] != ends[:-1]
    chosen = order[first & (ends >= 0)]  # for every leaf, ascending, the first completion that ends there
    lengths = tree.lengths[chosen] - 1
    tokens = tree.tokens[chosen, : int(lengths.max())]
    fed = torch.arange(tokens.shape[1], device=home) < lengths[:, None]
    place = torch.zeros(tree.num_nodes, dtype=torch.long, device=home)
    slots = torch.arange(tokens.numel(), device=home).view(tokens.shape)
    place[tree.node[chosen, : tokens.shape[1]][fed]] = 1 + slots[fed]
    inner = (~tree.is_leaf).nonzero().squeeze(1)  # packed row P + i holds inner node i
    rows = group.parents - group.prompt_length
    places = torch.where(rows < 0, 0, place[inner[rows.clamp_min(0)]] if len(inner) else 0)
    return tokens.masked_fill(~fed, 0).to(device), lengths.to(device), places.to(device)


@dataclass(frozen=True)
class _Way:
    """Hold how a layout runs a batch of groups, and how many positions a group costs: (P, tree) → int."""

    hidden: Callable[..., Tensor]
    size: Callable[[int, PrefixTree], int]


def _tree_size(prompt_length: int, tree: PrefixTree) -> int:
    return prompt_length + int((~tree.is_leaf).sum())


def _branches_size(tree: PrefixTree) -> int:
    return int(tree.is_leaf.sum()) * int((tree.lengths - 1).clamp_min(0).max())


LAYOUTS: dict[Layout, _Way] = {
    "tree": _Way(tree_hidden, _tree_size),
    "prompt_once": _Way(prompt_once_hidden, lambda length, tree: length + _branches_size(tree)),
    "copies": _Way(copies_hidden, lambda length, tree: max(int(tree.is_leaf.sum()), 1) * length + _branches_size(tree)),
}
