"""A tiny MusicFlamingo with its real processor class: AudioFlamingo3 with rotary time and markers around the audio."""

from typing import Any

import torch
from transformers import (
    MusicFlamingoConfig,
    MusicFlamingoForConditionalGeneration,
    MusicFlamingoProcessor,
    WhisperFeatureExtractor,
)

from tests.helpers.models.common import SYSTEM_TURN, chat_template, decoder, finish, flamingo_encoder, train_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<sound>", "<|sound_bos|>", "<|sound_eos|>"]
CHAT_TEMPLATE = chat_template(before=SYSTEM_TURN, audio="<sound>")


def build(seed=0) -> tuple[Any, Any]:
    """Return (model, processor); windows of 1 s, so that a recording of 1.25 s already spans two."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(SPECIAL, eos="<|im_end|>", pad="<|endoftext|>")
    config = MusicFlamingoConfig(
        audio_config=flamingo_encoder(50),
        text_config=decoder(tokenizer, model_type="qwen2"),
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"),
        audio_bos_token_id=tokenizer.convert_tokens_to_ids("<|sound_bos|>"),
        audio_eos_token_id=tokenizer.convert_tokens_to_ids("<|sound_eos|>"),
        rope_parameters={"rope_type": "default", "rope_theta": 1200.0, "partial_rotary_factor": 0.25},
    )
    model = MusicFlamingoForConditionalGeneration(config)
    model = finish(
        model, tokenizer, towers=["model.audio_tower"], projectors=["model.multi_modal_projector"], head="lm_head"
    )
    processor = MusicFlamingoProcessor(
        WhisperFeatureExtractor(feature_size=80, chunk_length=1),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        max_audio_len=2,
    )
    return model, processor
