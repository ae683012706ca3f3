"""A tiny Nemotron-H Omni with its real processor class: Parakeet hears; Mamba, attention and expert layers answer."""

from typing import Any

import torch
from transformers import (
    NemotronH_Omni_Reasoning_V3,
    NemotronH_Omni_Reasoning_V3_Config,
    NemotronH_Omni_Reasoning_V3Processor,
    ParakeetFeatureExtractor,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.video_processing_utils import VideoProcessorMixin

from tests.helpers.models.common import AnyVideoProcessor, chat_template, finish, train_tokenizer

SPECIAL = [
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<so_embedding>",
    "<so_start>",
    "<so_end>",
    "<img>",
    "</img>",
]
CHAT_TEMPLATE = chat_template(answer="<think></think>", audio="<so_embedding>\n", image="<image>\n")


class Processor(AnyVideoProcessor, NemotronH_Omni_Reasoning_V3Processor):
    pass


def build(seed=0) -> tuple[Any, Any]:
    """Return (model, processor); image and video processors are stand-ins, the real ones need torchvision."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(SPECIAL, eos="<|im_end|>", pad="<unk>")
    config = NemotronH_Omni_Reasoning_V3_Config(
        text_config={
            "model_type": "nemotron_h",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 48,
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "linear_attention"],
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "n_groups": 2,
            "chunk_size": 8,
            "n_routed_experts": 4,
            "moe_intermediate_size": 24,
            "moe_shared_expert_intermediate_size": 24,
            "initializer_range": 0.3,
            "max_position_embeddings": 512,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": tokenizer.eos_token_id,
            # The class bounds the time step from below by this when it runs blocks of tokens, not token by token.
            "time_step_min": 1e-9,
        },
        vision_config={
            "model_type": "radio",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_img_size": 32,
            "image_size": 32,
            "video_temporal_patch_size": 2,
        },
        audio_config={
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "subsampling_conv_channels": 8,
            "conv_kernel_size": 3,
            "projection_hidden_size": 32,
            "projection_bias": False,
        },
        projector_hidden_size=16,
        vision_hidden_size=16,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        audio_token_id=tokenizer.convert_tokens_to_ids("<so_embedding>"),
    )
    model = NemotronH_Omni_Reasoning_V3(config)
    model = finish(model, tokenizer, towers=["audio_tower"], projectors=["embed_audio"], head="language_model.lm_head")
    processor = Processor(
        SiglipImageProcessorPil(),
        VideoProcessorMixin(),
        tokenizer,
        ParakeetFeatureExtractor(feature_size=80),
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor
