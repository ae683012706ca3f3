"""A tiny GLM-ASR with its real processor class."""

from typing import Any

import torch
from transformers import GlmAsrConfig, GlmAsrForConditionalGeneration, GlmAsrProcessor, WhisperFeatureExtractor

from tests.helpers.models.common import finish, train_tokenizer

SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|begin_of_audio|>", "<|end_of_audio|>", "<|pad|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|begin_of_audio|><|pad|><|end_of_audio|><|user|>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def build(seed=0) -> tuple[Any, Any]:
    """Return (model, processor)."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(SPECIAL, eos="<|endoftext|>", pad="<|endoftext|>")
    ends = ["<|endoftext|>", "<|user|>"]
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
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.3,
            "max_position_embeddings": 512,
            "eos_token_id": tokenizer.convert_tokens_to_ids(ends),
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        },
        audio_token_id=tokenizer.convert_tokens_to_ids("<|pad|>"),
    )
    model = finish(
        GlmAsrForConditionalGeneration(config),
        tokenizer,
        towers=["model.audio_tower"],
        head="lm_head",
        eos=ends,
        projectors=["model.multi_modal_projector"],
    )
    processor = GlmAsrProcessor(
        WhisperFeatureExtractor(feature_size=80, chunk_length=2),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        max_audio_len=2,
    )
    return model, processor
