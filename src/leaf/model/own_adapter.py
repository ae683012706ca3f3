"""Speech LoRAs that checkpoints bring along (Granite Speech 3.3, Phi-4-multimodal): merged before anything is added.

A second adapter on top of one that transformers has injected would switch the first off in silence, and `generate`
switches Granite's off whenever it is given no features. Merged into the weights it is simply part of the base model:
`disable_adapter` then gives the model as published, which is the reference that training is held to.
"""

from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from leaf.errors import ModelError
from leaf.model.families import Family


def refuse_pickle(name: str | Path, subfolder: str = "") -> None:
    """Refuse a saved adapter without adapter_model.safetensors: peft would read a pickle, which may hold code.

    Raises:
        ModelError: there is an adapter_config.json and no such file beside it.
    """
    if find_adapter_config_file(str(name), subfolder=subfolder) is None:
        return
    found = cached_file(
        str(name), "adapter_model.safetensors", subfolder=subfolder, _raise_exceptions_for_missing_entries=False
    )
    if found is None:
        raise ModelError(
            f"The adapter in {Path(name) / subfolder} has no adapter_model.safetensors. Only safetensors are read, "
            "since a .bin or .pt file may hold code: load it where you trust it, and save it with "
            "safe_serialization=True."
        )


def load_own_adapter(model: Any, family: Family, name: str | Path) -> None:
    """Load the checkpoint's own adapter where the family keeps one and transformers has not done so by itself."""
    loaded = getattr(model, "_hf_peft_config_loaded", False)
    if family.adapter is None or loaded or find_adapter_config_file(str(name), subfolder=family.adapter) is None:
        return
    refuse_pickle(name, family.adapter)
    model.load_adapter(str(name), adapter_name="speech", adapter_kwargs={"subfolder": family.adapter})


def merge_own_adapter(model: Any) -> bool:
    """Merge adapters that transformers injected into the weights, in place; returns whether there were any.

    Raises:
        ModelError: an adapter is there but all zero, so its weights did not load.
    """
    found = [(path, module) for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    if not found:
        return False
    weights = [p for n, p in model.named_parameters() if "lora_B" in n]
    if not any(bool(weight.any()) for weight in weights):
        raise ModelError(
            "The checkpoint's own speech adapter is all zero, so its weights did not load: the keys of its file do not "
            "match this model. Save the checkpoint again with the transformers version in use, adapter and model apart."
        )
    with torch.no_grad():
        for path, module in found:
            module.merge(safe_merge=True)
            parent, _, attribute = path.rpartition(".")
            base: nn.Module = module.get_base_layer()
            setattr(model.get_submodule(parent), attribute, base)
    model._hf_peft_config_loaded = False
    del model.peft_config
    return True
