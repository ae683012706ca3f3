"""Merge the speech LoRA that a checkpoint brings along (Granite Speech 3.3, Phi-4-multimodal) into its weights.

A second adapter on top of one that transformers has injected would silently switch the first off, and `generate`
switches Granite's off whenever it gets no features. Once merged, the checkpoint's own adapter is simply part of the
base model: `disable_adapter` then gives the model as published, which is the reference model of training.
"""

from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from leaf.errors import ModelError
from leaf.model.family import Family


def refuse_pickle(name: str | Path, subfolder: str = "") -> None:
    """Refuse a saved adapter without adapter_model.safetensors: peft would read a pickle, which may hold code.

    Raises:
        ModelError: there is an adapter_config.json without such a file beside it.
    """
    if find_adapter_config_file(str(name), subfolder=subfolder) is None:
        return
    found = cached_file(
        str(name), "adapter_model.safetensors", subfolder=subfolder, _raise_exceptions_for_missing_entries=False
    )
    if found is None:
        raise ModelError(
            f"The adapter in {Path(name) / subfolder} has no adapter_model.safetensors. Only safetensors are read, "
            "because a .bin or .pt file may hold code. If you trust it, load it elsewhere and save it with "
            "safe_serialization=True."
        )


def load_own_adapter(model: Any, family: Family, name: str | Path) -> None:
    """Load the checkpoint's own adapter where the family has one and transformers has not loaded it already."""
    loaded = getattr(model, "_hf_peft_config_loaded", False)
    if family.adapter is None or loaded or find_adapter_config_file(str(name), subfolder=family.adapter) is None:
        return
    refuse_pickle(name, family.adapter)
    model.load_adapter(str(name), adapter_name="speech", adapter_kwargs={"subfolder": family.adapter})


def merge_own_adapter(model: Any) -> bool:
    """Merge adapters that transformers injected into the weights, in place, and tell whether there were any.

    Raises:
        ModelError: an adapter is all zero, so its weights did not load.
    """
    found = [(path, module) for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    if not found:
        return False
    weights = [p for n, p in model.named_parameters() if "lora_B" in n]
    if not any(bool(weight.any()) for weight in weights):
        raise ModelError(
            "The checkpoint's own speech adapter is all zero, so its weights did not load: the names in its file do "
            "not match this model. Save model and adapter again, apart, with the transformers version in use."
        )
    with torch.no_grad():
        for path, module in found:
            # peft's own merge_and_unload needs a PeftModel around, which injected adapters do not have.
            module.merge(safe_merge=True)
            parent, _, attribute = path.rpartition(".")
            base: nn.Module = module.get_base_layer()
            setattr(model.get_submodule(parent), attribute, base)
    model._hf_peft_config_loaded = False
    del model.peft_config
    return True
