"""Read the matrices of a saved LoRA, and look the layers that they belong to up in a model, weights unread."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from leaf.checksums import CHECKSUMS, damage
from leaf.errors import ModelError
from leaf.model.family import Family
from leaf.model.lora import check_settings

FILE = "adapter_model.safetensors"
IN_PEFT = "base_model.model."  # before every name in an adapter's file

Layers = dict[str, tuple[Tensor, Tensor]]


def read_adapter(adapter: str | Path) -> tuple[Any, dict[str, Tensor]]:
    """Read a saved adapter's settings and its tensors.

    Raises:
        ModelError: it cannot be read, is damaged, or is one that leaf does not take.
    """
    adapter = Path(adapter)
    try:
        if (wrong := damage(adapter)) is not None:
            raise ModelError(
                f"The adapter {adapter} is not as it was written: {wrong}. Use another one, or a copy. If you changed "
                f"it on purpose, remove its {CHECKSUMS}."
            )
        settings: Any = peft.PeftConfig.from_pretrained(str(adapter))
        tensors = load_file(adapter / FILE)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"The adapter {adapter} cannot be read: {error}. Give a folder with adapter_config.json and {FILE}."
        ) from error
    check_settings(settings)
    return settings, tensors


def layers_of(tensors: Mapping[str, Tensor]) -> Layers:
    """Pair the two matrices of every adapted layer, by the layer's path.

    Raises:
        ModelError: there is another tensor, or one of a pair is missing.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        path, adapted, part = name.removeprefix(IN_PEFT).partition(".lora_")
        if not adapted or part not in ("A.weight", "B.weight"):
            raise ModelError(
                f"The adapter holds {name}, which is no matrix of a LoRA. Give an adapter that leaf trained, without "
                "DoRA and without biases."
            )
        found.setdefault(path, {})[part] = value
    for path, pair in found.items():
        if len(pair) != 2:
            raise ModelError(f"The adapter holds one matrix of {path} and lacks the other. Use an intact copy of it.")
    if not found:
        raise ModelError("The adapter holds no tensors. Give an adapter that leaf trained.")
    return {path: (pair["A.weight"], pair["B.weight"]) for path, pair in found.items()}


def check_place(tree: nn.Module, path: str, pair: tuple[Tensor, Tensor], named: str) -> None:
    """Check that a model has a linear layer of the right size for the matrices of an adapter.

    Args:
        tree: the model; its weights may be on no device.
        path: of the layer.
        pair: the two matrices.
        named: how the adapter's own file names the layer.

    Raises:
        ModelError: it has not, so the adapter would not be loaded, or would be left out without a word.
    """
    down, up = pair
    try:
        layer = tree.get_submodule(path)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        raise ModelError(
            f"The adapter's layer {named} has no place in {type(tree).__name__}, which has no linear layer {path}. "
            "Give the checkpoint that the adapter was trained on, or merge the adapter with `--for merged`."
        )
    if (layer.in_features, layer.out_features) != (down.shape[1], up.shape[0]):
        raise ModelError(
            f"The adapter's layer {named} takes {down.shape[1]} values and gives {up.shape[0]}; that of "
            f"{type(tree).__name__} takes {layer.in_features} and gives {layer.out_features}. Give the checkpoint that "
            "the adapter was trained on."
        )


def empty_model(config: Any, family: Family) -> Any:
    """Build the model of a configuration without memory for its weights."""
    config = getattr(config, "thinker_config", config)  # of an Omni checkpoint the thinker alone is loaded
    with torch.device("meta"):
        auto = family.auto_model
        return auto.from_config(config) if hasattr(auto, "from_config") else auto(config)
