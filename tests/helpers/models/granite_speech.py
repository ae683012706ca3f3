"""Tiny Granite Speech models with their real processor class: conformer, Q-Former, Granite or hybrid decoder."""

from typing import Any

import torch
from transformers import (
    Blip2QFormerConfig,
    GraniteSpeechConfig,
    GraniteSpeechFeatureExtractor,
    GraniteSpeechForConditionalGeneration,
    GraniteSpeechPlusConfig,
    GraniteSpeechPlusForConditionalGeneration,
    GraniteSpeechProcessor,
)

from tests.helpers.models.common import decoder, finish, train_tokenizer

SPECIAL = ["<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|audio|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|start_of_role|>{{ message['role'] }}<|end_of_role|>{{ message['content'] }}"
    "<|end_of_text|>\n{% endfor %}{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
GRANITE = {
    "model_type": "granite",
    "embedding_multiplier": 3.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.4,
}
# The 4.x language models have the hybrid class; the dense ones consist of attention layers alone.
DENSE_4 = {
    **GRANITE,
    "model_type": "granitemoehybrid",
    "num_local_experts": 0,
    "shared_intermediate_size": 48,
    "layer_types": ["full_attention", "full_attention"],
    "position_embedding_type": "rope",
    "mamba_n_heads": 4,
}
HYBRID_4 = {
    **DENSE_4,
    "layer_types": ["linear_attention", "full_attention"],
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}


def build(seed=0, text=GRANITE, plus=False) -> tuple[Any, Any]:
    """Return (model, processor)."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(SPECIAL, eos="<|end_of_text|>", pad="<|end_of_text|>", bos="<|end_of_text|>")
    encoder = {
        "input_dim": 160,
        "num_layers": 2,
        "hidden_dim": 16,
        "feedforward_mult": 2,
        "num_heads": 2,
        "output_dim": 8,
        "context_size": 20,
        "max_pos_emb": 32,
        "conv_kernel_size": 5,
    } | ({"cat_hidden_layers": [0]} if plus else {})
    config = (GraniteSpeechPlusConfig if plus else GraniteSpeechConfig)(
        encoder_config=encoder,
        projector_config=Blip2QFormerConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            cross_attention_frequency=1,
            encoder_hidden_size=32 if plus else 16,
        ),
        text_config=decoder(tokenizer, max_position_embeddings=2048, **text),
        audio_token_index=tokenizer.convert_tokens_to_ids("<|audio|>"),
        has_lora_adapter=False,
        window_size=6,
        downsample_rate=2,
    )
    model_class: Any = GraniteSpeechPlusForConditionalGeneration if plus else GraniteSpeechForConditionalGeneration
    model = model_class(config)
    model = finish(model, tokenizer, towers=["model.encoder"], projectors=["model.projector"], head="lm_head")
    processor = GraniteSpeechProcessor(
        GraniteSpeechFeatureExtractor(projector_window_size=6, projector_downsample_rate=2),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    return model, processor
