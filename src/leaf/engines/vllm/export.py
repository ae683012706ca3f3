"""Write what a vLLM server loads: the bare language model of a speech LLM, and adapters under the server's names.

Every name is looked up in the class that is to load it before anything is written, because vLLM itself drops names that
it does not know.
"""

import copy
import math
from pathlib import Path
from typing import Any

import peft
import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig

from leaf.engines.vllm.names import PLAIN, Onto, mount, plain_config, renamed
from leaf.errors import ModelError
from leaf.files import new_directory
from leaf.model.adapter_file import FILE, IN_PEFT, Layers, check_place, layers_of, read_adapter
from leaf.model.family import Family
from leaf.model.loading import find_model
from leaf.model.merging import new_place
from leaf.model.policy import Policy


# -- the bare language model -------------------------------------------------------------------------------------------
def export_language_model(policy_or_checkpoint: Policy | str | Path, to: str | Path, **options: Any) -> Path:
    """Write the decoder and the head of a speech LLM as a checkpoint of their plain class, without any adapter.

    A server of it takes prompts as embeddings, which leaf makes of audio and text. The embedding of tokens, logits'
    scale, tied weights and a resized vocabulary go along. The speech encoder and the projector stay behind: a projector
    that was trained is in the embeddings already.

    Args:
        policy_or_checkpoint: a policy, whose adapter is left out, or what `Policy.load` takes.
        to: directory to write, which must not exist.
        options: of `Policy.load`, for a checkpoint.

    Raises:
        ModelError: the decoder cannot be served alone, or `to` exists.
    """
    to = new_place(to)
    policy = policy_or_checkpoint
    if not isinstance(policy, Policy):
        policy = Policy.load(policy, **options)
    config = _config_with_weights(policy)
    model = plain_model(policy.family, config)
    tensors = {f"model.{name}": value for name, value in _plain_weights(policy).items()}
    tensors["lm_head.weight"] = policy.head.weight
    wanted, held = ({(name, value.shape) for name, value in one.items()} for one in (model.state_dict(), tensors))
    if policy.head.bias is not None or wanted != held:
        odd = sorted(name for name, _ in wanted ^ held)[:1] or ["lm_head.bias"]
        raise ModelError(
            f"The decoder of {type(policy.base).__name__} is not a {type(model).__name__}: they differ in {odd[0]}. "
            "Serve a merged checkpoint with `--for merged`, and sample with leaf itself."
        )
    model.load_state_dict({name: value.detach() for name, value in tensors.items()}, assign=True)
    model.tie_weights()
    # The end tokens only: a server would take further settings, such as top_k, as defaults of every request.
    model.generation_config = GenerationConfig(
        eos_token_id=list(policy.eos_token_ids), pad_token_id=policy.tokenizer.pad_token_id
    )

    def fill(new: Path) -> None:
        model.save_pretrained(new)
        policy.tokenizer.save_pretrained(new)

    new_directory(to, fill)
    return to


def plain_model(family: Family, config: Any) -> Any:
    """Build the plain class of a decoder without memory for weights, to look names up in and to save from.

    Args:
        family: of the speech LLM.
        config: of the plain class.

    Raises:
        ModelError: transformers has no such class.
    """
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=config.dtype)
    except ValueError as error:
        raise ModelError(
            f"transformers has no plain class for the decoder of the family {family.model_type!r} "
            f"({config.model_type}), so it cannot be served alone. Serve a merged checkpoint with `--for merged`."
        ) from error


def _config_with_weights(policy: Policy) -> Any:
    """Describe the plain class that has the weights of a policy as they are, whatever its checkpoint says of them.

    Raises:
        ModelError: see `plain_config`; or head and embedding have vocabularies of different size.
    """
    config = copy.deepcopy(plain_config(policy.family, policy.base.config))
    table, head = policy.base.get_input_embeddings().weight, policy.head.weight
    if table.shape != head.shape:
        raise ModelError(
            f"The embedding has {table.shape[0]} tokens and the head {head.shape[0]}, and a plain language model has "
            "one vocabulary. Resize both with resize_token_embeddings before you train."
        )
    config.vocab_size = table.shape[0]
    config.tie_word_embeddings = table.data_ptr() == head.data_ptr()
    config.dtype = policy.base.dtype
    return config


def _plain_weights(policy: Policy) -> dict[str, Tensor]:
    """List a decoder's weights without the adapter, and without a speech side that is inside it (Phi-4-multimodal)."""
    decoder = f"{policy.family.language_model}."
    speech = (policy.family.audio_tower, policy.family.projector)
    beside = {path.removeprefix(decoder).partition(".")[0] for path in speech if path.startswith(decoder)}
    return {
        name.replace(".base_layer.", "."): value
        for name, value in policy.language_model.state_dict().items()
        if ".lora_" not in name and name.partition(".")[0] not in beside
    }


def linear_layers(family: Family, config: Any) -> list[str]:
    """List the last parts of the names of the decoder's linear layers, which adapters may be on.

    Args:
        family, config: of the speech LLM.
    """
    tree = plain_model(family, plain_config(family, config))
    inside = tree.get_submodule(f"{PLAIN}.layers").named_modules()
    return sorted({path.rpartition(".")[2] for path, module in inside if isinstance(module, nn.Linear)})


