"""Merge the speech LoRA that a checkpoint brings along (Granite Speech 3.3, Phi-4-multimodal) into its weights.

A second adapter on top of one that transformers has injected would silently switch the first off, and `generate`
switches Granite's off whenever it gets no features. Once merged, the checkpoint's own adapter is simply part of the
base model: `disable_adapter` then gives the model as published, which is the reference model of training.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
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


def refuse_pickled_shards(name: str | Path) -> None:
    """Refuse a checkpoint whose index of safetensors names a file of another kind: transformers would unpickle it.

    Raises:
        ModelError: the index names such a file, or is no index.
    """
    index = "model.safetensors.index.json"
    found = cached_file(str(name), index, _raise_exceptions_for_missing_entries=False)
    if found is None:
        return
    try:
        shards = set(json.loads(Path(found).read_bytes())["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"The checkpoint {name} has a {index} that holds no weight_map from names to files. Save the checkpoint "
            "again."
        ) from error
    other = sorted(str(shard) for shard in shards if not str(shard).endswith(".safetensors"))
    if other:
        raise ModelError(
            f"The checkpoint {name} has a {index} that points at {other[0]}. Only safetensors are read, because a .bin "
            "or .pt file may hold code. If you trust it, load it elsewhere and save it again."
        )


def load_own_adapter(model: Any, family: Family, name: str | Path) -> None:
    """Load the checkpoint's own adapter where the family has one and transformers has not loaded it already.

    Raises:
        ModelError: the file holds more or fewer tensors than the model took.
    """
    if family.adapter is None or find_adapter_config_file(str(name), subfolder=family.adapter) is None:
        return
    if not model._hf_peft_config_loaded:
        refuse_pickle(name, family.adapter)
        model.load_adapter(str(name), adapter_name="speech", adapter_kwargs={"subfolder": family.adapter})
    file: Any = cached_file(str(name), "adapter_model.safetensors", subfolder=family.adapter)
    with safe_open(file, "pt") as saved:
        held = len(saved.keys())
    taken = sum("lora_" in path for path, _ in model.named_parameters())
    if held != taken:
        raise ModelError(
            f"The checkpoint's own speech adapter has {held} tensors, and the model took {taken}: the names in its "
            "file do not match this model. Save model and adapter again, apart, with the transformers version in use."
        )


def merge_own_adapter(model: Any) -> bool:
    """Merge adapters that transformers injected into the weights, in place, and tell whether there were any.

    Raises:
        ModelError: an adapter is all zero, so its weights did not load; or it is not the checkpoint's own.
    """
    found = [(path, module) for path, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    if not found:
        return False
    if not model._hf_peft_config_loaded:
        raise ModelError(
            "This model object already carries an adapter, from an earlier trainer or from peft: a second one would "
            "start from trained weights. Load the model again, or give the Policy that has the adapter."
        )
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
