"""A tiny Phi4Multimodal with its real processor class: fused projections, long-context rotary factors, flat decoder."""

from typing import Any

import torch
from transformers import (
    Phi4MultimodalConfig,
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalForCausalLM,
    Phi4MultimodalProcessor,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.helpers.models.common import finish, train_tokenizer

SPECIAL = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|image|>", "<|audio|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|image|>{% elif part['type'] == 'audio' %}<|audio|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}"
)


def build(seed=0) -> tuple[Any, Any]:
    """Return (model, processor); the image processor is a stand-in, the real one needs torchvision."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(
        SPECIAL,
        eos="<|endoftext|>",
        pad="<|endoftext|>",
        bos="<|endoftext|>",
        named={"image_token": "<|image|>", "audio_token": "<|audio|>"},
    )
    config = Phi4MultimodalConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        original_max_position_embeddings=512,
        sliding_window=4096,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|end|>"]),
        pad_token_id=tokenizer.pad_token_id,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "short_factor": [1.0, 1.1, 1.2],
            "long_factor": [1.0, 3.0, 9.0],
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "crop_size": 28,
            "image_token_id": tokenizer.image_token_id,
        },
        audio_config={
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_blocks": 2,
            "num_attention_heads": 2,
            "left_chunk": 18,
            "ext_pw_out_channel": 16,
            "depthwise_separable_out_channel": 16,
            "nemo_conv_channels": 8,
            "audio_token_id": tokenizer.audio_token_id,
        },
    )
    tokenizer.chat_template = CHAT_TEMPLATE  # as published: the processor class drops its own on loading
    model = Phi4MultimodalForCausalLM(config)
    audio = "model.embed_tokens_extend.audio_embed"
    model = finish(
        model,
        tokenizer,
        towers=[f"{audio}.encoder"],
        eos=["<|endoftext|>", "<|end|>"],
        projectors=[f"{audio}.up_proj_for_speech", f"{audio}.down_proj_for_speech"],
    )
    processor = Phi4MultimodalProcessor(SiglipImageProcessorPil(), Phi4MultimodalFeatureExtractor(), tokenizer)
    return model, processor
