"""A tiny AudioFlamingo3 with its real processor class and a tokenizer trained here: for equality, not learning."""

from typing import Any

import numpy as np
import torch
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    GenerationConfig,
    WhisperFeatureExtractor,
)

from leaf.model.demo import CHAT_TEMPLATE
from tests.helpers.models.common import TEXTS, decoder, flamingo_encoder, train_tokenizer


def tiny_model(seed=0) -> tuple[Any, Any]:
    """Return (model, processor); weights are large enough that distributions are far from uniform."""
    torch.manual_seed(seed)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<sound>"]
    tokenizer = train_tokenizer(special, eos="<|im_end|>", pad="<|endoftext|>", bos="<|im_start|>")
    config = AudioFlamingo3Config(
        audio_config=flamingo_encoder(100),
        text_config=decoder(tokenizer, model_type="llama", bos_token_id=1),
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"),
    )
    model = AudioFlamingo3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.normal_(0, 1.0)
        model.lm_head.weight.normal_(0, 0.3)
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    processor = AudioFlamingo3Processor(
        WhisperFeatureExtractor(feature_size=80, chunk_length=2),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        audio_token="<sound>",
        max_audio_len=2,
    )
    return model, processor


def rows(count=3):
    """Return rows with tones of different pitch and length for audio and prompts of different lengths."""
    made = []
    for i in range(count):
        time = np.arange(16000 * (2 + i % 3) // 4) / 16000
        wave = (0.3 * np.sin(2 * np.pi * 300 * (i + 1) * time)).astype(np.float32)
        made.append(
            {
                "id": str(i),
                "prompt": " ".join(TEXTS[: 1 + i % 3]),
                "audio": {"array": wave, "sampling_rate": 16000},
                "reference": TEXTS[i % len(TEXTS)],
                "seconds": len(wave) / 16000,
                "utterance": str(i),
            }
        )
    return made
