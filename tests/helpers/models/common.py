"""What the tiny models share: a tokenizer, a language model, chat templates, and weights that tell right from wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerFast

TEXTS = ["press one to leave the conference", "you have two new messages", "what do i press", "the time is seven"]


def train_tokenizer(special, *, eos, pad, bos=None, named=None, last=(), prepend_bos=False) -> Any:
    """Train a byte-level BPE tokenizer of about 320 tokens; `special` come first, `named` become attributes of it.

    `last` are special tokens behind all others. `prepend_bos` makes the tokenizer itself put `bos` before every text,
    as Gemma's and Mistral's do.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in last])
    if bos is not None and prepend_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=eos,
        pad_token=pad,
        bos_token=bos,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens=named or {},
    )


_WIDER: dict[str, Any] = {}


@contextmanager
def wider(**settings: Any) -> Iterator[None]:
    """Let language models that are described inside be larger than the tiny ones: heads of 32, as vLLM needs them."""
    _WIDER.update({"hidden_size": 128, "head_dim": 32, "initializer_range": 0.15, **settings})
    try:
        yield
    finally:
        _WIDER.clear()


def decoder(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Describe a language model of two layers whose logits are far from uniform; `more` replaces and adds settings."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        **more,
        **_WIDER,
    }


def flamingo_encoder(positions: int) -> dict[str, Any]:
    """Describe an audio encoder of AudioFlamingo3 that takes windows of 2 · `positions` frames."""
    return {
        "model_type": "audioflamingo3_encoder",
        "num_mel_bins": 80,
        "d_model": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_source_positions": positions,
    }


SYSTEM_TURN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)


def content(**parts):
    """Write the Jinja of a message's content: its text, and what `parts` has for each other type of part."""
    tests = [f"if part['type'] == '{kind}' %}}{text}" for kind, text in parts.items()]
    return (
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}{% "
        + "{% el".join(tests)
        + "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    )


def chat_template(before="", answer="", **parts):
    """Write a template in the form of Qwen's; `before` comes first, and `answer` begins the answer."""
    return (
        before
        + "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        + content(**parts)
        + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        + answer
        + "{% endif %}"
    )


class AnyVideoProcessor:
    """Take any video processor: transformers exports the base class it checks for only where torchvision is."""

    def check_argument_for_proper_class(self, argument_name, argument):
        if argument_name == "video_processor":
            return type(argument)
        return super().check_argument_for_proper_class(argument_name, argument)  # type: ignore[misc]


def finish(model: Any, tokenizer: Any, *, towers=(), projectors=(), head=None, eos=None) -> Any:
    """Enlarge weights of `towers` and `projectors` and of the head, set the end tokens, and return the model in eval.

    Only matrices are drawn anew; norms and biases stay. A matrix (out, in) gets a standard deviation of
    gain / sqrt(in), so that signals keep their size on their way through.
    """
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for paths, gain in ((towers, 1.4), (projectors, 3.0)):
            for path in paths:
                for module in model.get_submodule(path).modules():
                    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
                        weight = module.weight
                        spread = gain / weight[0].numel() ** 0.5
                        weight.copy_(torch.randn(weight.shape, generator=generator) * spread)
        if head is not None:
            weight = model.get_submodule(head).weight
            weight.copy_(torch.randn(weight.shape, generator=generator) * 2.0 / weight.shape[1] ** 0.5)
    ends = eos or [tokenizer.eos_token]
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=[tokenizer.convert_tokens_to_ids(token) for token in ends],
        pad_token_id=tokenizer.pad_token_id,
    )
    return model.eval()
