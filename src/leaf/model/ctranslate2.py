"""Read a Whisper model in CTranslate2's format: the demo model's ears come in it."""

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from leaf.errors import ModelError

_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def read_ctranslate2(path: str | Path) -> dict[str, np.ndarray]:
    """Read the arrays of a CTranslate2 model file of format version 6.

    The file holds, little-endian: version, spec name, spec revision, number of arrays; for each array its name, rank,
    dimensions, type, size in bytes and data; then aliases. A name is its length with the closing zero, then its bytes.

    Raises:
        ModelError: the file has another format version, ends early or holds sizes that do not fit together.
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
            raise ModelError(f"{path} has CTranslate2 format version {version}; only version 6 can be read.")
        text()  # the spec's name
        number("I")  # its revision
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
    """Build Whisper tiny.en as a transformers model (float32) from a CTranslate2 file."""
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
    """Copy one layer.

    CTranslate2 joins q, k and v in one matrix, and k and v in another where the decoder attends to the encoder.
    """
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
                if not (kind == "bias" and name.endswith("k_proj")):  # Whisper's keys have no bias: it is zero here
                    state[f"{target}.{name}.{kind}"] = part
