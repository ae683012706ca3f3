"""Read what a language model's layers attend to, and build the masks that make them honour a prefix tree.

The tree-packed forward is right for attention layers that take a dense mask, with or without a sliding window. It is
wrong for others (`Attention.packable` is False): recurrent layers (state-space, linear attention, convolution) carry
state from one position to the next whatever a mask says, chunked attention depends on where a chunk starts, and flash
or flex kernels take no dense mask.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from leaf.errors import ModelError
from leaf.model import kernels
from leaf.model.kernels import Plan, PlannedMask

_MASKED = ("sdpa", "eager", kernels.NAME)
_ATTENTION = ("full_attention", "sliding_attention")


def refuse_long(text_config: Any, lengths: Iterable[tuple[int, int]]) -> None:
    """Refuse sequences that change the rotary frequencies of a whole batch.

    LongRoPE (Phi-4-multimodal) takes other frequencies for all rows of a batch as soon as one of them is longer than
    `original_max_position_embeddings`. What is drawn and what is scored would then depend on the rest of the batch, so
    sampling and scoring both ask here first.

    Args:
        text_config: configuration of the language model.
        lengths: tokens of each prompt, and of the longest completion behind it.

    Raises:
        ModelError: a prompt and its completion are longer than that together.
    """
    rope = getattr(text_config, "rope_parameters", None) or {}
    longest = rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None
    if longest is None:
        return
    prompt, completion = max(lengths, key=sum, default=(0, 0))
    if prompt + completion > longest:
        raise ModelError(
            f"A prompt of {prompt} tokens and {completion} new ones exceed {longest} positions, beyond which this "
            "model (LongRoPE) changes its frequencies for the whole batch. Lower max_new_tokens, shorten the "
            "references of a supervised stage, or set max_prompt_tokens so that both fit."
        )


@dataclass(frozen=True)
class Attention:
    """What the layers of a language model attend to.

    Attributes:
        windows: per type of attention layer its sliding window in positions, None for all of the past.
        implementation: the kernel, as transformers names it: `sdpa`, `eager`, `flash_attention_2`, ...
        types: all types of layers, attention or not.
    """

    windows: dict[str, int | None]
    implementation: str
    types: frozenset[str]

    @classmethod
    def of(cls, text_config: Any) -> "Attention":
        """Read them from a language model's configuration."""
        named = getattr(text_config, "layer_types", None)
        window = getattr(text_config, "sliding_window", None)
        # Without layer types a model has one kind of layer, and its window, if it has one, is that of all layers.
        types = frozenset(named or ["sliding_attention" if window else "full_attention"])
        if "sliding_attention" in types and window is None:
            raise ModelError("The language model has sliding-window layers, but its configuration names no window.")
        windows = {kind: window if kind == "sliding_attention" else None for kind in types & set(_ATTENTION)}
        return cls(windows, text_config._attn_implementation or "sdpa", types)

    @property
    def packable(self) -> bool:
        """Tell whether all layers honour a dense mask, so that a tree may be packed in one row."""
        return self.why_not is None

    @property
    def why_not(self) -> str | None:
        """Say why a tree may not be packed, or None where it may."""
        other = sorted(self.types - set(_ATTENTION))
        if other:
            return f"layers of type {', '.join(other)} do not honour a dense attention mask"
        if self.implementation not in _MASKED:
            return f"the attention kernel {self.implementation!r} takes no dense mask"
        return None

    @property
    def planned(self) -> bool:
        """Tell whether all layers attend by a plan where they are given one."""
        return self.packable and self.implementation == kernels.NAME

    def plans(self, plan: Callable[[int | None], Plan], device: torch.device) -> PlannedMask | dict[str, PlannedMask]:
        """Make what `language_model(attention_mask=...)` takes to attend by plans.

        Args:
            plan: makes the plan of layers with this window.
            device: of the hidden states.

        Returns:
            One mask, or one per layer type where windows differ.
        """
        made = {window: PlannedMask.of(plan(window), device) for window in set(self.windows.values())}
        if len(made) == 1:
            return next(iter(made.values()))
        return {kind: made[window] for kind, window in self.windows.items()}

    def masks(
        self,
        visible: Bool[Tensor, "R Q S"],
        query: Int[Tensor, "R Q"],
        key: Int[Tensor, "R S"],
        dtype: torch.dtype,
    ) -> Tensor | dict[str, Tensor]:
        """Build the attention mask(s) that `language_model(attention_mask=...)` takes.

        Args:
            visible: (R, Q, S) for R rows of Q queries and S keys, True where a query may see a key if its window
                reaches that far.
            query, key: position ids.
            dtype: of the hidden states. Masks are 0 or its minimum, to be added to the scores: the eager kernel takes
                no other kind, and sdpa would turn a boolean mask into this one again in every layer.

        Returns:
            One (R, 1, Q, S) mask of `dtype`, or one per layer type where windows differ.
        """
        # Windows count positions, not slots: siblings in a packed tree share a position, however far apart they are.
        distance = query[:, :, None] - key[:, None, :]
        made: dict[int | None, Tensor] = {}
        for window in set(self.windows.values()):
            mask = visible if window is None else visible & (distance < window)
            made[window] = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)[:, None]
        if len(made) == 1:
            return next(iter(made.values()))
        return {kind: made[window] for kind, window in self.windows.items()}
