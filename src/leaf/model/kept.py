"""Keep prompts as the sampler ran them for the update: keys and values, cut out of the graph that made them.

On-policy, sampler and update run a prompt with the same weights. So the sampler's prefill may keep its graph. Then the
update runs the nodes of the tree alone, behind keys and values that are leaves of its own graph. Their gradients add up
from micro-batch to micro-batch, and `finish` sends them once through the prompts. The numbers are the same; what
changes is when a prompt is run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from leaf.credit.tree import PrefixTree
from leaf.model.loading import is_checkpointing
from leaf.model.policy import Policy, Prompt


@dataclass(eq=False)
class KeptPrompt:
    """A prompt as it was run, with a graph that awaits the gradient.

    Attributes:
        keys, values: (1, G, L, D) of every layer that has some; leaves.
        last: (D,) the hidden state of its last position; a leaf.
        sources: what these were cut out of, in the same order: keys, values, last.
        weights: which weights ran it.
    """

    keys: list[Tensor]
    values: list[Tensor]
    last: Tensor
    sources: list[Tensor]
    weights: tuple[float, ...]

    def __getstate__(self) -> dict[str, Any]:
        """Leave everything out of copies and files: a graph cannot be copied, and without it the gradient is lost."""
        return {**self.__dict__, "keys": [], "values": [], "sources": []}

    @property
    def length(self) -> int:
        """L, the number of positions; 0 once it was dropped."""
        return self.keys[0].shape[2] if self.keys else 0


def may_keep(policy: Policy, prompts: Sequence[Prompt]) -> bool:
    """Tell whether the graph of these prompts, all those of an update, may wait for the update.

    They have to fit the token budget together. Nothing may be trained in front of the decoder, no layer be computed
    again, and no layout but the tree be asked for.
    """
    fits = sum(prompt.length for prompt in prompts) < policy.token_budget
    planned = policy.attention.planned and policy.device.type == "cpu" and policy.layout in (None, "tree")
    return planned and enters_frozen(policy, prompts) and fits and not is_checkpointing(policy.language_model)


def enters_frozen(policy: Policy, prompts: Sequence[Prompt]) -> bool:
    """Tell whether what enters the decoder stays as it is: nothing is trained in front of it."""
    return type(policy).reembed is Policy.reembed and not any(prompt.embeddings.requires_grad for prompt in prompts)


def cut(policy: Policy, cache: DynamicCache, hidden: Tensor, lengths: list[int]) -> list[KeptPrompt]:
    """Cut prompts, which were run behind one another in one row, out of the graph.

    Args:
        policy: has run them.
        cache: their keys and values (1, G, S, D), layer by layer.
        hidden: (S, width).
        lengths: of the prompts.
    """
    ends = torch.tensor(lengths, device=hidden.device).cumsum(0) - 1
    layers: list[Any] = list(cache.layers)
    keys = zip(*(layer.keys.split(lengths, 2) for layer in layers), strict=True)
    values = zip(*(layer.values.split(lengths, 2) for layer in layers), strict=True)
    weights, half, made = weights_of(policy), len(layers), []
    for key, value, last in zip(keys, values, hidden[ends].unbind(), strict=True):
        sources = [*key, *value, last]
        # What stands before the first adapted layer has no graph, so no gradient is to gather there.
        leaves = [source.detach().requires_grad_(source.requires_grad) for source in sources]
        made.append(KeptPrompt(leaves[:half], leaves[half:-1], leaves[-1], sources, weights))
    return made


def weights_of(policy: Policy) -> tuple[float, ...]:
    """Tell the trained weights from later ones: by their norms, for torch counts no change by a fused optimiser."""
    norms = [parameter.detach().norm() for parameter in policy.parameters() if parameter.requires_grad]
    return tuple(torch.stack(norms).tolist()) if norms else ()


def behind(prompts: Sequence[KeptPrompt]) -> DynamicCache:
    """Make a cache of all prompts behind one another, through which gradients reach them."""
    cache = DynamicCache()
    for layer in range(len(prompts[0].keys)):
        keys, values = (
            torch.cat(states, 2) for states in zip(*((p.keys[layer], p.values[layer]) for p in prompts), strict=True)
        )
        cache.update(keys, values, layer)
    return cache


@contextmanager
def taken(policy: Policy, groups: Sequence[tuple[KeptPrompt | None, PrefixTree]]) -> Iterator[list[KeptPrompt] | None]:
    """Take what was kept of all prompts of an update, inside the block; behind it nothing of it is left.

    It is None where the update has to run the prompts: a graph is gone, other weights made it, or prompts and the nodes
    of a group do not fit the token budget together.
    """
    found = [one for one, _ in groups if one is not None]
    whole = bool(found) and len(found) == len(groups) and all(one.sources for one in found)
    right = whole and {one.weights for one in found} == {weights_of(policy)}
    nodes = max((int((~tree.is_leaf).sum()) for _, tree in groups), default=0)
    usable = right and sum(one.length for one in found) + nodes <= policy.token_budget
    if not usable:
        drop(found)
    try:
        yield found if usable else None
    finally:
        drop(found)


def finish(prompts: Sequence[KeptPrompt]) -> None:
    """Send the gradients that have gathered at prompts through what made them, once."""
    pairs = [
        (source, leaf.grad)
        for one in prompts
        for source, leaf in zip(one.sources, (*one.keys, *one.values, one.last), strict=True)
        if leaf.grad is not None
    ]
    if pairs:
        torch.autograd.backward([source for source, _ in pairs], [gradient for _, gradient in pairs])


def drop(prompts: Sequence[KeptPrompt]) -> None:
    """Let graphs go, and what was cut out of them."""
    for one in prompts:
        one.keys, one.values, one.sources = [], [], []
