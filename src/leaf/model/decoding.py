"""Decode the distinct prefixes of a batch of groups, one token further at a time.

A decoder holds rows, one for every distinct prefix that still grows. `advance(parent, token)` makes new rows: row i
continues row parent[i] by token[i]. So completions that agree so far share one row until they part, and rows whose
completions have all ended are simply not continued.

TreeDecoder keeps one line of the cache per prompt: the prompt once, and behind it every node decoded so far. A tree
mask lets a row see its own prefix only. RowDecoder keeps a line of the cache per row, for models without such a mask.
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
        """Run the P prompts and compute float32 logits (P, V) at the policy's temperature."""
        ...

    def advance(self, parent: Tensor, token: Tensor) -> Tensor:
        """Continue the rows `parent` (F,), ascending, by `token` (F,) and compute the new rows' logits (F, V)."""
        ...


def decoder(policy: Policy, prompts: Sequence[Prompt]) -> Decoder:
    """Choose the decoder that suits the policy's layers."""
    return TreeDecoder(policy, prompts) if policy.attention.packable else RowDecoder(policy, prompts)


class TreeDecoder:
    """Decode with one line of the cache per prompt and a tree mask: P lines of S slots, up to Q new slots a step.

    A slot holds keys and values of one prompt position or one node. Slots are in order of time, so a row's prefix is
    spread over its line and `visible` says where.
    """

    def __init__(self, policy: Policy, prompts: Sequence[Prompt]):
        self.policy, self.prompts = policy, prompts
        # Without a configuration the cache keeps every slot of every layer. One with windows would drop the oldest
        # slots, but a window reaches back by position, and the mask already sees to it.
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
        self.line = torch.arange(len(self.prompts), device=self.device)  # (F,) line of every row
        self.visible = real  # (F, S) slots that a row's successor sees
        self.depth = lengths  # (F,) position of a row's successor
        return self.policy.logits(hidden[self.line, lengths - 1])

    def advance(self, parent: Tensor, token: Tensor) -> Tensor:
        """Continue rows by one token each; lines without rows leave the cache."""
        lines, line = torch.unique_consecutive(self.line[parent], return_inverse=True)
        if len(lines) < self.position.shape[0]:
            self.cache.reorder_cache(lines)  # type: ignore[arg-type]
            self.position = self.position[lines]
        # Lay the new rows out as (lines, Q), Q being the most that one line has. `line` ascends, so a row's column is
        # its number less the number of rows on the lines before its own.
        counts = torch.bincount(line)
        column = torch.arange(len(line), device=self.device) - (counts.cumsum(0) - counts)[line]
        width = int(counts.max())
        shape = (len(lines), width)
        tokens = torch.zeros(shape, dtype=torch.long, device=self.device).index_put((line, column), token)
        depth = torch.zeros(shape, dtype=torch.long, device=self.device).index_put((line, column), self.depth[parent])
        # A new row sees what its parent's successor sees, and its own slot among the new ones: not its siblings'.
        own = torch.eye(width, dtype=torch.bool, device=self.device)
        past = torch.zeros(*shape, self.position.shape[1], dtype=torch.bool, device=self.device)
        past[line, column] = self.visible[parent]
        visible = torch.cat([past, own.expand(len(lines), -1, -1)], 2)
        self.position = torch.cat([self.position, depth], 1)
        hidden = self._run(self.policy.embed_tokens(tokens), depth, visible)
        self.line, self.visible, self.depth = line, visible[line, column], self.depth[parent] + 1
        return self.policy.logits(hidden[line, column])

    def _run(self, embeddings: Tensor, position: Tensor, visible: Tensor) -> Tensor:
        """Decode new slots (P, Q, D) behind those in the cache and return their hidden states."""
        policy = self.policy
        return policy.decode(
            embeddings,
            attention_mask=policy.attention.masks(visible, position, self.position, policy.base.dtype),
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
        )


class RowDecoder:
    """Decode with a line of the cache per row and transformers' own masks.

    It is for recurrent layers, whose state belongs to one prefix, and for kernels without masks.
    """

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
