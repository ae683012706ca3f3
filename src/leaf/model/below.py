"""Run the layers below the adapter once per rollout, for sampler, reference and update.

An adapter may be on upper layers only (`layers_to_transform`). Below the first of these the policy is its reference
whatever it has learned, and needs no graph. So the forward that comes first, most often the sampler's, leaves the
hidden states that enter the first adapted layer. Other forwards begin there: layers below pass their input on, and the
last of them gives what was left. Nothing of this happens where layer 0 has an adapter.

The model's own forward still runs around all layers, so numbers of layers, masks and further inputs stay as they are.
It is given up where layers tell one another more than hidden states (Gemma 3n shares keys and values), and
leaf.model.checks compares both ways at start-up.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from leaf.model.kept import enters_frozen
from leaf.model.packing import PackedGroup
from leaf.model.policy import Policy, Prompt


@dataclass(eq=False)
class Entry:
    """What enters the first adapted layer, of a prompt and its completions; empty until a forward fills it.

    Attributes:
        states: hidden states, those of the L prompt positions first, then one for every token that was fed.
        place: (K, T) or wider, the row of each token in `states`, −1 of one that was never fed.
    """

    states: Float[Tensor, "S D"] | None = None
    place: Int[Tensor, "K T"] | None = None

    def select(self, indices: list[int]) -> "Entry":
        """Keep some of the completions; the hidden states are shared."""
        return Entry(self.states, None if self.place is None else self.place[indices])

    def fill(self, states: Tensor, group: PackedGroup) -> None:
        """Take the hidden states (S, D) of a group's packed row."""
        row = torch.full((group.tree.num_nodes + 1,), -1)  # of every node; the last one is that of padding
        row[group.node] = group.prompt_length + torch.arange(len(group.node))
        self.states, self.place = states, row[group.tree.node]

    def of(self, group: PackedGroup, behind: int = 0) -> Tensor:
        """Put the hidden states in the order of a group's packed row, from position `behind` on."""
        assert self.states is not None
        assert self.place is not None
        tree, length = group.tree, group.prompt_length
        row = torch.full((tree.num_nodes + 1,), -1)
        row[tree.node] = self.place[:, : tree.node.shape[1]]
        rows = torch.cat([torch.arange(length), row[group.node]])[behind:]
        return self.states[rows.to(self.states.device)]


class Trail:
    """Follows completions through the sampler's generations of rows, to find what entered the layer of each token."""

    def __init__(self, completions: int, limit: int, device: torch.device):
        self.place, self.rows = torch.full((completions, limit), -1, device=device), 0

    def follow(self, before: Tensor) -> None:
        """Let every completion continue the one numbered `before` (A,); what is not continued is forgotten."""
        self.place = self.place[before]

    def add(self, completions: Tensor, step: int, row: Tensor, rows: int) -> None:
        """Note in which of the next generation's rows (A,) these completions (A,) feed their token of a step."""
        self.place[completions, step] = self.rows + row
        self.rows += rows

    def entries(self, entered: Sequence[Tensor], prompts: int) -> list[Entry]:
        """Make the entry of each prompt; none where not all was kept.

        Args:
            entered: what a decoder kept (leaf.model.decoding).
            prompts: their number; completions stand in order of prompt.
        """
        if not entered or sum(map(len, entered[prompts:])) != self.rows:
            return []
        made, tokens = [], torch.cat([entered[0][:0], *entered[prompts:]])
        for states, place in zip(entered[:prompts], self.place.chunk(prompts), strict=True):
            fed = place >= 0
            rows, found = place[fed].unique(return_inverse=True)
            own = torch.full_like(place, -1)
            own[fed] = len(states) + found
            made.append(Entry(torch.cat([states, tokens[rows]]), own.cpu()))
        return made


class Room:
    """How many hidden states the entries of a rollout may hold.

    They are as many as one forward of the token budget has at the entries of all adapted layers, a small part of what
    that forward keeps for its gradient.
    """

    def __init__(self, policy: Policy, first: int):
        self.first, self.left = first, policy.token_budget * (len(_layers(policy)) - first)

    def take(self, rows: int) -> bool:
        """Take room for this many, if there is."""
        if rows > self.left:
            return False
        self.left -= rows
        return True

    def holds(self, entry: Entry) -> bool:
        """Take room for an entry, if there is."""
        return entry.states is None or self.take(len(entry.states))


def layers_below(policy: Policy, prompts: Sequence[Prompt] = ()) -> int:
    """Count the decoder's layers below the first adapted one, if they may be run once for these prompts; else 0."""
    in_tree = policy.attention.packable and policy.layout in (None, "tree")
    if not (policy.shares_below and in_tree and enters_frozen(policy, prompts)):
        return 0
    first = first_adapted(policy)
    parts = [part for layer in _layers(policy)[:first] for part in layer.modules()]
    trained = any(p.requires_grad for part in parts for p in part.parameters(recurse=False))
    noisy = any(isinstance(part, nn.Dropout) and part.p > 0 for part in parts)
    noisy = noisy or bool(getattr(policy.text_config, "attention_dropout", 0.0))
    return 0 if trained or noisy else first


