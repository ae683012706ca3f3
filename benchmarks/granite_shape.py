"""A model of ibm-granite/granite-speech-3.3-2b's published shape, with small random weights."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    Blip2QFormerConfig,
    GenerationConfig,
    GraniteSpeechConfig,
    GraniteSpeechForConditionalGeneration,
)
from transformers.initialization import no_init_weights


def granite_speech(
    dtype: torch.dtype,
    device: torch.device,
    *,
    audio_token: int,
    text: Mapping[str, Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
) -> GraniteSpeechForConditionalGeneration:
    """Make the model; `text` and `encoder` replace settings of the language model and the audio encoder."""
    text, encoder = text or {}, encoder or {}
    config = GraniteSpeechConfig(
        encoder_config={
            "num_layers": 16,
            "hidden_dim": 1024,
            "num_heads": 8,
            "dim_head": 128,
            "output_dim": 42,
            **encoder,
        },
        projector_config=Blip2QFormerConfig(
            hidden_size=1024,
            num_hidden_layers=2,
            num_attention_heads=16,
            intermediate_size=4096,
            encoder_hidden_size=1024,
            cross_attention_frequency=1,
        ),
        text_config={
            "model_type": "granite",
            "vocab_size": 49160,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.015625,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": True,
            **text,
        },
        audio_token_index=audio_token,
        has_lora_adapter=False,
    )
    with no_init_weights(), torch.device(device):
        model = GraniteSpeechForConditionalGeneration._from_config(config, dtype=dtype)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0) if "norm" in name.lower() else parameter.normal_(0, 0.02, generator=generator)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.reset_running_stats()
    model.generation_config = GenerationConfig(eos_token_id=0, pad_token_id=0)
    return model.eval()
