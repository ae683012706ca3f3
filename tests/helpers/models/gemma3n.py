"""A tiny Gemma3n with its real processor class: per-layer inputs, shared KV, sliding windows, a soft-capped head.

The vision tower is a stand-in (the real one is built by timm) and so is the image processor.
"""

from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    Gemma3nAudioFeatureExtractor,
    Gemma3nConfig,
    Gemma3nForConditionalGeneration,
    Gemma3nProcessor,
    PreTrainedModel,
)
from transformers.models.gemma3n.configuration_gemma3n import Gemma3nVisionConfig
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.helpers.models.common import finish, train_tokenizer

AUDIO_TOKENS = 20  # embeddings per recording whatever its length, 0.16 s each (published: 188)
NAMED = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
    "boa_token": "<start_of_audio>",
    "eoa_token": "<end_of_audio>",
    "audio_token": "<audio_soft_token>",
}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'audio' %}<audio_soft_token>"
    "{% elif part['type'] == 'image' %}<image_soft_token>{% else %}{{ part['text'] | trim }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


class Vision(PreTrainedModel):
    """Stand in for the vision tower, which timm builds; no prompt here has an image."""

    config_class = Gemma3nVisionConfig

    def __init__(self, config):
        super().__init__(config)
        self.unused = nn.Linear(1, 1)
        self.post_init()


AutoModel.register(Gemma3nVisionConfig, Vision, exist_ok=True)


def build(seed=0, sliding_window=24) -> tuple[Any, Any]:
    """Return (model, processor); the default window is shorter than the prompts, as 512 is shorter than long ones."""
    torch.manual_seed(seed)
    behind = [
        NAMED["eoi_token"],
        NAMED["image_token"],
        "<v2>",
        "<v3>",
        NAMED["eoa_token"],
        NAMED["audio_token"],
        "<a2>",
        "<a3>",
    ]
    tokenizer = train_tokenizer(
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", NAMED["boi_token"], NAMED["boa_token"]],
        eos="<eos>",
        pad="<pad>",
        bos="<bos>",
        named=NAMED,
        last=behind,
        prepend_bos=True,
    )
    size = len(tokenizer) - 8  # text tokens; then four of vision and four of audio (published: 262144 + 128 + 128)
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in NAMED.items()}
    config = Gemma3nConfig(
        text_config={
            "vocab_size": size + 8,
            "vocab_size_per_layer_input": size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "hidden_size_per_layer_input": 8,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 512,
            "initializer_range": 0.3,
            "sliding_window": sliding_window,
            "num_kv_shared_layers": 2,
            "laurel_rank": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "activation_sparsity_pattern": [0.95, 0.0, 0.0, 0.0],
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        },
        audio_config={
            "vocab_size": 4,
            "vocab_offset": size + 4,
            "input_feat_size": 16,
            "hidden_size": 16,
            "conf_num_attention_heads": 2,
            "conf_num_hidden_layers": 2,
            "sscp_conv_channel_size": (4, 4),
        },
        vision_config={"vocab_size": 4, "vocab_offset": size, "hidden_size": 8},
        audio_soft_tokens_per_image=AUDIO_TOKENS,
        **ids,
    )
    model = Gemma3nForConditionalGeneration(config)
    model = finish(
        model, tokenizer, towers=["model.audio_tower"], projectors=["model.embed_audio"], eos=["<eos>", "<end_of_turn>"]
    )
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.altup.correct_output_scale.fill_(1.0)  # zero as initialised, which leaves the per-layer inputs out
        model.lm_head.weight *= 1.5  # which are the embeddings' too
        model.lm_head.weight[size:] = 0.0  # a trained model does not say soft tokens either
    processor = Gemma3nProcessor(
        Gemma3nAudioFeatureExtractor(feature_size=16),
        SiglipImageProcessorPil(),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        audio_seq_length=AUDIO_TOKENS,
    )
    return model, processor
