"""A tiny Qwen3-ASR with its real processor class."""

from typing import Any

import torch
from transformers import Qwen3ASRConfig, Qwen3ASRFeatureExtractor, Qwen3ASRForConditionalGeneration, Qwen3ASRProcessor

from tests.helpers.models.common import chat_template, decoder, finish, train_tokenizer

NAMED = {"audio_token": "<|audio_pad|>", "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>"}
CHAT_TEMPLATE = chat_template(audio="<|audio_start|><|audio_pad|><|audio_end|>")


def build(seed=0) -> tuple[Any, Any]:
    """Return (model, processor)."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *NAMED.values()],
        eos="<|im_end|>",
        pad="<|endoftext|>",
        named=NAMED,
    )
    config = Qwen3ASRConfig(
        audio_config={
            "model_type": "qwen3_asr_encoder",
            "num_mel_bins": 128,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "d_model": 16,
            "output_dim": 32,
            "n_window_infer": 200,
            "downsample_hidden_size": 8,
        },
        text_config=decoder(tokenizer, model_type="qwen3", head_dim=8, tie_word_embeddings=True),
        audio_token_id=tokenizer.convert_tokens_to_ids("<|audio_pad|>"),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=[tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_end|>")],
    )
    model = finish(
        Qwen3ASRForConditionalGeneration(config),
        tokenizer,
        towers=["model.audio_tower"],
        projectors=["model.multi_modal_projector"],
        head="lm_head",
        eos=["<|endoftext|>", "<|im_end|>"],
    )
    processor = Qwen3ASRProcessor(Qwen3ASRFeatureExtractor(), tokenizer, chat_template=CHAT_TEMPLATE)
    return model, processor
