"""Put a LoRA on the language model of a speech LLM: a fresh one, or one that was saved.

The reference of training is the model with its adapter off, and it has to be the model as loaded. So only settings are
taken that leave the frozen weights alone and train nothing else, and a saved adapter is taken whole or not at all.
"""

import copy
import dataclasses
import re
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from leaf.checksums import CHECKSUMS, damage
from leaf.errors import ModelError
from leaf.model.family import Family
from leaf.model.own_adapter import refuse_pickle
from leaf.text import fold_whitespace

# What peft's own settings may say. Each other one has to stay at its default: it changes frozen weights, trains a part
# that `disable_adapter` does not switch off, or computes something else than a layer's output plus a product.
_TAKEN = {
    "alpha_pattern",
    "exclude_modules",
    "fan_in_fan_out",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "lora_dropout",
    "r",
    "rank_pattern",
    "target_modules",
    "use_dora",
    "use_rslora",
}
# What peft notes about itself and the base.
_NOTES = {field.name for field in dataclasses.fields(peft.PeftConfig)} | {
    "inference_mode",
    "megatron_core",
    "runtime_config",
}
# Others, such as pissa, olora and loftq, take a part out of the frozen weights and put it into the adapter.
_INITIAL = (True, False, "gaussian", "orthogonal")


def check_settings(lora: peft.PeftConfig) -> None:
    """Refuse settings under which the model with its adapter off is not the model as loaded.

    Raises:
        ModelError: there is such a setting; it is named.
    """
    if not isinstance(lora, peft.LoraConfig):
        raise ModelError(
            f"The adapter is of the kind {lora.peft_type}; leaf takes LoRA only. Merge it into the model and train a "
            "fresh LoRA."
        )
    if lora.init_lora_weights not in _INITIAL:
        raise ModelError(
            f"init_lora_weights is {lora.init_lora_weights!r}, which changes the frozen weights, so the model without "
            f"its adapter would not be the reference. Choose one of {', '.join(map(str, _INITIAL))}."
        )
    for field in dataclasses.fields(peft.LoraConfig):
        made = field.default_factory
        default = field.default if made is dataclasses.MISSING else made()
        value = getattr(lora, field.name)
        # peft itself writes an empty collection where nothing was given.
        if field.name not in _TAKEN | _NOTES and (value or None) != (default or None):
            raise ModelError(
                f"The LoRA setting {field.name} is {value!r}; leaf takes {default!r} only, because the reference has "
                "to be the model as loaded and the adapter alone may be trained. Leave the setting out."
            )


def put_lora(model: Any, family: Family, lora: peft.LoraConfig) -> peft.PeftModel:
    """Put a fresh LoRA on the language model's layers and nowhere else; `Policy.wrap` says what `lora` may hold.

    Raises:
        ModelError: its settings are not taken, or it names a layer that the decoder does not have.
    """
    check_settings(lora)
    lora = copy.deepcopy(lora)  # peft writes into what it is given, and this is the caller's
    names, chosen = lora.target_modules, None
    if not isinstance(names, str) or names == "all-linear":
        chosen = _chosen_layers(model, family, lora)
        lora.target_modules = family.lora_targets(model, None if isinstance(names, str) else names, chosen)
    # peft may shorten the expression above to bare names such as q_proj, which the audio tower and other layers have.
    lora.exclude_modules = _joined(lora.exclude_modules, family.lora_elsewhere(model, chosen))
    try:
        return peft.get_peft_model(model, lora)  # type: ignore[return-value]
    except (ValueError, TypeError, NotImplementedError, re.error) as error:
        raise ModelError(
            f"peft cannot put the adapter on the language model: {fold_whitespace(str(error))[:300]} Adapters go on "
            f"linear layers of {family.language_model}.layers only; leave target_modules out for all of these."
        ) from error


def _chosen_layers(model: Any, family: Family, lora: peft.LoraConfig) -> list[int] | None:
    """Take `layers_to_transform` out of settings, because peft does not take it beside an expression of ours."""
    given, lora.layers_to_transform, lora.layers_pattern = lora.layers_to_transform, None, None
    if given is None:
        return None
    chosen = [given] if isinstance(given, int) else list(given)
    count = len(list(family.module(model, f"{family.language_model}.layers").children()))
    if not chosen or not all(isinstance(layer, int) and 0 <= layer < count for layer in chosen):
        raise ModelError(
            f"layers_to_transform is {given!r}; allowed are numbers from 0 to {count - 1}, the decoder's layers."
        )
    return chosen


