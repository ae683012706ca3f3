"""A tiny VibeVoice ASR with its real processor class: 24 kHz waveforms into two convolutional encoders."""

from typing import Any

import torch
from transformers import (
    VibeVoiceAcousticTokenizerFeatureExtractor,
    VibeVoiceAsrConfig,
    VibeVoiceAsrForConditionalGeneration,
    VibeVoiceAsrProcessor,
)

from tests.helpers.models.common import finish, train_tokenizer

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|AUDIO_DURATION|>",
]
CHAT_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant that transcribes audio.<|im_end|>\n"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|object_ref_start|><|box_start|><|object_ref_end|>\n"
    "This is a <|AUDIO_DURATION|> seconds audio. {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build(seed=0) -> tuple[Any, Any]:
    """Return (model, processor); one embedding per 3200 samples (2/15 s), as in the checkpoint."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(SPECIAL, eos="<|im_end|>", pad="<|endoftext|>")
    encoder = {
        "model_type": "vibevoice_acoustic_tokenizer_encoder",
        "hidden_size": 8,
        "num_filters": 2,
        "kernel_size": 7,
        "depths": [1] * 7,
        "layer_scale_init_value": 0.5,
    }
    config = VibeVoiceAsrConfig(
        acoustic_tokenizer_encoder_config=dict(encoder),
        semantic_tokenizer_encoder_config={**encoder, "hidden_size": 12},
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        },
        audio_token_id=tokenizer.convert_tokens_to_ids("<|box_start|>"),
        audio_bos_token_id=tokenizer.convert_tokens_to_ids("<|object_ref_start|>"),
        audio_eos_token_id=tokenizer.convert_tokens_to_ids("<|object_ref_end|>"),
    )
    model = VibeVoiceAsrForConditionalGeneration(config)
    encoders = ["model.acoustic_tokenizer_encoder", "model.semantic_tokenizer_encoder"]
    model = finish(model, tokenizer, towers=encoders, projectors=["model.multi_modal_projector"], head="lm_head")
    processor = VibeVoiceAsrProcessor(
        VibeVoiceAcousticTokenizerFeatureExtractor(), tokenizer, chat_template=CHAT_TEMPLATE
    )
    return model, processor
