"""From a checkpoint to a frozen model with a processor, and a fresh LoRA on its language model.

Weights are read from safetensors only; nothing is unpickled.
"""

import copy
import re
from collections.abc import Collection
from typing import Any

import peft
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoProcessor

from leaf.errors import LeafError, ModelError
from leaf.model.families import Family, family_of
from leaf.model.own_adapter import load_own_adapter, refuse_pickle


def look_up(name: str, *, trust_remote_code: bool = False) -> tuple[Any, Family, Any]:
    """Return a checkpoint's configuration, family and processor; no weights are read.

    Raises:
        ModelError: it is of no known family, or a package that its processor needs is not installed.
        OSError, ValueError: it is not there, or not a checkpoint.
    """
    config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    family = family_of(config)
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except ImportError as error:
        of_ours = f"the extra {family.extra}: pip install 'leaf-speech[{family.extra}]'"
        raise ModelError(
            f"The processor of {name} ({family.model_type}) needs a package that cannot be imported: "
            f"{_one_line(error)} Install {'what it names' if family.extra is None else of_ours}."
        ) from error
    return config, family, processor


def load_model(name: str, *, dtype: str, attention: str | None, trust_remote_code: bool) -> tuple[Any, Any]:
    """Return model and processor of a checkpoint directory or hub id, its own speech adapter loaded.

    Raises:
        ModelError: the checkpoint cannot be loaded, is of no known family, has no safetensors, or lacks weights.
    """
    try:
        _, family, processor = look_up(name, trust_remote_code=trust_remote_code)
        refuse_pickle(name)
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
                f"The checkpoint {name} lacks {len(missing)} of the model's weights ({', '.join(missing[:3])}, ...), "
                "which transformers would draw at random. Save it again whole, or load it with the transformers "
                "version it was written with."
            )
        load_own_adapter(model, family, name)
    except LeafError:
        raise
    except ImportError as error:
        raise lacks_package(name, error) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"The checkpoint {name} cannot be loaded: {_one_line(error)} It takes a folder or hub id with "
            "configuration, processor and weights in safetensors; a .bin or .pt file may hold code and is not read."
        ) from error
    return model, processor


def lacks_package(name: str, error: ImportError) -> ModelError:
    """Return the error of a checkpoint whose model needs a package that is not installed, as attention kernels do."""
    return ModelError(
        f"The model of {name} cannot be built without a further package: {_one_line(error)} Install what it names; "
        "with `attention` a recipe chooses a kernel that needs none (sdpa)."
    )


def put_lora(model: Any, family: Family, lora: peft.LoraConfig) -> peft.PeftModel:
    """Put a fresh LoRA on the language model's layers, and on nothing else; see `Policy.wrap` for what `lora` may say.

    Raises:
        ModelError: it names a layer that the decoder does not have.
    """
    lora = copy.deepcopy(lora)  # the caller's own stays as it is; peft writes into what it is given
    names = lora.target_modules
    if names is None or names == "all-linear":
        lora.target_modules = family.lora_targets(model)
    elif not isinstance(names, str):
        lora.target_modules = family.lora_targets(model, names)
    # peft may shorten the expression above to bare names, which the audio tower shares.
    lora.exclude_modules = _joined(lora.exclude_modules, family.lora_elsewhere(model))
    return peft.get_peft_model(model, lora)  # type: ignore[return-value]


def _joined(excluded: str | Collection[str] | None, expression: str) -> str:
    """Return one regular expression for what a caller excludes, in any of peft's forms, and what we do."""
    if isinstance(excluded, str):
        return f"{excluded}|{expression}"
    if not excluded:
        return expression
    return rf"(.*[.])?({'|'.join(re.escape(name) for name in excluded)})|{expression}"


def _one_line(error: Exception) -> str:
    """Return an error's message on one line that ends as a sentence."""
    text = " ".join(str(error).split())[:500]
    return text if text.endswith((".", "!", "?")) else f"{text}."
