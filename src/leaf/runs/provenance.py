"""What the recipe of a run says of the arguments that a script gave the trainer in place of the recipe's own values."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch

from leaf.config import LoraFields, from_python
from leaf.model.from_recipe import recipe_lora
from leaf.model.policy import Policy

# Of a peft.LoraConfig: notes about itself and its place, which change nothing that is trained; the layers are apart.
_NOTES = frozenset("task_type auto_mapping peft_version base_model_name_or_path revision inference_mode".split())


def recorded_arguments(
    model: str | Path | torch.nn.Module,
    reward_funcs: Sequence[str | Callable[..., Any]] | Callable[..., Any] | None,
    credit: str | Callable[..., Any] | None,
    lora: peft.LoraConfig | None,
    *,
    from_recipe: bool,
) -> dict[str, Any]:
    """Return by key of the recipe what is to be recorded of `LeafTrainer`'s arguments; objects by their names.

    With `from_recipe`, model and rows are the recipe's own.
    """
    given: dict[str, Any] = {} if from_recipe else {"model": _model(model), "task": from_python("rows")}
    if reward_funcs:
        functions = [reward_funcs] if callable(reward_funcs) else reward_funcs
        given["rewards"] = [_function(one, "__name__") for one in functions]  # as `Rewards` calls them
    if credit is not None:
        given["credit"] = _function(credit)
    lora = lora or (None if from_recipe else _adapter(model))
    return given if lora is None else given | _lora(lora)


def _model(model: Any) -> str:
    if isinstance(model, str | Path):
        # A recipe's `base` and `demo` are leaf's own.
        return f"./{model}" if str(model) in ("base", "demo") else str(model)
    base = model.base if isinstance(model, Policy) else model
    return from_python(getattr(getattr(base, "config", None), "_name_or_path", "") or type(base).__name__)


def _function(function: str | Callable[..., Any], name: str = "__qualname__") -> str:
    if isinstance(function, str):
        return function
    inner = function.func if isinstance(function, partial) else function
    return from_python(getattr(inner if hasattr(inner, name) else type(inner), name))


def _adapter(model: Any) -> peft.LoraConfig | None:
    """Return the settings of the adapter that a policy brings."""
    wrapped = model.model if isinstance(model, Policy) else None
    found = wrapped.active_peft_config if isinstance(wrapped, peft.PeftModel) else None
    return found if isinstance(found, peft.LoraConfig) else None


def _lora(lora: peft.LoraConfig) -> dict[str, Any]:
    """Return the recipe's LoRA fields; `lora_layers` says where there is more to the adapter than they can hold."""
    layers = None if lora.target_modules == "all-linear" else lora.target_modules  # as `Policy.wrap` takes it
    fields: dict[str, Any] = {
        "lora_r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        "lora_layers": None if layers is None or isinstance(layers, str) else sorted(layers),
    }
    if isinstance(layers, str) or _others(recipe_lora(LoraFields(**fields))) != _others(lora):
        fields["lora_layers"] = [from_python("peft_config")]
    return fields


def _others(lora: peft.LoraConfig) -> dict[str, Any]:
    return {key: value for key, value in lora.to_dict().items() if key not in _NOTES | {"target_modules"}}
