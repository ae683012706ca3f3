"""Make the policy that a recipe asks for: its checkpoint, adapter, projector and token budget."""

from pathlib import Path
from typing import Any

import peft
import torch

from leaf.config import LeafConfig, LoraFields, RunConfig
from leaf.errors import ConfigError
from leaf.model.budget import AUTOMATIC_BUDGET, Measured, measure_update
from leaf.model.device import pick_dtype
from leaf.model.policy import Policy
from leaf.model.projector import load_projector


def recipe_lora(config: LoraFields) -> peft.LoraConfig:
    """Make the settings of a fresh adapter."""
    return peft.LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_layers,
        layers_to_transform=config.layers_to_transform,
    )


def load_policy(config: RunConfig, checkpoint: str | Path, *, device: torch.device, **options: Any) -> Policy:
    """Load a checkpoint as the recipe says, and the projector that it names; `options` are those of `Policy.load`."""
    policy = Policy.load(
        checkpoint,
        device=device,
        gradient_checkpointing=config.gradient_checkpointing,
        trust_remote_code=config.trust_remote_code,
        attention=config.attention,
        **{"dtype": config.dtype, "max_prompt_tokens": config.max_prompt_tokens, **options},
    )
    return _with_projector(config, policy)


def projector_of(config: RunConfig, adapter: Path | None) -> str | None:
    """Find the projector that goes with an adapter: the one that was saved with it, or else the recipe's.

    None stands for the checkpoint's own.
    """
    # Version 0.1 saved it beside the adapter's folder.
    places = [] if adapter is None else [adapter / "projector.safetensors", adapter.parent / "projector.safetensors"]
    return next((str(file) for file in places if file.is_file()), config.projector)


def trainable_policy(
    config: LeafConfig,
    model: Any,
    processor: Any = None,
    lora: peft.LoraConfig | None = None,
    *,
    device: torch.device,
    runs_on: torch.device,
) -> Policy:
    """Make the policy to train with RL from a checkpoint, a transformers model, or a `Policy` that has its adapter.

    Args:
        config: the recipe.
        model: see above.
        processor: goes with a transformers model, and only with that.
        lora: settings of the fresh adapter; None for the recipe's.
        device: where the policy is put.
        runs_on: the device it will compute on, which decides what `dtype: auto` is.

    Raises:
        ConfigError: arguments that do not go together, or a policy that cannot be trained with this recipe.
    """
    if isinstance(model, Policy):
        _check_given(config, model, processor, lora)
        return _with_projector(config, model.to(device))
    if isinstance(model, peft.PeftModel):
        raise ConfigError(
            "The model is a PeftModel. Give the transformers model inside it and peft_config=..., or, to train a saved "
            "adapter further, Policy.load(path, adapter=..., lora=...)."
        )
    if isinstance(model, torch.nn.Module):
        return _wrap(config, model.to(device), processor, lora)
    if processor is not None:
        raise ConfigError(
            "processing_class goes with a model object; a path or hub id brings its own processor. Pass the loaded "
            "model, or leave processing_class out."
        )
    options = {"dtype": pick_dtype(config.dtype, runs_on), "temperature": config.temperature}
    return load_policy(config, model, device=device, lora=lora or recipe_lora(config), **options)


def _wrap(config: LeafConfig, model: torch.nn.Module, processor: Any, lora: peft.LoraConfig | None) -> Policy:
    """Wrap a loaded transformers model with the recipe's settings."""
    if processor is None:
        raise ConfigError("A model object needs its processor: pass processing_class=AutoProcessor(...).")
    policy = Policy.wrap(
        model,
        processor,
        lora=lora or recipe_lora(config),
        gradient_checkpointing=config.gradient_checkpointing,
        temperature=config.temperature,
        max_prompt_tokens=config.max_prompt_tokens,
    )
    return _with_projector(config, policy)


def _check_given(config: LeafConfig, policy: Policy, processor: Any, lora: peft.LoraConfig | None) -> None:
    """Refuse a ready policy that the recipe contradicts, or that has nothing to train."""
    if lora is not None or processor is not None:
        raise ConfigError(
            "A Policy brings its adapter and its processor; leave out peft_config and processing_class, or give them "
            "to Policy.load or Policy.wrap."
        )
    if not any(p.requires_grad for p in policy.parameters()):
        raise ConfigError(
            "The policy has no trainable parameters. Load it with lora=peft.LoraConfig(...); beside adapter=..., lora "
            "makes the saved adapter trainable."
        )
    if policy.temperature != config.temperature:
        raise ConfigError(
            f"The policy has temperature {policy.temperature} and the recipe {config.temperature}: completions would "
            "be scored by another distribution than they are drawn from. Give both the same."
        )


def _with_projector(config: RunConfig, policy: Policy) -> Policy:
    if config.projector is not None:
        load_projector(policy, config.projector)
    return policy


def has_dropout(policy: Policy) -> bool:
    """Tell whether the policy's adapter has dropout, wherever its settings come from."""
    return isinstance(policy.model, peft.PeftModel) and any(
        getattr(config, "lora_dropout", 0.0) > 0.0 for config in policy.model.peft_config.values()
    )


def planned_prompt(config: RunConfig) -> int:
    """Name the longest prompt to plan memory for: the recipe's limit, or 1,024 tokens where it sets none."""
    return config.max_prompt_tokens or 1024


def set_token_budget(policy: Policy, config: RunConfig, behind_prompt: int) -> Measured | None:
    """Give a policy the token budget of its recipe, or one that the memory left beside the weights allows.

    Args:
        policy: changed in place.
        config: the recipe.
        behind_prompt: the most tokens to expect behind a prompt in one row, where completions share nothing.

    Returns:
        What was measured; None where the recipe has a budget.

    Raises:
        RunError: not one token fits.
    """
    if config.token_budget is not None:
        policy.token_budget = config.token_budget
        return None
    measured = measure_update(policy, planned_prompt(config), behind_prompt)
    policy.token_budget = measured.budget(AUTOMATIC_BUDGET[policy.device.type])
    return measured
