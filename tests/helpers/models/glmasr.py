"""A tiny GLM-ASR with its real processor class."""

from typing import Any

import torch
from transformers import GlmAsrConfig, GlmAsrForConditionalGeneration, GlmAsrProcessor, WhisperFeatureExtractor

from tests.helpers.models.common import content, decoder, finish, train_tokenizer

SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|pad|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n"
    + content(audio="<|begin_of_audio|><|pad|><|end_of_audio|><|user|>\n")
    + "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
ENDS = ["<|endoftext|>", "<|user|>"]


def build(seed=0) -> tuple[Any, Any]:
    """Return (model, processor)."""
    config, processor = config_and_processor()
    torch.manual_seed(seed)
    model = finish(
        GlmAsrForConditionalGeneration(config),
        processor.tokenizer,
        towers=["model.audio_tower"],
        head="lm_head",
        eos=ENDS,
        projectors=["model.multi_modal_projector"],
    )
    return model, processor


def config_and_processor() -> tuple[GlmAsrConfig, GlmAsrProcessor]:
    """Return both without a model, whose parts have other names in transformers up to 5.9."""
    tokenizer = train_tokenizer(SPECIAL, eos="<|endoftext|>", pad="<|endoftext|>")
    config = GlmAsrConfig(
        audio_config={
            "model_type": "glmasr_encoder",
            "num_mel_bins": 80,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 100,
        },
        text_config=decoder(tokenizer, model_type="llama", eos_token_id=tokenizer.convert_tokens_to_ids(ENDS)),
        audio_token_id=tokenizer.convert_tokens_to_ids("<|pad|>"),
    )
    processor = GlmAsrProcessor(
        WhisperFeatureExtractor(feature_size=80, chunk_length=2),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        max_audio_len=2,
    )
    return config, processor
