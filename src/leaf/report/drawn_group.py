"""A recorded group as it is drawn: stretches of tokens, who shares them, boundaries, nodes, and the credit of any rule.

`leaf tree` prints it, and the report's explorer shows it.
"""

import codecs
import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from leaf.config import LeafConfig
from leaf.credit import (
    PrefixTree,
    SetDraw,
    Span,
    credit_rule,
    distinct_rules,
    leaf_spans,
    select_boundaries,
    weighs_draws,
)
from leaf.credit.sets import shares_of_draw
from leaf.credit.values import counted_completions, known_rewards, nothing_to_learn, root_mean, scored_completions
from leaf.errors import ConfigError

END = "■"  # the end-of-sequence token


@dataclass(frozen=True)
class Stretch:
    """A run of tokens that the same completions share, up to the next retained node, fork or end.

    Attributes:
        above: the number of the stretch that this one continues; −1 for the prompt.
        start: position of its first token in its completions, from 0.
        texts: text of each token; the end-of-sequence token is ■.
        members: completions through it.
        ends: completions whose last token is its last one.
        further: other stretches continue it.
        retained: its last node is one of LEAF's retained nodes.
        size: n of the last node, its scored completions.
        value: V̂ of the last node, NaN without scored completions.
        mass: of distinct completions, the probability of those through the last node, and that of the node, which
            completions outside of the group begin with too; None for independent ones.
    """

    above: int
    start: int
    texts: list[str]
    members: list[int]
    ends: list[int]
    further: bool
    retained: bool
    size: int
    value: float
    mass: tuple[str, str] | None = None


class DrawnGroup:
    """One record of groups.jsonl: the prefix tree of its completions, cut into stretches.

    Boundaries and retained nodes are LEAF's whatever the rule, so that rules can be compared on the same tree.

    Attributes:
        record: the line of groups.jsonl, as `leaf.train.records.group_record` makes it.
        tree: the prefix tree.
        rewards: (K,) float64, NaN = unscored.
        surprisal: (K, T) float64 nats as recorded, 0 at padding.
        draw: of distinct completions; None for independent ones.
        shares: (K,) float64, how many completions each of the distinct ones stands for by its weight; else None.
        boundaries: LEAF's, ascending, by the options of the run.
        size: n of the root, the scored completions.
        value: V̂ of the root, their mean reward.
        idle: why nothing can be learned from the group, None if something can.
        empty: completions without a token.
    """

    def __init__(self, record: dict[str, Any], recipe: LeafConfig):
        lengths = [len(ids) for ids in record["token_ids"]]
        self.record = record
        self.tree = PrefixTree.build(_padded(record["token_ids"], torch.long), torch.tensor(lengths).long())
        self.rewards = torch.tensor([torch.nan if r is None else r for r in record["rewards"]], dtype=torch.float64)
        self.surprisal = _padded(record["surprisal"], torch.float64)
        self.draw = _draw(record)
        # As the run's rule weighed them; LEAF's own spans below count them as LEAF does.
        self.shares = None if self.draw is None else len(lengths) * torch.tensor(record["weight"]).double()
        self._leaf_options = _leaf_options(record, recipe)
        self._own_options = {recipe.credit: recipe.credit_options}
        cut = {"surprisal": self.surprisal, "shares": shares_of_draw(self.draw), **self._leaf_options}
        boundaries, spans = leaf_spans(self.tree, self.rewards, **cut)
        self.boundaries: list[int] = boundaries.tolist()
        scored = scored_completions(self.tree, self.rewards)
        self.size = int(scored.sum())
        part = counted_completions(scored, self.shares)
        self.value = float(root_mean(known_rewards(self.rewards, scored), part))
        self.idle = None
        if nothing_to_learn(self.rewards, scored):
            few = self.size < 2
            self.idle = "fewer than two completions have a reward" if few else "all rewards in this group are equal"
        self.empty = [k for k, length in enumerate(lengths) if length == 0]
        self._scored = scored
        self._retained = {span.node: span for row in spans for span in row if span.node >= 0}

    @cached_property
    def stretches(self) -> list[Stretch]:
        """Cut the tree into stretches; only whoever draws a group needs them."""
        count, value = self.tree.node_count(self._scored), self.tree.node_mean(self.rewards, self.shares)
        found = _stretches(self.tree, count, value, self._retained, token_texts(self.record))
        if self.draw is None:
            return found
        sizes = [int(self._scored[one.members].sum()) for one in found]  # LEAF's n has the shares in it
        return [replace(one, size=n, mass=self._masses(one)) for one, n in zip(found, sizes, strict=True)]

    @property
    def mass(self) -> str | None:
        """Write the probability of all distinct completions together; None for independent ones."""
        return None if self.draw is None else in_short(float(self.draw.log_prob.logsumexp(0)))

    def _masses(self, stretch: Stretch) -> tuple[str, str]:
        """Compute the probability of the group's completions through a stretch, and that of the whole branch."""
        assert self.draw is not None
        nats = self.surprisal[stretch.members[0], : stretch.start + len(stretch.texts)].sum()
        return in_short(float(self.draw.log_prob[stretch.members].logsumexp(0))), in_short(-float(nats))

    def advantages(self, credit: str | None = None) -> Tensor:
        """Compute the (K, T) float64 advantages of a rule on the same rollouts, 0 at padding; None: those recorded.

        The rule that the run trained with takes the run's options.

        Raises:
            ConfigError: the rule is unknown, sees a whole batch, or does not go with how the completions were drawn.
        """
        if credit is None:
            return _padded(self.record["advantages"], torch.float64)
        options = self._leaf_options if credit == "leaf" else self._own_options.get(credit, {})
        rule = credit_rule(credit, **options)
        drawn = {} if self.draw is None else {"draw": self.draw}
        if drawn and not weighs_draws(credit):
            raise ConfigError(
                f"The credit rule {credit} takes plain means, and these completions are distinct, with weights. Choose "
                f"{', '.join(distinct_rules())}."
            )
        return rule(self.tree, self.rewards, surprisal=self.surprisal, **drawn).double()


