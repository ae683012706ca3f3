"""A tiny Qwen3-Omni thinker with its real processor class: a mixture of experts behind multimodal rotary positions."""

from typing import Any

import torch
from torch import nn
from transformers import (
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.video_processing_utils import VideoProcessorMixin

from tests.helpers.models.common import AnyVideoProcessor, chat_template, decoder, finish, train_tokenizer

NAMED = {
    "image_token": "<|image_pad|>",
    "audio_token": "<|audio_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}
CHAT_TEMPLATE = chat_template(
    image="<|vision_start|><|image_pad|><|vision_end|>",
    audio="<|audio_start|><|audio_pad|><|audio_end|>",
    video="<|vision_start|><|video_pad|><|vision_end|>",
)


class Processor(AnyVideoProcessor, Qwen3OmniMoeProcessor):
    pass


def build(seed=0) -> tuple[Any, Any]:
    """Return (model, processor); image and video processors are stand-ins, the real ones need torchvision."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *NAMED.values()],
        eos="<|im_end|>",
        pad="<|endoftext|>",
        named=NAMED,
    )
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in NAMED.items()}
    # The published configurations have these, and the class takes them without naming them.
    ends: dict[str, Any] = {
        "vision_start_token_id": ids["vision_bos_token"],
        "vision_end_token_id": ids["vision_eos_token"],
        "audio_end_token_id": ids["audio_eos_token"],
    }
    config = Qwen3OmniMoeThinkerConfig(
        **ends,
        audio_config={
            "num_mel_bins": 80,
            "d_model": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "max_source_positions": 150,
            "output_dim": 32,
            "n_window_infer": 200,
            "downsample_hidden_size": 8,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        text_config=decoder(
            tokenizer,
            moe_intermediate_size=24,
            num_experts=4,
            num_experts_per_tok=2,
            head_dim=8,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        ),
        audio_token_id=ids["audio_token"],
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        audio_start_token_id=ids["audio_bos_token"],
        user_token_id=20,
    )
    model: Any = Qwen3OmniMoeThinkerForConditionalGeneration(config)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            nn.init.normal_(layer.mlp.gate.weight, std=0.3)
    model = finish(
        model,
        tokenizer,
        towers=["model.audio_tower"],
        head="lm_head",
        projectors=["model.audio_tower.proj1", "model.audio_tower.proj2"],
        eos=["<|im_end|>", "<|endoftext|>"],
    )
    processor = Processor(
        Qwen2VLImageProcessorPil(),
        VideoProcessorMixin(),
        WhisperFeatureExtractor(feature_size=80),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor
