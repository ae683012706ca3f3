"""A tiny VibeVoice ASR with its real processor class: 24 kHz waveforms into two convolutional encoders."""

from typing import Any

import torch
from transformers import (
    VibeVoiceAcousticTokenizerFeatureExtractor,
    VibeVoiceAsrConfig,
    VibeVoiceAsrForConditionalGeneration,
    VibeVoiceAsrProcessor,
)

from tests.helpers.models.common import chat_template, decoder, finish, train_tokenizer

SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|AUDIO_DURATION|>",
]
CHAT_TEMPLATE = chat_template(
    before="<|im_start|>system\nYou are a helpful assistant that transcribes audio.<|im_end|>\n",
    audio="<|object_ref_start|><|box_start|><|object_ref_end|>\nThis is a <|AUDIO_DURATION|> seconds audio. ",
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
        text_config=decoder(tokenizer, model_type="qwen2"),
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
