"""Keep the keys and values of decoding: each prompt's once, and each live row's own path behind it.

A path is the tokens of one distinct prefix. Paths lie in slots without gaps, in no order. A row that is continued keeps
its slot; a row that parts from it gets a copy of its path in a free slot; where a row has ended, the last path moves
into its place. So only the paths of rows that part or end are copied, and the prompts' keys and values stay where they
are. A step costs about (rows) × (prompt + own path).

Letters: P prompts, L longest prompt, F rows, Q most rows of one prompt, t tokens of a path, H key-value heads, G query
heads for each of them, D their size.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from leaf.errors import ModelError

_ROOM = 32  # tokens that paths get room for at least when they have outgrown what they had
_PADDED = 16  # tokens; paths are read in multiples of it
_WORN = 0.75  # the prompts that continue are moved together once they are no larger share of those that are kept


@dataclass
class LayerPaths:
    """Keys and values of one layer."""

    prompt_keys: Float[Tensor, "P H L D"]
    prompt_values: Float[Tensor, "P H L D"]
    path_keys: Tensor  # (room for rows, H, room for tokens, D)
    path_values: Tensor

    @classmethod
    def behind(cls, keys: Tensor, values: Tensor) -> "LayerPaths":
        """Begin with the prompts and no path."""
        shape = (0, keys.shape[1], 0)
        return cls(keys, values, keys.new_empty(*shape, keys.shape[-1]), values.new_empty(*shape, values.shape[-1]))

    def add(self, keys: Tensor, values: Tensor, used: int) -> tuple[Tensor, Tensor]:
        """Write a token's keys and values (F, H, 1, D) behind the `used` ones of F paths, and return these, padded."""
        self._make_room(len(keys), width := padded(used + 1), used)
        self.path_keys[: len(keys), :, used : used + 1] = keys
        self.path_values[: len(keys), :, used : used + 1] = values
        return self.path_keys[: len(keys), :, :width], self.path_values[: len(keys), :, :width]

    def copy(self, source: Tensor, target: Tensor, rows: int, used: int) -> None:
        """Copy paths from slots to slots, so that `rows` of them are in use."""
        self._make_room(rows, used, used)
        for paths in (self.path_keys, self.path_values):
            paths[target, :, :used] = paths[source, :, :used]

    def keep_prompts(self, lines: Tensor) -> None:
        """Forget all prompts but these."""
        self.prompt_keys, self.prompt_values = self.prompt_keys[lines], self.prompt_values[lines]

    def _make_room(self, rows: int, tokens: int, used: int) -> None:
        self.path_keys = _roomier(self.path_keys, rows, tokens, used)
        self.path_values = _roomier(self.path_values, rows, tokens, used)