def _padded(rows: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    width = max(map(len, rows), default=0)
    padded = [[*row, *[0] * (width - len(row))] for row in rows]
    return torch.tensor(padded, dtype=dtype).reshape(len(rows), width)  # a group of empty completions too is 2-D


def _draw(record: Mapping[str, Any]) -> SetDraw | None:
    """Read the draw of distinct completions; a record that does not say what is outside tells it by their mass."""
    if "log_prob" not in record:
        return None
    draw = SetDraw.of(torch.tensor(record["log_prob"], dtype=torch.float64))
    if "log_rest" not in record:
        return draw
    outside = (-math.inf if record[name] is None else record[name] for name in ("log_rest", "threshold"))
    return SetDraw(draw.log_prob, *(torch.tensor(value, dtype=torch.float64) for value in outside))


def in_short(log_probability: float) -> str:
    """Write a probability in two or three digits; one that floating point has no number for as a power of e."""
    p = math.exp(log_probability)
    return f"e^{log_probability:.0f}" if p == 0 else f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def _leaf_options(record: dict[str, Any], recipe: LeafConfig) -> dict[str, Any]:
    """Choose LEAF's options on a record: those of the run, with the recorded boundaries if these fit.

    Boundaries are recorded by the default options, from the exact surprisal. The record has it rounded, which can move
    a boundary, so the recorded ones are better unless the run places boundaries in another way.
    """
    options = dict(recipe.credit_options) if recipe.credit == "leaf" else {}
    defaults = {p.name: p.default for p in inspect.signature(select_boundaries).parameters.values()}
    placed = all(options[name] == default for name, default in defaults.items() if name in options)
    if placed and "boundaries" not in options:
        options["boundaries"] = torch.tensor(record["boundaries"], dtype=torch.long)
    return options


def _stretches(
    tree: PrefixTree, sizes: Tensor, values: Tensor, retained: Mapping[int, Span], texts: Sequence[Sequence[str]]
) -> list[Stretch]:
    """Cut a tree into stretches, depth first: a stretch comes after the one it continues.

    Of those that continue the same one, the one of most completions comes first.

    Args:
        tree: N nodes.
        sizes, values: (N,) n and V̂ of every node.
        retained: node → LEAF's span that ends there.
        texts: text of every token by completion.
    """
    members: list[list[int]] = [[] for _ in range(tree.num_nodes)]
    ends: dict[int, list[int]] = {}
    for k, (path, length) in enumerate(zip(tree.node.tolist(), tree.lengths.tolist(), strict=True)):
        for node in path[:length]:
            members[node].append(k)
        if length:
            ends.setdefault(path[length - 1], []).append(k)
    below: dict[int, list[int]] = {}
    for node, parent in enumerate(tree.parent.tolist()):
        below.setdefault(parent, []).append(node)
    for children in below.values():  # the largest branch is drawn on top
        children.sort(key=lambda child: (-len(members[child]), members[child]))
    depth, count, mean = tree.depth.tolist(), sizes.tolist(), values.tolist()

    found: list[Stretch] = []
    waiting = [(-1, node) for node in reversed(below.get(-1, []))]  # a stack: the last one is drawn next
    while waiting:
        above, first = waiting.pop()
        last, size = first, 1
        while last not in retained and last not in ends and len(below[last]) == 1:
            last, size = below[last][0], size + 1
        waiting += [(len(found), child) for child in reversed(below.get(last, []))]
        start, through, span = depth[first], members[first], retained.get(last)
        found.append(
            Stretch(
                above=above,
                start=start,
                texts=list(texts[through[0]][start : start + size]),
                members=through,
                ends=ends.get(last, []),
                further=last in below,
                retained=span is not None,
                size=int(count[last] if span is None else span.size),
                value=mean[last] if span is None else span.value,
            )
        )
    return found


# -- tokens as text ----------------------------------------------------------------------------------------------------
# The alphabet of byte-level BPE: printable bytes stand for themselves, the others for the characters from 256 on.
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}


def token_texts(record: dict[str, Any]) -> list[list[str]]:
    """Spell every token of a record, by completion; the end-of-sequence token is ■."""
    texts = [pieces(*pair) for pair in zip(record["tokens"], record["completions"], strict=True)]
    for text, truncated in zip(texts, record["truncated"], strict=True):
        if text and not truncated:
            text[-1] = END
    return texts


def pieces(tokens: Sequence[str], completion: str) -> list[str]:
    """Spell each token as text, from the vocabulary's spelling of it.

    Vocabularies spell tokens in bytes (Ġ for a space) or as SentencePiece does (▁); the spelling that gives the
    completion is right. A character that is cut between tokens appears at the token that completes it.
    """
    spelt = [_decoded([_byte_level(token) for token in tokens]), _decoded([_sentence_piece(token) for token in tokens])]
    return next((found for found in spelt if completion in "".join(found)), spelt[1])


def _decoded(raw: Sequence[bytes]) -> list[str]:
    # An incremental decoder keeps the first bytes of a character until its last one has come.
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
