"""A tiny Qwen2Audio with its real processor class; optionally with sliding-window layers, as Qwen2 may have."""

from typing import Any

import torch
from transformers import (
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

from tests.helpers.models.common import decoder, finish, train_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]


def build(seed=0, window=None) -> tuple[Any, Any]:
    """Return (model, processor); `window` makes the second layer slide."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(SPECIAL, eos="<|im_end|>", pad="<|endoftext|>")
    sliding = (
        {}
        if window is None
        else {
            "use_sliding_window": True,
            "sliding_window": window,
            "layer_types": ["full_attention", "sliding_attention"],
        }
    )
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": 80,
            "d_model": 16,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "max_source_positions": 100,
        },
        text_config=decoder(tokenizer, model_type="qwen2", tie_word_embeddings=False, **sliding),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    model = finish(
        Qwen2AudioForConditionalGeneration(config),
        tokenizer,
        towers=["model.audio_tower"],
        head="lm_head",
        projectors=["model.multi_modal_projector"],
    )
    processor = Qwen2AudioProcessor(
        WhisperFeatureExtractor(feature_size=80, chunk_length=2, return_attention_mask=True), tokenizer
    )
    return model, processor
