"""Score completions: compute the log-probabilities of tokens that were sampled, with a graph for the update.

There are three ways to run the completions of a group through the language model. All give the same numbers.

tree         Per group the prompt, then the prefix tree of its completions (leaf.model.packing). On a CPU all groups
             stand in one row, which attends in blocks (leaf.model.blocks). Elsewhere, and where layers take no plan,
             every group has a row and a mask of all pairs. Prompts that the sampler kept are not run again.
prompt_once  The prompt once, its cache kept in the graph, then the completions as a batch behind it. For recurrent
             layers and for kernels that take no dense mask.
copies       The prompt copied for every completion, as a plain forward does. For the same models under gradient
             checkpointing, where the cache cannot be kept.

Each layout returns hidden states at the rows that `PackedGroup.parents` names, so one function reads all three.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache

from leaf.credit.tree import PrefixTree
from leaf.errors import ModelError
from leaf.model import below
from leaf.model.attention import refuse_long
from leaf.model.below import Entry, offered
from leaf.model.blocks import Blocks, Cutter
from leaf.model.kept import KeptPrompt, behind
from leaf.model.loading import is_checkpointing
from leaf.model.packing import PackedGroup, collate, join, micro_batches, pack, unpack
from leaf.model.policy import Policy, Prompt


@dataclass(frozen=True)
class Scores:
    """What scoring found, one (K, T) tensor per group; values are in nats at the policy's temperature, 0 at padding.

    Attributes:
        log_probs: log-probability of every token, differentiable.
        entropies: entropy of the distribution that each token comes from, without a graph.
        packed_tokens: rows that the forwards ran.
        plain_tokens: rows that K separate copies of every prompt would have needed.
    """

    log_probs: list[Tensor]
    entropies: list[Tensor]
    packed_tokens: int
    plain_tokens: int


def score(
    policy: Policy,
    prompts: Sequence[Prompt],
    trees: Sequence[PrefixTree],
    kept: Sequence[KeptPrompt] | None = None,
    entries: Sequence[Entry] | None = None,
) -> Scores:
    """Score the completions of each prompt's group, in as many forwards as the token budget asks for.

    Prompts that have been run (leaf.model.kept) are not run again; their part of the gradient waits for `finish`.
    Layers below the adapter (leaf.model.below) are not run for groups whose entry is filled; other entries are filled.

    How groups are batched changes only the last bits. Wrap the call in `policy.reference()` for the reference model,
    and in `torch.no_grad()` where no gradient is needed.

    Raises:
        ModelError: the policy's layout is not right for its layers, or a sequence is too long for its positions.
    """
    layout = layout_for(policy)
    refuse_long(policy.text_config, ((p.length, int(t.lengths.max())) for p, t in zip(prompts, trees, strict=True)))
    log_probs: list[Tensor] = [torch.empty(0)] * len(trees)
    entropies: list[Tensor] = [torch.empty(0)] * len(trees)
    sizes = [layout.size(prompt.length, tree) for prompt, tree in zip(prompts, trees, strict=True)]
    entered = offered(policy, prompts, entries, sizes)
    for batch in batches(policy, prompts, trees, kept):
        packed = [pack(prompts[i].length, trees[i]) for i in batch]
        if kept is None:
            embedded = policy.reembed([prompts[i] for i in batch])
            hidden = layout.hidden(policy, embedded, packed, [entered[i] for i in batch])
        else:
            hidden = _behind_kept(policy, [kept[i] for i in batch], packed, [entered[i] for i in batch])
        values, entropy = policy.read(hidden, _rows_of_nodes(packed, policy.device), _tokens(packed, policy.device))
        nodes = [trees[i].num_nodes for i in batch]
        for i, value, spread in zip(batch, values.split(nodes), entropy.split(nodes), strict=True):
            log_probs[i], entropies[i] = unpack(value, trees[i]), unpack(spread, trees[i])
    pairs = list(zip(prompts, trees, strict=True))
    # The last token of a completion is predicted, never fed.
    plain = sum(p.length * t.lengths.shape[0] + int((t.lengths - 1).clamp_min(0).sum()) for p, t in pairs)
    return Scores(log_probs, entropies, sum(sizes), plain)


def batches(
    policy: Policy,
    prompts: Sequence[Prompt],
    trees: Sequence[PrefixTree],
    kept: Sequence[KeptPrompt] | None = None,
) -> list[list[int]]:
    """Split groups (their indices) into the forwards that the token budget allows, groups of like size together."""
    if kept is not None:  # all prompts are kept, and what they leave of the budget is for nodes
        sizes = [int((~tree.is_leaf).sum()) for tree in trees]
        return micro_batches(sizes, policy.token_budget - sum(prompt.length for prompt in prompts))
    size = layout_for(policy).size
    lengths = [size(prompt.length, tree) for prompt, tree in zip(prompts, trees, strict=True)]
    return micro_batches(lengths, policy.token_budget)


def largest_batch(policy: Policy, prompts: Sequence[Prompt], trees: Sequence[PrefixTree]) -> int:
    """Count the padded tokens of the largest of these batches."""
    size = layout_for(policy).size
    split = batches(policy, prompts, trees)
    return max(len(batch) * max(size(prompts[i].length, trees[i]) for i in batch) for batch in split)


def _rows_of_nodes(packed: Sequence[PackedGroup], device: torch.device) -> Tensor:
    """Find the row of the hidden states (Q, D) that predicts each node, over the nodes (N,) of all groups in turn."""
    found, before = [], 0
    for group in packed:
        found.append(group.parent_of.to(device) + before)
        before += group.parents.shape[0]
    return torch.cat(found)


def _tokens(packed: Sequence[PackedGroup], device: torch.device) -> Tensor:
    return torch.cat([group.tree.token.to(device) for group in packed])


Entries = Sequence[Entry | None]  # of each group; None where its layers below the adapter are run, and nothing is left


# -- layouts -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Layout:
    """A way to run groups through the language model.

    Attributes:
        name: `tree`, `prompt_once` or `copies`.
        hidden: runs a batch, (policy, prompts, packed groups, entries) → hidden states (Q, D) at all groups' parents in
            turn.
        size: positions that a group costs, (L, tree) → int.
    """

    name: str
    hidden: Callable[[Policy, Sequence[Prompt], Sequence[PackedGroup], Entries], Tensor]
    size: Callable[[int, PrefixTree], int]


def layout_for(policy: Policy) -> Layout:
    """Choose the layout that the policy names, or else the fastest that is right for its layers.

    Raises:
        ModelError: the layout that the policy names is not right for its layers.
    """
    attention, checkpointing = policy.attention, is_checkpointing(policy.language_model)
    if policy.layout == "tree" and not attention.packable:
        raise ModelError(
            f"The layout 'tree' is not right for this language model: {attention.why_not}. Leave the layout out, or "
            "choose 'prompt_once' or 'copies'."
        )
    if policy.layout == "prompt_once" and checkpointing:
        raise ModelError(
            "The layout 'prompt_once' keeps the prompt's cache, which gradient checkpointing drops. Leave the layout "
            "out, or switch gradient_checkpointing off."
        )
    if policy.layout is not None:
        return LAYOUTS[policy.layout]
    if attention.packable:
        return LAYOUTS["tree"]
    # Under gradient checkpointing transformers drops the cache, so the prompt cannot be run once.
    return LAYOUTS["copies" if checkpointing else "prompt_once"]


def _tree(policy: Policy, prompts: Sequence[Prompt], packed: Sequence[PackedGroup], entries: Entries) -> Tensor:
    """Run one row of all groups behind one another in blocks; where layers take no plan, one row per group."""
    if policy.attention.planned and policy.device.type == "cpu":
        return _joined(policy, prompts, packed, entries)
    rows = collate([prompt.embeddings for prompt in prompts], list(packed), policy.embed_tokens)
    hidden = below.decode(
        policy,
        rows.embeddings,
        packed,
        entries,
        at=rows.places,
        attention_mask=policy.attention.masks(rows.visible, rows.position, rows.position, policy.base.dtype),
        position_ids=rows.position,
        use_cache=False,
    )
    return hidden.flatten(0, 1)[rows.parents]


def _joined(policy: Policy, prompts: Sequence[Prompt], packed: Sequence[PackedGroup], entries: Entries) -> Tensor:
    row = join([prompt.embeddings for prompt in prompts], list(packed), policy.embed_tokens)

    def blocks(window: int | None) -> Blocks:
        cutter = Cutter(window, policy.base.dtype, policy.device)
        made = []
        for group, start in zip(packed, row.starts, strict=True):
            nodes = start + group.prompt_length
            made += cutter.prompt(group.prompt_length, start) + cutter.tree(group, nodes, start, nodes)
        return Blocks(made)

    hidden = below.decode(
        policy,
        row.embeddings,
        packed,
        entries,
        attention_mask=policy.attention.plans(blocks, policy.device),
        position_ids=row.position,
        use_cache=False,
    )
    return hidden[0, row.parents]


def _behind_kept(policy: Policy, kept: Sequence[KeptPrompt], packed: Sequence[PackedGroup], entries: Entries) -> Tensor:
    """Run the nodes of all groups behind prompts that have been run."""
    lengths, sizes = [one.length for one in kept], [len(group.node) for group in packed]
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    nodes = [sum(sizes[:i]) for i in range(len(sizes))]

    def blocks(window: int | None) -> Blocks:
        cutter = Cutter(window, policy.base.dtype, policy.device)
        each = zip(packed, nodes, starts, strict=True)
        return Blocks([b for group, node, at in each for b in cutter.tree(group, node, at, sum(lengths) + node)])

    hidden = torch.stack([one.last for one in kept])
    tokens = torch.cat([group.token.to(policy.device) for group in packed])
    if len(tokens) > 0:
        behind_them = below.decode(
            policy,
            policy.embed_tokens(tokens[None]),
            packed,
            entries,
            behind_prompts=True,
            attention_mask=policy.attention.plans(blocks, policy.device),
            position_ids=torch.cat([g.position[g.prompt_length :].to(policy.device) for g in packed])[None],
            past_key_values=behind(kept),
            use_cache=True,
        )
        hidden = torch.cat([hidden, behind_them[0]])
    # A group's parents are its prompt's last position (−1 here) and inner nodes.
    rows = []
    for i, (group, node) in enumerate(zip(packed, nodes, strict=True)):
        inner = group.parents.to(policy.device) - group.prompt_length
        rows.append(torch.where(inner < 0, i, len(packed) + node + inner))
    return hidden[torch.cat(rows)]


def _prompt_once(policy: Policy, prompts: Sequence[Prompt], packed: Sequence[PackedGroup], _: Entries) -> Tensor:
    """Run each prompt once, group by group, and its completions as a batch behind its cache."""
    return torch.cat([_behind_prompt(policy, *one) for one in zip(prompts, packed, strict=True)])


def _behind_prompt(policy: Policy, prompt: Prompt, group: PackedGroup) -> Tensor:
    tokens, lengths, places = _branches(group, policy.device)
    cache = DynamicCache(config=policy.text_config)
    hidden = policy.decode(prompt.embeddings[None], past_key_values=cache, use_cache=True)[0, -1:]
    if tokens.shape[1] > 0:
        # Index 0 for every completion: each gets the prompt's line of the cache, and all their gradients return to it.
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


def _copies(policy: Policy, prompts: Sequence[Prompt], packed: Sequence[PackedGroup], _: Entries) -> Tensor:
    """Run a copy of the prompt before every distinct completion, group by group."""
    return torch.cat([_copied_prompt(policy, *one) for one in zip(prompts, packed, strict=True)])


def _copied_prompt(policy: Policy, prompt: Prompt, group: PackedGroup) -> Tensor:
    tokens, lengths, places = _branches(group, policy.device)
    copies = prompt.embeddings[None].expand(len(lengths), -1, -1)
    slots = torch.arange(prompt.length + tokens.shape[1], device=policy.device)
    hidden = policy.decode(
        torch.cat([copies, policy.embed_tokens(tokens).to(copies.dtype)], 1),
        attention_mask=(slots < prompt.length + lengths[:, None]).long(),
        position_ids=slots.expand(len(lengths), -1),
        use_cache=False,
    )
    # The prompt's last position is the same in every copy, so the first copy's is read.
    return torch.cat([hidden[0, prompt.length - 1 : prompt.length], hidden[:, prompt.length :].flatten(0, 1)])[places]


def _branches(group: PackedGroup, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Cut a group into its distinct completions without their last token, (C, T), right-padded.

    Returns:
        Tokens (C, T), lengths (C,), and for each of the group's parents its place (Q,) in the flat C·T hidden states
        counted from 1; 0 is the prompt's last position.
    """
    tree = group.tree
    home = tree.node.device  # the tree's own, wherever it was built
    if tree.num_nodes == 0:  # every completion is empty: the prompt alone, and nothing to read at it
        nothing = torch.zeros(1, 0, dtype=torch.long, device=device)
        return nothing, nothing.sum(1), nothing[0]
    ends = tree.node.gather(1, (tree.lengths - 1).clamp_min(0)[:, None]).squeeze(1)
    # A completion that another one continues is covered by it, so only leaves need a row.
    ends = torch.where((tree.lengths > 0) & tree.is_leaf[ends], ends, -1)
    # For every leaf, ascending, choose the first completion that ends there: equal ends are neighbours once sorted.
    order = ends.argsort(stable=True)
    ends = ends[order]
    first = torch.ones_like(ends, dtype=torch.bool)
    first[1:] = ends[1:] != ends[:-1]
    chosen = order[first & (ends >= 0)]
    lengths = tree.lengths[chosen] - 1
    tokens = tree.tokens[chosen, : int(lengths.max())]
    fed = torch.arange(tokens.shape[1], device=home) < lengths[:, None]
    # A node in several rows has the same hidden state in each; whichever is written last is read.
    place = torch.zeros(tree.num_nodes, dtype=torch.long, device=home)
    slots = torch.arange(tokens.numel(), device=home).view(tokens.shape)
    place[tree.node[chosen, : tokens.shape[1]][fed]] = 1 + slots[fed]
    rows = group.parents - group.prompt_length  # the packed row has inner node i at L + i; −1 is the prompt's end
    places = torch.where(rows < 0, 0, place[group.node[rows.clamp_min(0)]] if len(group.node) else 0)
    return tokens.masked_fill(~fed, 0).to(device), lengths.to(device), places.to(device)


def _tree_size(prompt_length: int, tree: PrefixTree) -> int:
    return prompt_length + int((~tree.is_leaf).sum())


def _branches_size(tree: PrefixTree) -> int:
    return int(tree.is_leaf.sum()) * int((tree.lengths - 1).clamp_min(0).max())


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("tree", _tree, _tree_size),
        Layout("prompt_once", _prompt_once, lambda length, tree: length + _branches_size(tree)),
        Layout("copies", _copies, lambda length, tree: max(int(tree.is_leaf.sum()), 1) * length + _branches_size(tree)),
    )
}
