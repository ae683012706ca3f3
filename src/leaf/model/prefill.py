"""Run each prompt once before its completions are decoded, and keep the keys and values of its positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from leaf.model.below import leaving
from leaf.model.blocks import Blocks, Cutter
from leaf.model.kept import KeptPrompt, cut
from leaf.model.policy import Policy, Prompt


@dataclass(frozen=True)
class Prefilled:
    """What P prompts of up to L positions leave behind.

    Attributes:
        keys, values: of every layer that has its own, by its index.
        hidden: the last hidden state of each prompt.
        kept: the prompts with the graph that ran them; none unless asked for.
        entered: (L, width) of each prompt what entered layer `first`; none where that is 0 (leaf.model.below).
    """

    keys: dict[int, Float[Tensor, "P H L D"]]
    values: dict[int, Float[Tensor, "P H L D"]]
    hidden: Float[Tensor, "P width"]
    kept: Sequence[KeptPrompt] = ()
    entered: Sequence[Tensor] = ()


def prefill(policy: Policy, prompts: Sequence[Prompt], *, keep: bool = False, first: int = 0) -> Prefilled:
    """Run prompts whose layers attend by plans: on a CPU behind one another in one row, elsewhere as padded rows.

    Args:
        policy: the model.
        prompts: embedded prompts.
        keep: whether to keep the graph, where `leaf.model.kept.may_keep` allows it.
        first: the layer whose inputs are kept; 0 for none.
    """
    device = prompts[0].embeddings.device
    lengths = torch.tensor([prompt.length for prompt in prompts], device=device)
    slots = torch.arange(int(lengths.max()), device=device)
    if device.type != "cpu":
        embeddings = torch.nn.utils.rnn.pad_sequence([prompt.embeddings for prompt in prompts], batch_first=True)
        position = slots.expand(len(prompts), -1)
        # Padding stands behind a prompt, which does not see what comes later. Its own rows see all before it.
        causal = (slots[:, None] >= slots).expand(len(prompts), -1, -1)
        masks = policy.attention.masks(causal, position, position, policy.base.dtype)
        with leaving(policy, first) as seen:
            hidden, cache = _run(policy, embeddings, masks, position)
        entered = [row[: prompt.length] for rows in seen for row, prompt in zip(rows, prompts, strict=True)]
        last = hidden[torch.arange(len(prompts)), lengths - 1]
        return Prefilled(*_taken(cache, policy.base.dtype), last, entered=entered)
    ends = lengths.cumsum(0)
    starts = ends - lengths

    def blocks(window: int | None) -> Blocks:
        cutter = Cutter(window, policy.base.dtype, device)
        pairs = zip(lengths.tolist(), starts.tolist(), strict=True)
        return Blocks([block for length, start in pairs for block in cutter.prompt(length, start)])

    if keep:
        torch.clear_autocast_cache()  # a copy of the adapter that was made without a graph would be taken
    with torch.set_grad_enabled(keep or torch.is_grad_enabled()), leaving(policy, first) as seen:
        hidden, cache = _run(
            policy,
            torch.cat([prompt.embeddings for prompt in prompts])[None],
            policy.attention.plans(blocks, device),
            torch.cat([slots[: prompt.length] for prompt in prompts])[None],
        )
        kept = cut(policy, cache, hidden[0], lengths.tolist()) if keep else ()
    place = torch.minimum(starts[:, None] + slots, ends[:, None] - 1)  # (P, L); padding repeats the last position
    entered = [part for row in seen for part in row[0].split(lengths.tolist())]
    return Prefilled(*_taken(cache, policy.base.dtype, place), hidden[0, ends - 1].detach(), kept, entered)


def _run(policy: Policy, embeddings: Tensor, mask: object, position: Tensor) -> tuple[Tensor, DynamicCache]:
    # Without a configuration the cache keeps every position of every layer. One with windows would drop the oldest,
    # but a window reaches back by position, and each step of decoding sees to it.
    cache = DynamicCache()
    hidden = policy.decode(
        embeddings, attention_mask=mask, position_ids=position, past_key_values=cache, use_cache=True
    )
    return hidden, cache


def _taken(
    cache: DynamicCache, dtype: torch.dtype, place: Tensor | None = None
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Take keys and values (P, H, L, D) out of a cache, layer by layer, so that there are never two copies of all.

    Args:
        cache: of P rows, or of one that has all prompts.
        dtype: of what is taken.
        place: (P, L) where the positions of the prompts are in that one row.
    """
    found: tuple[dict[int, Tensor], dict[int, Tensor]] = ({}, {})
    for i, layer in enumerate(cache.layers):
        if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
            for taken, part in zip(found, (layer.keys, layer.values), strict=True):
                whole = part if place is None else part[0].detach()[:, place].transpose(0, 1)
                taken[i] = whole.contiguous().to(dtype)
            layer.keys = layer.values = None
    return found