def _joined(excluded: str | Collection[str] | None, expression: str) -> str:
    """Join what a caller excludes, in any of peft's forms, with a regular expression of our own."""
    if isinstance(excluded, str):
        return f"{excluded}|{expression}"
    if not excluded:
        return expression
    return rf"(.*[.])?({'|'.join(re.escape(name) for name in excluded)})|{expression}"


def load_lora(model: Any, family: Family, adapter: str | Path, *, trainable: bool) -> peft.PeftModel:
    """Put a saved adapter on a model, every one of its tensors.

    Raises:
        ModelError: the adapter cannot be read, does not fit the model, or is one that leaf does not take.
    """
    try:
        refuse_pickle(adapter)
        if (wrong := damage(Path(adapter))) is not None:
            raise ModelError(
                f"The adapter {adapter} is not as it was written: {wrong}. Use another one, such as last/ in place of "
                f"best/, or a copy. If you changed it on purpose, remove its {CHECKSUMS}."
            )
        settings: Any = peft.PeftConfig.from_pretrained(str(adapter))
        settings.inference_mode = not trainable
        check_settings(settings)
        with warnings.catch_warnings():
            # peft warns of tensors that are missing; below they are an error.
            warnings.filterwarnings("ignore", message=".*missing adapter keys")
            loaded = peft.PeftModel(model, settings)
            result = loaded.load_adapter(str(adapter), "default", is_trainable=trainable)
    except ModelError:
        raise
    # peft has no class of its own for settings and tensors that it cannot use: a damaged file may raise anything.
    except Exception as error:
        raise ModelError(
            f"The adapter {adapter} cannot be loaded: {fold_whitespace(str(error))[:300]} Give a folder with "
            "adapter_config.json and adapter_model.safetensors that was made for this model."
        ) from error
    lost = [*result.unexpected_keys, *result.missing_keys]
    if lost:
        raise ModelError(
            f"The adapter {adapter} does not fit the model: {len(result.unexpected_keys)} of its tensors have no place "
            f"in the model, and {len(result.missing_keys)} of the model's have none in the file ({lost[0]}). Give the "
            "checkpoint that the adapter was trained on."
        )
    check_placed(loaded, family)
    broken = [name for name, value in loaded.named_parameters() if "lora_" in name and not _is_finite(value)]
    if broken:
        raise ModelError(
            f"The adapter {adapter} holds values that are not finite ({broken[0]}). Its file is damaged, or training "
            "diverged; use an earlier one."
        )
    return loaded


def check_placed(model: peft.PeftModel, family: Family) -> None:
    """Check that the adapter is on the language model's layers only.

    Elsewhere it would change the prompts, which policy and reference share, or be skipped (recurrent blocks).

    Raises:
        ModelError: another layer has an adapter.
    """
    base: Any = model.get_base_model()
    elsewhere = re.compile(family.lora_elsewhere(base))
    for name, _ in base.named_parameters():
        layer, adapted, _ = name.partition(".lora_")
        if adapted and elsewhere.fullmatch(layer):
            raise ModelError(
                f"The adapter is on {layer} too. leaf takes adapters on {family.language_model}.layers only, outside "
                "recurrent blocks. Merge the adapter into the model with peft and train a fresh one."
            )


def check_frozen(policy: Any) -> None:
    """Check a policy before training: the model with its adapter off has to be, and to stay, the model as loaded.

    Raises:
        ModelError: the adapter's settings or place would move the reference, or a part beside it would be trained.
    """
    check_settings(policy.model.active_peft_config)
    check_placed(policy.model, policy.family)
    for name, parameter in policy.base.named_parameters():
        if parameter.requires_grad and ".lora_" not in name:
            raise ModelError(
                f"{name} would be trained beside the adapter, and then the reference would move too. Freeze it with "
                "requires_grad_(False); stage sft trains the projector with train_projector: true."
            )


def _is_finite(value: torch.Tensor | nn.Parameter) -> bool:
    return value.is_meta or bool(value.isfinite().all())