def first_adapted(policy: Policy) -> int:
    """Find the number of the lowest decoder layer that has an adapter; 0 if none has."""
    adapted = (any(isinstance(part, BaseTunerLayer) for part in layer.modules()) for layer in _layers(policy))
    return next((i for i, found in enumerate(adapted) if found), 0)


def offered(
    policy: Policy, prompts: Sequence[Prompt], entries: Sequence[Entry] | None, sizes: Sequence[int]
) -> Sequence[Entry | None]:
    """Choose the entries that a scoring of groups may begin from or fill: as many as there is room for.

    Args:
        policy: the model.
        prompts: of all groups.
        entries: of all groups; None where none are wanted.
        sizes: positions of each group.
    """
    first = 0 if entries is None else layers_below(policy, prompts)
    if entries is None or first == 0:
        return [None] * len(sizes)
    room = Room(policy, first)
    return [e if e.states is not None or room.take(size) else None for e, size in zip(entries, sizes, strict=True)]


def usable(entries: Sequence[Entry]) -> Sequence[Entry] | None:
    """Give entries that are all filled, or None."""
    return entries if all(entry.states is not None for entry in entries) else None


def decode(
    policy: Policy,
    embeddings: Tensor,
    groups: Sequence[PackedGroup],
    entries: Sequence[Entry | None],
    *,
    at: Tensor | None = None,
    behind_prompts: bool = False,
    **arguments: Any,
) -> Tensor:
    """Run the decoder stack on packed groups: from their entries on where all are filled, else fill these.

    Args:
        policy: the model.
        embeddings: (R, S, D), as `Policy.decode` takes them and its further arguments.
        groups: stand in the rows.
        entries: one of each group; None for one that nobody needs.
        at: (Q,) places of the groups' positions, one group after the other, among the R · S; None for all places.
        behind_prompts: whether the rows have the nodes alone.
    """
    first = layers_below(policy) if any(entry is not None for entry in entries) else 0
    if first == 0:
        return policy.decode(embeddings, **arguments)
    filled = [entry for entry in entries if entry is not None and entry.states is not None]
    if len(filled) == len(entries):
        parts = [e.of(g, g.prompt_length if behind_prompts else 0) for e, g in zip(filled, groups, strict=True)]
        states = torch.cat(parts)
        if at is not None:  # 1 at padding, as the embeddings are there (leaf.model.packing)
            padded = states.new_ones(embeddings.shape[0] * embeddings.shape[1], states.shape[-1])
            states = padded.index_copy_(0, at, states)
        with entering(policy, first, states.view(*embeddings.shape[:2], -1)):
            return policy.decode(embeddings, **arguments)
    with leaving(policy, first) as seen:
        hidden = policy.decode(embeddings, **arguments)
    if seen and not behind_prompts:
        states = seen[0].flatten(0, 1)
        parts = (states if at is None else states[at]).split([group.length for group in groups])
        for entry, group, part in zip(entries, groups, parts, strict=True):
            if entry is not None:
                entry.fill(part, group)
    return hidden


@contextmanager
def leaving(policy: Policy, first: int) -> Iterator[list[Tensor]]:
    """Note the hidden states (R, S, D) that enter layer `first` in every forward inside the block.

    There are none where `first` is 0, or where layers tell one another more than these.
    """
    seen: list[Tensor] = []
    if first == 0:
        yield seen
        return
    before, layer = _layers(policy)[first - 1 : first + 1]
    left: list[Any] = [None]

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        left[0] = output

    def enter(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        states = _states(*args, **kwargs)
        told = any(isinstance(given, dict) for given in (*args, *kwargs.values()))  # something that layers write into
        if states is left[0] and isinstance(states, Tensor) and states.dim() == 3 and not told:
            seen.append(states.detach())

    hooks = [before.register_forward_hook(leave), layer.register_forward_pre_hook(enter, with_kwargs=True)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def entering(policy: Policy, first: int, states: Tensor) -> Iterator[None]:
    """Let forwards inside the block enter layer `first` with these hidden states (R, S, D)."""
    below = _layers(policy)[:first]
    given = [layer.__dict__.get("forward") for layer in below]  # a forward that somebody has put on a layer
    # The last hook, so that what somebody else's hooks add, which `leaving` has seen, is not added again.
    last = below[-1].register_forward_hook(lambda *given: states)
    try:
        for layer in below:
            layer.forward = _states
        yield
    finally:
        last.remove()
        for layer, forward in zip(below, given, strict=True):
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = forward


def _states(*args: Any, **kwargs: Any) -> Any:
    """Find the hidden states among a decoder layer's arguments: the first one."""
    return args[0] if args else kwargs.get("hidden_states")


def _layers(policy: Policy) -> list[Any]:
    return list(policy.language_model.layers)
