"""A tiny Voxtral with its real processor class and a mistral-common tokenizer (tekken) written here."""

import base64
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import VoxtralConfig, VoxtralForConditionalGeneration, VoxtralProcessor, WhisperFeatureExtractor
from transformers.tokenization_mistral_common import MistralCommonBackend

from tests.helpers.models.common import finish

MERGES = ["pr", "es", "the", " the", "leave", " two", "conference", " to", " do", "mess", "ages"]
NAMED = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    3: "[INST]",
    4: "[/INST]",
    5: "[AVAILABLE_TOOLS]",
    6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]",
    8: "[/TOOL_RESULTS]",
    9: "[TOOL_CALLS]",
    10: "[IMG]",
    11: "<pad>",
    12: "[IMG_BREAK]",
    13: "[IMG_END]",
    14: "[PREFIX]",
    15: "[MIDDLE]",
    16: "[SUFFIX]",
    17: "[SYSTEM_PROMPT]",
    18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]",
    24: "[AUDIO]",
    25: "[BEGIN_AUDIO]",
    34: "[TRANSCRIBE]",
}

FOLDER = tempfile.TemporaryDirectory()  # the tokenizer copies its file from here when it is saved


def write_tekken(path):
    """Write a byte-level tekken file with 40 special tokens and an audio section at windows of 30 s."""
    pieces = [bytes([i]) for i in range(256)] + [merge.encode() for merge in MERGES]
    vocab = [
        {"rank": i, "token_bytes": base64.b64encode(piece).decode(), "token_str": piece.decode("utf-8", "replace")}
        for i, piece in enumerate(pieces)
    ]
    special = [{"rank": i, "token_str": NAMED.get(i, f"<SPECIAL_{i}>"), "is_control": True} for i in range(40)]
    config = {
        "pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+",
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": len(vocab) + 40,
        "default_num_special_tokens": 40,
        "version": "v7",
    }
    audio = {
        "sampling_rate": 16000,
        "frame_rate": 12.5,
        "chunk_length_s": 30.0,
        "audio_encoding_config": {"num_mel_bins": 80, "window_size": 400, "hop_length": 160},
    }
    path.write_text(json.dumps({"config": config, "vocab": vocab, "special_tokens": special, "audio": audio}))


def build(seed=0) -> tuple[Any, Any]:
    """Return (model, processor)."""
    torch.manual_seed(seed)
    write_tekken(Path(FOLDER.name) / "tekken.json")
    tokenizer = MistralCommonBackend.from_pretrained(FOLDER.name)
    config = VoxtralConfig(
        audio_config={
            "model_type": "voxtral_encoder",
            "num_mel_bins": 80,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_source_positions": 1500,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": tokenizer.vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "initializer_range": 0.3,
            "max_position_embeddings": 1024,
            "eos_token_id": 2,
            "bos_token_id": 1,
            "pad_token_id": 11,
        },
        audio_token_id=24,
    )
    model = finish(
        VoxtralForConditionalGeneration(config),
        tokenizer,
        towers=["model.audio_tower"],
        head="lm_head",
        eos=["</s>"],
        projectors=["model.multi_modal_projector"],
    )
    processor = VoxtralProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer)
    return model, processor