def padded(tokens: int) -> int:
    """Round up the length of paths: kernels are made for every new shape, which takes time and memory on a CPU."""
    return -(-tokens // _PADDED) * _PADDED


def _roomier(paths: Tensor, rows: int, tokens: int, used: int) -> Tensor:
    """Return paths with room for so many rows and tokens, by half more than before in what was too small."""
    had_rows, heads, had_tokens, size = paths.shape
    if rows <= had_rows and tokens <= had_tokens:
        return paths
    rows = had_rows if rows <= had_rows else max(rows, had_rows * 3 // 2)
    tokens = had_tokens if tokens <= had_tokens else max(tokens, had_tokens + max(_ROOM, had_tokens // 2))
    larger = paths.new_zeros(rows, heads, tokens, size)  # what stands behind a path counts 0 times, and must be finite
    larger[:had_rows, :, :used] = paths[:, :, :used]
    return larger


@dataclass(frozen=True)
class Slots:
    """Where the F rows lie, on the CPU: it is worked out there.

    Attributes:
        line: (F,) for every slot the prompt of its path, counted among those kept.
        of_row: (F,) the slot of every row.
    """

    line: Tensor
    of_row: Tensor

    def follow(self, parent: Tensor) -> tuple["Slots", Tensor, Tensor]:
        """Find slots for rows that continue the rows `parent` (F',), ascending.

        Returns:
            The new slots, and which paths have to be copied: from which slots, to which. None is both.
        """
        count = len(parent)
        source = self.of_row[parent]
        stays = torch.ones(count, dtype=torch.bool)
        stays[1:] = parent[1:] != parent[:-1]  # the first of several rows that part
        stays &= source < count
        free = torch.ones(count, dtype=torch.bool)
        free[source[stays]] = False
        slot = source.clone()
        slot[~stays] = free.nonzero().squeeze(1)
        line = torch.empty_like(slot)
        line[slot] = self.line[source]
        return Slots(line, slot), source[~stays], slot[~stays]


class Table:
    """How the F slots are laid out as (P, Q), for one product of all rows of a prompt with its keys.

    Places that no slot takes repeat slot 0, and nobody reads what comes out.
    """

    def __init__(self, line: Tensor, prompts: int, device: torch.device):
        counts = torch.bincount(line, minlength=prompts)
        self.shape = (prompts, int(counts.max()))
        order = line.argsort(stable=True)
        column = torch.empty_like(order)
        column[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[line[order]]
        self._line, self._column, self._device = line, column, device
        self._made: dict[int, tuple[Tensor, Tensor]] = {}

    def indices(self, heads: int) -> tuple[Tensor, Tensor]:
        """Compute for F·H rows of heads where they stand in P·H·Q ones, and for these which of the F·H ones it is."""
        if heads not in self._made:
            (prompts, width), head = self.shape, torch.arange(heads)
            place = (self._line[:, None] * heads + head) * width + self._column[:, None]
            which = torch.zeros(prompts * heads * width, dtype=torch.long)
            which[place.flatten()] = torch.arange(place.numel())
            self._made[heads] = (place.flatten().to(self._device), which.to(self._device))
        return self._made[heads]


class PathCache(DynamicCache):
    """The cache that the language model's layers write to while rows are decoded by one token each.

    Attributes:
        used: how many tokens of every path are written.
    """

    def __init__(self, prompts: dict[int, LayerPaths], slots: Slots, device: torch.device):
        super().__init__()
        self.paths, self.slots, self.used, self._device = prompts, slots, 0, device
        self._table: Table | None = None
        self._written: dict[int, tuple[LayerPaths, Tensor]] = {}  # by the identity of the keys that a layer was given
        self._read: set[int] = set()

    @property
    def prompts(self) -> int:
        """P, how many prompts are kept."""
        return next(iter(self.paths.values())).prompt_keys.shape[0]

    @property
    def table(self) -> Table:
        """The present layout of the slots."""
        if self._table is None:
            self._table = Table(self.slots.line, self.prompts, self._device)
        return self._table

    def follow(self, parent: Tensor) -> Tensor | None:
        """Let rows continue the rows `parent` (F',), ascending.

        Returns:
            The prompts that are still kept, by their former numbers, where some have been forgotten.
        """
        if len(parent) == len(self.slots.line) and torch.equal(parent, torch.arange(len(parent))):
            return None
        self.slots, source, target = self.slots.follow(parent)
        if self.used and len(source):
            source, target = source.to(self._device), target.to(self._device)
            for layer in self.paths.values():
                layer.copy(source, target, len(parent), self.used)
        self._table = None
        lines, line = torch.unique(self.slots.line, return_inverse=True)
        if len(lines) > _WORN * self.prompts:
            return None
        self.slots = Slots(line, self.slots.of_row)
        lines = lines.to(self._device)
        for layer in self.paths.values():
            layer.keep_prompts(lines)
        return lines

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take a layer's keys and values (F, H, 1, D) of a token, and return its paths (F, H, t, D)."""
        layer = self.paths[layer_idx]
        kind = layer.prompt_keys.dtype
        keys, values = layer.add(key_states.to(kind), value_states.to(kind), self.used)
        self._written[id(keys)] = (layer, keys)
        return keys, values

    def layer_of(self, keys: Tensor) -> LayerPaths:
        """Find the layer that has these paths; one layer may read another's."""
        if id(keys) not in self._written:
            raise _not_through_here("changes the keys that its cache returns")
        self._read.add(id(keys))
        return self._written[id(keys)][0]

    def end_step(self) -> None:
        """Count the token that all layers have been through, and check that they have.

        Raises:
            ModelError: some layer has attended otherwise.
        """
        if len(self._written) != len(self.paths) or len(self._read) != len(self._written):
            raise _not_through_here("does not attend by the function that its configuration names")
        self._written, self._read, self.used = {}, set(), self.used + 1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Compute the length of the longest prompt with its paths."""
        return next(iter(self.paths.values())).prompt_keys.shape[2] + self.used


def _not_through_here(what: str) -> ModelError:
    return ModelError(
        f"The language model {what}, so completions cannot be decoded behind prompts that are kept once. Load the "
        "model with attention: eager."
    )


@dataclass(frozen=True)
class PathPlan:
    """A plan (leaf.model.kernels): every row sees its prompt and its own path.

    Attributes:
        cache: has both.
        mask: (P, 1, L + t) added to the scores, 0 or the least number; None where all is seen.
    """

    cache: PathCache
    mask: Tensor | None

    def attend(
        self,
        query: Float[Tensor, "F heads 1 D"],
        key: Float[Tensor, "F H t D"],
        value: Float[Tensor, "F H t E"],
        scale: float,
    ) -> Float[Tensor, "F 1 heads E"]:
        """Take one softmax over the scores of prompt and path, and add up what both say."""
        layer, table = self.cache.layer_of(key), self.cache.table
        prompts, heads, length, size = layer.prompt_keys.shape
        rows, used, width = len(query), key.shape[2], table.shape[1]
        place, which = table.indices(heads)
        query = (query * scale).view(rows * heads, -1, size)  # (F·H, G, D)
        shared = query.shape[1]
        own = torch.bmm(key.flatten(0, 1), query.transpose(1, 2)).transpose(1, 2)
        laid = query.index_select(0, which).view(prompts * heads, width * shared, size)
        seen = torch.bmm(laid, layer.prompt_keys.flatten(0, 1).transpose(1, 2))
        scores = torch.cat([seen.view(-1, shared, length), own.index_select(0, which)], -1)  # (P·H·Q, G, L + t)
        if self.mask is not None:
            scores.view(prompts, -1, length + used).add_(self.mask)
        weight = scores.softmax(-1)  # inside, torch computes it in float32
        of_prompt = torch.bmm(
            weight.view(prompts * heads, width * shared, -1)[..., :length], layer.prompt_values.flatten(0, 1)
        )
        seen = of_prompt.view(-1, shared, value.shape[-1]).index_select(0, place)
        own = weight[..., length:].index_select(0, place)
        return torch.baddbmm(seen, own, value.flatten(0, 1)).view(rows, 1, heads * shared, -1)
