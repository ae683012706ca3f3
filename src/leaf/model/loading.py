"""Load a checkpoint with its processor, freeze it and put an adapter on its language model.

Weights are read from safetensors only; nothing is unpickled.
"""

from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor

from leaf.errors import LeafError, ModelError, install_extra
from leaf.model.families import family_of
from leaf.model.family import Family
from leaf.model.layer_forward import replace_forward
from leaf.model.lora import load_lora, put_lora
from leaf.model.own_adapter import load_own_adapter, merge_own_adapter, refuse_pickle, refuse_pickled_shards
from leaf.plugins import code_allowed
from leaf.text import fold_whitespace


def look_up(name: str, *, trust_remote_code: bool = False) -> tuple[Any, Family, Any]:
    """Load a checkpoint's configuration and processor and look up its family; no weights are read.

    Raises:
        ModelError: it is of no known family, or a package that its processor needs is not installed.
        OSError, ValueError: it does not exist, or is no checkpoint.
    """
    trust_remote_code = trust_remote_code and code_allowed()
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    family = family_of(config)
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except ImportError as error:
        of_ours = f"the extra {family.extra}: {install_extra(str(family.extra))}"
        raise ModelError(
            f"The processor of {name} ({family.model_type}) needs a package that cannot be imported: "
            f"{_one_line(error)} Install {'what it names' if family.extra is None else of_ours}."
        ) from error
    return config, family, processor


def find_model(name: str, *, trust_remote_code: bool = False) -> tuple[Any, Family, Any]:
    """Look a checkpoint up as `look_up` does; one that is not there, or is none, is a ModelError too."""
    try:
        return look_up(name, trust_remote_code=trust_remote_code)
    except LeafError:
        raise
    except (OSError, ValueError) as error:
        raise _unreadable(name, error) from error


def load_model(name: str, *, dtype: str, attention: str | None, trust_remote_code: bool) -> tuple[Any, Any]:
    """Load model and processor of a checkpoint directory or hub id, and the checkpoint's own speech adapter.

    Raises:
        ModelError: the checkpoint cannot be loaded, is of no known family, has no safetensors, or lacks weights.
    """
    try:
        _, family, processor = look_up(name, trust_remote_code=trust_remote_code)
        refuse_pickle(name)
        refuse_pickled_shards(name)
        model, found = family.auto_model.from_pretrained(
            name,
            dtype=getattr(torch, dtype),
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
        if missing := sorted(found["missing_keys"]):
            raise ModelError(
                f"The checkpoint {name} lacks {len(missing)} of the model's weights ({', '.join(missing[:3])}, ...); "
                "transformers would draw them at random. Save the checkpoint again with all weights, or load it with "
                "the transformers version that wrote it."
            )
        load_own_adapter(model, family, name)
    except LeafError:
        raise
    except ImportError as error:
        raise lacks_package(name, error) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise _unreadable(name, error) from error
    return model, processor


def _unreadable(name: str, error: Exception) -> ModelError:
    return ModelError(
        f"The checkpoint {name} cannot be loaded: {_one_line(error)} Give a folder or hub id with configuration, "
        "processor and weights in safetensors; a .bin or .pt file may hold code and is not read."
    )


def lacks_package(name: str, error: ImportError) -> ModelError:
    """Make the error for a model that needs a package which is not installed, as some attention kernels do."""
    return ModelError(
        f"The model of {name} cannot be built without a further package: {_one_line(error)} Install what it names, or "
        "set attention: sdpa, a kernel that needs none."
    )


def with_adapter(
    model: Any,
    family: Family,
    lora: peft.LoraConfig | None,
    adapter: str | Path | None,
    *,
    gradient_checkpointing: bool,
) -> Any:
    """Freeze a loaded model and put a saved adapter, a fresh LoRA or none on it; see `Policy.wrap`."""
    merge_own_adapter(model)
    model.requires_grad_(False)
    if gradient_checkpointing:
        # On the decoder alone: some outer classes do not support it, and the audio side has no backward pass.
        decoder: Any = family.module(model, family.language_model)
        _checkpointed(decoder, "enable")({"use_reentrant": False})
    if adapter is not None:
        model = load_lora(model, family, adapter, trainable=lora is not None)
    elif lora is not None:
        model = put_lora(model, family, lora)
    replace_forward(model)
    if model.dtype in (torch.bfloat16, torch.float16):
        # Otherwise peft copies the input of every adapter to float32, to keep and to multiply (`Policy.precision`).
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module.cast_input_dtype_enabled = False  # type: ignore[assignment]
    return model


def _one_line(error: Exception) -> str:
    """Put an error's message on one line that ends like a sentence."""
    text = fold_whitespace(str(error))[:500]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def is_checkpointing(decoder: Any) -> bool:
    """Tell whether a decoder stack computes its layers again in the backward pass."""
    return _checkpointed(decoder, "is")


def _checkpointed(decoder: Any, what: str) -> Any:
    """Find an attribute of checkpointing, which transformers has renamed between 5.17 and 5.23."""
    names = {"is": "is_{}_checkpointing", "enable": "{}_checkpointing_enable"}
    kind = "activation" if hasattr(type(decoder), "is_activation_checkpointing") else "gradient"
    return getattr(decoder, names[what].format(kind))
