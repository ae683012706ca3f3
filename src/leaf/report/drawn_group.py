"""A recorded group as a drawable tree: stretches of tokens, who shares them, boundaries, nodes, credit by any rule.

What `leaf tree` prints and what the report's explorer shows is taken from here.
"""

import codecs
import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from leaf.config import LeafConfig
from leaf.credit import PrefixTree, credit_rule, leaf_spans, select_boundaries
from leaf.credit.values import known_rewards, nothing_to_learn, root_mean, scored_completions

END = "■"  # the end-of-sequence token


class GroupTree:
    """Read one record of groups.jsonl: the prefix tree of its completions, cut into stretches.

    A stretch is a run of tokens that the same completions share, up to the next retained node, fork or end. Boundaries
    and retained nodes are LEAF's whatever the rule, so that rules can be compared on the same tree.

    Attributes:
        record: the line of groups.jsonl, as `leaf.train.records.group_record` makes it.
        prefixes: the prefix tree, N nodes.
        rewards: (K,) float64, NaN = unscored.
        surprisal: (K, T) float64 nats as recorded, 0 at padding.
        boundaries: LEAF's, ascending, by the options of the run.
        retained: LEAF's retained nodes with a span that ends there (n in `size`, V̂ in `value`).
        scored: (K,) True where a completion counts.
        idle: nothing to learn: fewer than two scored completions, or equal rewards.
        texts: text of every token by completion; the end-of-sequence token is ■.
        children: nodes below a node; below −1 those after the prompt.
        members: completions through a node.
        ends: completions whose last token is a node; at −1 the empty ones.
    """

    def __init__(self, record: dict[str, Any], recipe: LeafConfig):
        self.record = record
        self._lengths = [len(ids) for ids in record["token_ids"]]
        self._width = max(self._lengths, default=0)
        self.prefixes = PrefixTree.build(self._padded("token_ids", torch.long), torch.tensor(self._lengths).long())
        self.rewards = torch.tensor([torch.nan if r is None else r for r in record["rewards"]], dtype=torch.float64)
        self.surprisal = self._padded("surprisal", torch.float64)
        self._options = dict(recipe.credit_options) if recipe.credit == "leaf" else {}
        defaults = {p.name: p.default for p in inspect.signature(select_boundaries).parameters.values()}
        chosen_by = {name: self._options[name] for name in defaults if name in self._options}
        if all(value == defaults[name] for name, value in chosen_by.items()):
            # Recorded from the exact surprisal, which the record holds rounded.
            self._options["boundaries"] = torch.tensor(record["boundaries"], dtype=torch.long)
        chosen, spans = leaf_spans(self.prefixes, self.rewards, surprisal=self.surprisal, **self._options)
        self.boundaries: list[int] = chosen.tolist()
        self.retained = {span.node: span for row in spans for span in row if span.node >= 0}
        self.scored = scored_completions(self.prefixes, self.rewards)
        self.idle = nothing_to_learn(self.rewards, self.scored)
        self.texts = [pieces(*pair) for pair in zip(record["tokens"], record["completions"], strict=True)]
        for text, cut in zip(self.texts, record["truncated"], strict=True):
            if text and not cut:
                text[-1] = END
        self.children: dict[int, list[int]] = {}
        for node, parent in enumerate(self.prefixes.parent.tolist()):
            self.children.setdefault(parent, []).append(node)
        self.members: list[list[int]] = [[] for _ in range(self.prefixes.num_nodes)]
        self.ends: dict[int, list[int]] = {}
        for k, path in enumerate(self.prefixes.node.tolist()):
            length = self._lengths[k]
            for node in path[:length]:
                self.members[node].append(k)
            self.ends.setdefault(path[length - 1] if length else -1, []).append(k)

    def advantages(self, credit: str | None = None) -> Tensor:
        """Return (K, T) float64 advantages, 0 at padding: as recorded, or of a rule on the same rollouts.

        LEAF takes the options of a run that trained with it.
        """
        if credit is None:
            return self._padded("advantages", torch.float64)
        rule = credit_rule(credit, **(self._options if credit == "leaf" else {}))
        return rule(self.prefixes, self.rewards, surprisal=self.surprisal).double()

    def root(self) -> tuple[int, float]:
        """Return n and V̂ of the root."""
        return int(self.scored.sum()), float(root_mean(known_rewards(self.rewards, self.scored), self.scored))

    def below(self, node: int) -> list[int]:
        """Return a node's children, those of most completions first; of −1, the nodes after the prompt."""
        return sorted(self.children.get(node, []), key=lambda child: (-len(self.members[child]), self.members[child]))

    def stretch(self, node: int) -> list[int]:
        """Return the nodes from this one on to the next retained node, fork or end."""
        stretch = [node]
        while node not in self.retained and node not in self.ends and len(self.children.get(node, [])) == 1:
            node = self.children[node][0]
            stretch.append(node)
        return stretch

    def position(self, node: int) -> int:
        """Return where a node's token stands in its completions, from 0."""
        return int(self.prefixes.depth[node])

    def text(self, node: int) -> str:
        """Return the text of a node's token."""
        return self.texts[self.members[node][0]][self.position(node)]

    def _padded(self, field: str, dtype: torch.dtype) -> Tensor:
        rows = [[*row, *[0] * (self._width - len(row))] for row in self.record[field]]
        return torch.tensor(rows, dtype=dtype).reshape(len(rows), self._width)


# -- tokens as text ----------------------------------------------------------------------------------------------------
# The alphabet of byte-level BPE: printable bytes stand for themselves, the others for the characters from 256 on.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}


def pieces(tokens: Sequence[str], completion: str) -> list[str]:
    """Return the text of each token, from the vocabulary's spelling of it.

    Vocabularies spell tokens in bytes (Ġ for a space) or as SentencePiece does (▁); the one that gives the completion
    is right. A character cut between tokens appears at the token that completes it.
    """
    spelt = [_decoded([_byte_level(token) for token in tokens]), _decoded([_sentence_piece(token) for token in tokens])]
    return next((found for found in spelt if completion in "".join(found)), spelt[1])


def _decoded(raw: Sequence[bytes]) -> list[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return [decoder.decode(token, final=i + 1 == len(raw)) for i, token in enumerate(raw)]


def _byte_level(token: str) -> bytes:
    if all(char in _BYTE_OF for char in token):
        return bytes(_BYTE_OF[char] for char in token)
    return token.encode(errors="replace")  # an added token is spelt as it is


def _sentence_piece(token: str) -> bytes:
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode(errors="replace")
