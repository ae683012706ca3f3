"""Decode the distinct prefixes of a batch of groups, one token further at a time.

A decoder holds rows, one for every distinct prefix that still grows. `advance(parent, token)` makes new rows: row i
continues row parent[i] by token[i]. So completions that agree so far share one row until they part, and rows whose
completions have all ended are simply not continued.

TreeDecoder keeps one cache line per prompt: the prompt once, and behind it every node decoded so far; a tree mask lets
a row see its own prefix only. RowDecoder keeps a line of cache per row, for models that take no such mask.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from leaf.model.policy import Policy, Prompt


class Decoder(Protocol):
    """What the sampler needs: logits of the first rows (one per prompt), and of every further generation of rows."""

    def start(self) -> Tensor:
        """Run the prompts and return float32 logits (P, V) at the policy's temperature."""
        ...

    def advance(self, parent: Tensor, token: Tensor) -> Tensor:
        """Continue rows parent (F,), ascending, by token (F,) and return the new rows' logits (F, V)."""
        ...


def decoder(policy: Policy, prompts: Sequence[Prompt]) -> Decoder:
    """Return the decoder that suits the policy's layers."""
    return TreeDecoder(policy, prompts) if policy.attention.packable else RowDecoder(policy, prompts)


class TreeDecoder:
    """Decode with one cache line per prompt and a tree mask: P lines, Q new slots per line and step, S slots so far."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt]):
        self.policy, self.prompts = policy, prompts
        # Without a configuration all layers keep everything: windows are in the mask, by position, not by slot.
        self.cache = DynamicCache()
        self.device = prompts[0].embeddings.device

    def start(self) -> Tensor:
        """Prefill each prompt once."""
        lengths = torch.tensor([prompt.length for prompt in self.prompts], device=self.device)
        embeddings = torch.nn.utils.rnn.pad_sequence([p.embeddings for p in self.prompts], batch_first=True)
        slots = torch.arange(embeddings.shape[1], device=self.device)
        real = slots < lengths[:, None]  # (P, S)
        self.position = slots.expand(len(self.prompts), -1)
        own = torch.eye(len(slots), dtype=torch.bool, device=self.device)
        visible = (slots[:, None] >= slots) & real[:, None, :] | own  # padding sees itself, so no softmax is empty
        hidden = self._run(embeddings, self.position, visible)
        self.line = torch.arange(len(self.prompts), device=self.device)  # cache line of every row
        self.visible = real  # (F, S) slots that a row's successor sees
        self.depth = lengths  # (F,) position of a row's successor
        return self.policy.logits(hidden[self.line, lengths - 1])

    def advance(self, parent: Tensor, token: Tensor) -> Tensor:
        """Continue rows by one token each; lines without rows leave the cache."""
        lines, line = torch.unique_consecutive(self.line[parent], return_inverse=True)
        if len(lines) < self.position.shape[0]:
            self.cache.reorder_cache(lines)  # type: ignore[arg-type]
            self.position = self.position[lines]
        counts = torch.bincount(line)
        column = torch.arange(len(line), device=self.device) - (counts.cumsum(0) - counts)[line]
        width = int(counts.max())
        shape = (len(lines), width)
        tokens = torch.zeros(shape, dtype=torch.long, device=self.device).index_put((line, column), token)
        depth = torch.zeros(shape, dtype=torch.long, device=self.device).index_put((line, column), self.depth[parent])
        own = torch.eye(width, dtype=torch.bool, device=self.device)
        past = torch.zeros(*shape, self.position.shape[1], dtype=torch.bool, device=self.device)
        past[line, column] = self.visible[parent]
        visible = torch.cat([past, own.expand(len(lines), -1, -1)], 2)
        self.position = torch.cat([self.position, depth], 1)
        hidden = self._run(self.policy.embed_tokens(tokens), depth, visible)
        self.line, self.visible, self.depth = line, visible[line, column], self.depth[parent] + 1
        return self.policy.logits(hidden[line, column])

    def _run(self, embeddings: Tensor, position: Tensor, visible: Tensor) -> Tensor:
        policy = self.policy
        return policy.decode(
            embeddings,
            attention_mask=policy.attention.masks(visible, position, self.position, policy.base.dtype),
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
        )


class RowDecoder:
    """Decode with a cache line per row and transformers' own masks: for recurrent layers and mask-free kernels."""

    def __init__(self, policy: Policy, prompts: Sequence[Prompt]):
        self.policy, self.prompts = policy, prompts
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
        position = (self.mask.cumsum(-1) - 1).clamp_min(0)
        self.depth = position[:, -1]
        return self._run(embeddings, position)

    def advance(self, parent: Tensor, token: Tensor) -> Tensor:
        """Continue rows by one token each; cache lines are copied where rows part and dropped where they end."""
        if len(parent) != len(self.depth) or not torch.equal(parent, torch.arange(len(parent), device=parent.device)):
            self.cache.reorder_cache(parent)  # type: ignore[arg-type]
        self.mask = torch.nn.functional.pad(self.mask[parent], (0, 1), value=1)
        self.depth = self.depth[parent] + 1
        return self._run(self.policy.embed_tokens(token[:, None]), self.depth[:, None])

    def _run(self, embeddings: Tensor, position: Tensor) -> Tensor:
        policy = self.policy
        hidden = policy.decode(
            embeddings,
            attention_mask=self.mask,
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
        )
        return policy.logits(hidden[:, -1])
