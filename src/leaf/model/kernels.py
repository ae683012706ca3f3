"""leaf's attention function: what transformers calls where a language model's attention is named `leaf`.

A layer hands its mask through unread. A `PlannedMask` brings the plan by which its queries attend, built once per
forward and not per layer; so nothing is kept beside the call, and a layer that is computed again under gradient
checkpointing finds the same plan. Every other call goes to transformers' own sdpa.
"""

from typing import Any, Protocol, Self

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from leaf.errors import ModelError

NAME = "leaf"


class Plan(Protocol):
    """How the queries of one forward attend, in the layers of one type."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Compute what B rows of Q queries see of S keys in H heads; keys and values have G heads, H a multiple of G.

        Args:
            query: (B, H, Q, D).
            key: (B, G, S, D).
            value: (B, G, S, E).
            scale: times the product of query and key.

        Returns:
            (B, Q, H, E).
        """
        ...


class PlannedMask(Tensor):
    """A 4-D mask without content, which transformers passes to every layer as it is; `plan` says what is seen."""

    plan: Plan
    # Plain tensors come out of all operations on it, and a mask that a model has read has lost its plan. So it has no
    # value: sdpa and eager fail on its size, where one value would hide all or nothing from every query.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def of(cls, plan: Plan, device: torch.device) -> Self:
        """Make the mask of a plan; it is boolean, so that nothing casts it to another precision."""
        mask = torch.zeros(1, 1, 1, 0, dtype=torch.bool, device=device).as_subclass(cls)
        mask.plan = plan
        return mask


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as the mask's plan says, or as transformers' sdpa does; called by the layers of transformers.

    Raises:
        ModelError: the layer asks for what no plan computes.
    """
    if not isinstance(attention_mask, PlannedMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    asked = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if dropout:
        asked.append("dropout")
    if asked:
        raise ModelError(
            f"The attention of {type(module).__name__} has {' and '.join(asked)}, which leaf's own attention does not "
            "compute. Load the model with attention: eager."
        )
    kind = query.device.type
    if torch.is_autocast_enabled(kind):  # as it does for sdpa
        half = torch.get_autocast_dtype(kind)
        query, key, value = query.to(half), key.to(half), value.to(half)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(kind, enabled=False):
        return attention_mask.plan.attend(query, key, value, scale), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def put_own_attention(language_model: Any, text_config: Any) -> Any:
    """Let a language model's layers call `attend` where they would call sdpa and transformers chooses the function.

    A model with dropout inside its attention keeps sdpa.

    Returns:
        Its configuration, which names the function.
    """
    chosen = isinstance(language_model, PreTrainedModel) and language_model._can_set_attn_implementation()
    if chosen and text_config._attn_implementation == "sdpa" and not getattr(text_config, "attention_dropout", 0.0):
        text_config._attn_implementation = NAME
    return text_config