# -- adapters ----------------------------------------------------------------------------------------------------------
def adapter_for_vllm(policy: Policy, to: str | Path, *, onto: Onto = "language_model") -> Path:
    """Write the adapter of a policy under the names of a vLLM server.

    Args:
        policy: has an adapter.
        to: directory to write, which must not exist. Give every version of an adapter a directory of its own: a server
            keeps what it has computed under the name and path of an adapter.
        onto: what the server serves: the `language_model` that `export_language_model` writes, or the `speech` class
            that vLLM has for the family.

    Raises:
        ModelError: there is no adapter, or vLLM has no place for it.
    """
    if not isinstance(policy.model, peft.PeftModel):
        raise ModelError("This policy has no adapter to export. Load it with `adapter=`.")
    _check_taken(policy.model.active_peft_config)
    tensors = peft.get_peft_model_state_dict(policy.model, save_embedding_layers=False)
    settings = copy.deepcopy(policy.model.active_peft_config)
    if policy.base_name is not None:
        settings.base_model_name_or_path = policy.base_name
    return _write(layers_of(tensors), settings, policy.family, policy.base.config, onto, to)


def saved_adapter_for_vllm(
    adapter: str | Path,
    checkpoint: str | Path,
    to: str | Path,
    *,
    onto: Onto = "language_model",
    trust_remote_code: bool = False,
) -> Path:
    """Write a saved adapter under the names of a vLLM server; of the checkpoint only the configuration is read.

    Args:
        adapter: directory with adapter_config.json and adapter_model.safetensors.
        checkpoint: what it was trained on.
        to, onto: as in `adapter_for_vllm`.
        trust_remote_code: whether the checkpoint's own Python may run.

    Raises:
        ModelError: the adapter cannot be read, or vLLM has no place for it.
    """
    settings, tensors = read_adapter(adapter)
    _check_taken(settings)
    config, family, _ = find_model(str(checkpoint), trust_remote_code=trust_remote_code)
    return _write(layers_of(tensors), settings, family, config, onto, to)


def _check_taken(settings: Any) -> None:
    """Refuse settings that leaf takes and vLLM does not.

    Raises:
        ModelError: there is such a setting; it is named.
    """
    for setting in ("use_dora", "lora_bias"):
        if getattr(settings, setting):
            raise ModelError(
                f"The adapter has {setting}, which vLLM does not take. Merge it into the checkpoint, `--for merged`."
            )


def _write(layers: Layers, settings: Any, family: Family, config: Any, onto: Onto, to: str | Path) -> Path:
    to = new_place(to)
    place = mount(family, onto)
    if onto == "speech" and getattr(config, "has_lora_adapter", False):
        raise ModelError(
            "The checkpoint has a speech LoRA of its own (has_lora_adapter), which was merged into the weights before "
            "this adapter was trained, and a server applies one adapter at a time. Merge both into one checkpoint with "
            "`--for merged`."
        )
    tree = plain_model(family, plain_config(family, config))
    layers = _even(layers, settings)
    named: dict[str, Tensor] = {}
    for path, pair in layers.items():
        target = renamed(path, family, place)
        check_place(tree, renamed(path, family, PLAIN), pair, path)
        named |= {f"{IN_PEFT}{target}.lora_{side}.weight": value for side, value in zip("AB", pair, strict=True)}
    written = copy.deepcopy(settings)
    written.r = next(iter(layers.values()))[0].shape[0]
    written.target_modules = sorted({name.removeprefix(IN_PEFT).partition(".lora_")[0] for name in named})
    written.exclude_modules = written.layers_to_transform = written.layers_pattern = None
    written.rank_pattern, written.alpha_pattern = {}, {}
    written.auto_mapping = None  # names the speech class
    written.inference_mode = True

    def fill(new: Path) -> None:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in named.items()}, new / FILE, {"format": "pt"}
        )
        written.save_pretrained(str(new))

    new_directory(to, fill)
    return to


def _even(layers: Layers, settings: Any) -> Layers:
    """Bring layers to one rank and one scale, since not every version of vLLM reads patterns of these (0.32 does)."""
    if not settings.rank_pattern and not settings.alpha_pattern:
        return layers
    rank = max(down.shape[0] for down, _ in layers.values())
    scale = _scale(settings, settings.lora_alpha, rank)
    even = {}
    for path, (down, up) in layers.items():
        alpha = settings.alpha_pattern.get(get_pattern_key(settings.alpha_pattern, path), settings.lora_alpha)
        missing = rank - down.shape[0]
        factor = _scale(settings, alpha, down.shape[0]) / scale
        even[path] = (nn.functional.pad(down, (0, 0, 0, missing)), nn.functional.pad(up * factor, (0, missing)))
    return even


def _scale(settings: Any, alpha: float, rank: int) -> float:
    return alpha / (math.sqrt(rank) if settings.use_rslora else rank)
