"""A tiny Qwen2.5-Omni thinker with its real processor class: multimodal rotary positions, chunked audio encoder."""

from typing import Any

import torch
from transformers import (
    Qwen2_5OmniProcessor,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.video_processing_utils import VideoProcessorMixin

from tests.helpers.models.common import SYSTEM_TURN, AnyVideoProcessor, chat_template, decoder, finish, train_tokenizer

NAMED = {
    "image_token": "<|IMAGE|>",
    "audio_token": "<|AUDIO|>",
    "video_token": "<|VIDEO|>",
    "vision_bos_token": "<|vision_bos|>",
    "vision_eos_token": "<|vision_eos|>",
    "audio_bos_token": "<|audio_bos|>",
    "audio_eos_token": "<|audio_eos|>",
}
CHAT_TEMPLATE = chat_template(
    before=SYSTEM_TURN,
    image="<|vision_bos|><|IMAGE|><|vision_eos|>",
    audio="<|audio_bos|><|AUDIO|><|audio_eos|>",
    video="<|vision_bos|><|VIDEO|><|vision_eos|>",
)


class Processor(AnyVideoProcessor, Qwen2_5OmniProcessor):
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
    }
    config = Qwen2_5OmniThinkerConfig(
        **ends,
        audio_config={
            "num_mel_bins": 80,
            "d_model": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "max_source_positions": 150,
            "n_window": 20,
            "output_dim": 32,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 32,
            "fullatt_block_indexes": [0],
        },
        text_config=decoder(
            tokenizer,
            tie_word_embeddings=False,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        ),
        audio_token_index=ids["audio_token"],
        image_token_index=ids["image_token"],
        video_token_index=ids["video_token"],
        audio_start_token_id=ids["audio_bos_token"],
        audio_end_token_id=ids["audio_eos_token"],
        user_token_id=20,
    )
    model: Any = Qwen2_5OmniThinkerForConditionalGeneration(config)
    model = finish(
        model,
        tokenizer,
        towers=["model.audio_tower"],
        projectors=["model.audio_tower.proj"],
        head="lm_head",
        eos=["<|im_end|>", "<|endoftext|>"],
    )
    processor = Processor(
        Qwen2VLImageProcessorPil(),
        VideoProcessorMixin(),
        WhisperFeatureExtractor(feature_size=80, chunk_length=3),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor
