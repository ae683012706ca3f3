"""Decode the distinct prefixes of a batch of groups, one token further at a time.

A decoder holds rows, one for every distinct prefix that still grows. `advance(parent, token)` makes new rows: row i
continues row parent[i] by token[i]. So completions that agree so far share one row until they part, and rows whose
completions have all ended are simply not continued.

PathDecoder keeps each prompt once and each row's own path. RowDecoder keeps a prompt for every row, for models whose
layers do not attend by leaf's plans.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from leaf.model.below import leaving
from leaf.model.kept import KeptPrompt
from leaf.model.paths import LayerPaths, PathCache, PathPlan, Slots, padded
from leaf.model.policy import Policy, Prompt
from leaf.model.prefill import prefill


class Decoder(Protocol):
    """What the sampler needs: logits of the first rows (one per prompt), and of every further generation of rows.

    Attributes:
        kept: the prompts with the graph that ran them, once it has started; none unless asked for.
        entered: what entered layer `first` (leaf.model.below), none unless asked for: (L, width) of each prompt, then
            of every generation of rows (F, width).
    """

    kept: Sequence[KeptPrompt]
    entered: Sequence[Tensor]

    def start(self) -> Tensor:
        """Run the P prompts and compute float32 logits (P, V) at the policy's temperature."""
        ...

    def advance(self, parent: Tensor, token: Tensor) -> Tensor:
        """Continue the rows `parent` (F,), ascending, by `token` (F,) and compute the new rows' logits (F, V)."""
        ...


def decoder(policy: Policy, prompts: Sequence[Prompt], *, keep: bool = False, first: int = 0) -> Decoder:
    """Choose the decoder that suits the policy's layers.

    Args:
        policy: the model.
        prompts: are continued.
        keep: whether prompts keep the graph that ran them, where `leaf.model.kept.may_keep` allows it.
        first: the layer whose inputs are kept where layers attend by plans; 0 for none.
    """
    if policy.attention.planned:
        return PathDecoder(policy, prompts, keep=keep, first=first)
    return RowDecoder(policy, prompts)


class PathDecoder:
    """Decode with each prompt's keys and values once and each row's own path behind them (leaf.model.paths)."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt], *, keep: bool = False, first: int = 0):
        self.policy, self.prompts, self.keep, self.first = policy, prompts, keep, first
        self.kept: Sequence[KeptPrompt] = ()
        self.entered: Sequence[Tensor] = ()
        self.device = prompts[0].embeddings.device

    def start(self) -> Tensor:
        """Prefill each prompt once."""
        policy, count = self.policy, len(self.prompts)
        self.lengths = torch.tensor([prompt.length for prompt in self.prompts], device=self.device)  # of those kept
        found = prefill(policy, self.prompts, keep=self.keep, first=self.first)
        self.kept, self.entered = found.kept, found.entered
        layers = {i: LayerPaths.behind(keys, found.values[i]) for i, keys in found.keys.items()}
        self.cache = PathCache(layers, Slots(torch.arange(count), torch.arange(count)), self.device)
        return policy.logits(found.hidden)

    def advance(self, parent: Tensor, token: Tensor) -> Tensor:
        """Continue rows by one token each; prompts without rows leave the cache, several at a time."""
        policy, cache = self.policy, self.cache
        kept = cache.follow(parent.cpu())
        if kept is not None:
            self.lengths = self.lengths[kept]
        # The language model runs on the slots, in which rows have no order.
        slot, line = cache.slots.of_row.to(self.device), cache.slots.line.to(self.device)
        token = torch.empty_like(token).index_copy_(0, slot, token)
        with leaving(policy, self.first) as seen:
            hidden = policy.decode(
                policy.embed_tokens(token[:, None]),
                attention_mask=policy.attention.plans(lambda window: PathPlan(cache, self._mask(window)), self.device),
                position_ids=(self.lengths[line] + cache.used)[:, None],
                past_key_values=cache,
                use_cache=True,
            )
        self.entered = [*self.entered, *(states[slot, 0] for states in seen)]
        cache.end_step()
        return policy.logits(hidden[slot, 0])

    def _mask(self, window: int | None) -> Tensor | None:
        """Hide padding, and what the window does not reach: (P, 1, L + t), or None where there is neither."""
        longest, used = self.cache.get_seq_length() - self.cache.used, self.cache.used
        if window is not None and window > longest + used:
            window = None
        if window is None and padded(used + 1) == used + 1 and bool((self.lengths == longest).all()):
            return None
        place = torch.arange(longest, device=self.device)
        visible = place < self.lengths[:, None]
        path = torch.arange(padded(used + 1), device=self.device)
        seen = path <= used
        if window is not None:  # it counts positions, of which the new token has lengths + used
            visible &= self.lengths[:, None] + used - place < window
            seen = seen & (used - path < window)
        hidden = ~torch.cat([visible, seen.expand(len(visible), -1)], 1)
        dtype = self.policy.base.dtype
        return torch.zeros(hidden.shape, dtype=dtype, device=self.device).masked_fill_(hidden, torch.finfo(dtype).min)[
            :, None
        ]


class RowDecoder:
    """Decode with a line of the cache per row and transformers' own masks.

    It is for recurrent layers, whose state belongs to one prefix, and for kernels that are not leaf's.
    """

    def __init__(self, policy: Policy, prompts: Sequence[Prompt]):
        self.policy, self.prompts = policy, prompts
        self.kept: Sequence[KeptPrompt] = ()
        self.entered: Sequence[Tensor] = ()
        self.cache = DynamicCache(config=policy.text_config)

    def start(self) -> Tensor:
        """Prefill each prompt once, left-padded so that all continue at the same slot."""
        longest = max(prompt.length for prompt in self.prompts)
        pads = [longest - prompt.length for prompt in self.prompts]
        embeddings = torch.stack(
            [
                torch.nn.functional.pad(prompt.embeddings, (0, 0, pad, 0))
                for prompt, pad in zip(self.prompts, pads, strict=True)
            ]
        )
        slots = torch.arange(longest, device=embeddings.device)
        self.mask = (slots >= torch.tensor(pads, device=embeddings.device)[:, None]).long()
        position = (self.mask.cumsum(-1) - 1).clamp_min(0)  # counts real slots; padding has any position
        self.depth = position[:, -1]
        return self._run(embeddings, position)

    def advance(self, parent: Tensor, token: Tensor) -> Tensor:
        """Continue rows by one token each; lines of the cache are copied where rows part and dropped where they end."""
        # Moving the cache copies all of it, so it stays where every row simply continues.
        if len(parent) != len(self.depth) or not torch.equal(parent, torch.arange(len(parent), device=parent.device)):
            self.cache.reorder_cache(parent)  # type: ignore[arg-type]
        self.mask = torch.nn.functional.pad(self.mask[parent], (0, 1), value=1)
        self.depth = self.depth[parent] + 1
        return self._run(self.policy.embed_tokens(token[:, None]), self.depth[:, None])

    def _run(self, embeddings: Tensor, position: Tensor) -> Tensor:
        """Decode new slots behind those in the cache and compute logits at the last one of each row."""
        policy = self.policy
        hidden = policy.decode(
            embeddings,
            attention_mask=self.mask,
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
        )
        return policy.logits(hidden[:, -1])
