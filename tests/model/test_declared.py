"""A family with a wrong field is refused at start-up, by the name of the field."""

from dataclasses import replace
from typing import Any

import peft
import pytest
import torch

from leaf.errors import ModelError
from leaf.model import families
from leaf.model.checks import check_policy
from leaf.model.families import family_of
from leaf.model.family import Family
from leaf.model.policy import Policy
from tests.helpers import tiny
from tests.helpers.families import build
from tests.helpers.project import save


def declared(case, monkeypatch, **fields):
    """A policy whose family has other fields than the registered one."""
    model, processor = build(case)
    wrong = replace(family_of(model.config), **fields)
    monkeypatch.setitem(families._FAMILIES, wrong.model_type, wrong)
    return Policy.wrap(model, processor, lora=peft.LoraConfig(r=2))


WRONG = [
    ("granite_speech", {"logits_scale": lambda config: 1.0}, "logits_scale.*gives 1 and .* divides by 8"),
    ("granite_speech", {"logits_scale": lambda config: 2.0}, "logits_scale.*gives 2 and .* divides by 8"),
    ("granite_speech 4 dense", {"logits_scale": lambda config: 1.0}, "logits_scale.*gives 1"),
    ("qwen2_audio", {"logits_scale": lambda config: 2.0}, "differ by .* nats per token"),
    ("gemma3n", {"logits_cap": lambda config: None}, "logits_cap.*gives None"),
    ("audioflamingo3", {"logits_cap": lambda config: 30.0}, "logits_cap.*gives 30"),
    ("audioflamingo3", {"projector": "lm_head"}, "projector='lm_head'.*shares weights with"),
    ("audioflamingo3", {"projector": "model.audio_tower.layers.0.fc1"}, "projector=.*are not its output"),
    ("audioflamingo3", {"projector": "model.multi_modal_projector.linear_1"}, "projector=.*are not its output"),
    ("audioflamingo3", {"projector": "model.audio_tower"}, "projector=.*it is the audio tower too"),
    ("phi4_multimodal", {"audio_output": None}, "projector=.*are not its output"),
    (
        "phi4_multimodal",
        {"projector": "model.embed_tokens_extend.audio_embed.up_proj_for_vision_speech"},
        "projector=.*does not run",
    ),
    ("audioflamingo3", {"audio_tower": "model.language_model"}, "audio_tower=.*shares weights with"),
    ("audioflamingo3", {"audio_tower": "model.language_model.layers.0"}, "audio_tower=.*shares weights with"),
    ("qwen3_omni_moe", {"audio_tower": "model.visual"}, "audio_tower=.*does not run"),
    ("audioflamingo3", {"audio_token": "<|im_end|>"}, "projector=.*token that it replaces"),
    ("qwen2_audio", {"max_seconds": lambda processor: 3.0}, "takes 3 s of audio.*cuts them off"),
    ("qwen2_audio", {"max_seconds": lambda processor: float("inf")}, "takes inf s of audio.*cuts them off"),
    ("glmasr", {"max_seconds": lambda processor: 1000.0}, "takes 1000 s of audio"),
    ("granite_speech", {"alone": False}, "alone=False.*embedded beside a longer one"),
    ("phi4_multimodal", {"alone": False}, "alone=False.*embedded beside a longer one"),
    ("vibevoice_asr", {"forward": {}}, "add no noise"),
]


@pytest.mark.parametrize(("case", "fields", "message"), WRONG, ids=[f"{case}-{message}" for case, _, message in WRONG])
def test_a_wrong_field_is_refused_by_name(case, fields, message, monkeypatch):
    policy = declared(case, monkeypatch, **fields)
    with pytest.raises(ModelError, match=message):
        check_policy(policy, tiny.rows(2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"max_seconds": 30.0},
            r"max_seconds=30\.0; it has to be a function, as in max_seconds=lambda processor: 30\.0",
        ),
        ({"logits_scale": 2.0}, r"logits_scale=2\.0; it has to be a function, as in logits_scale=lambda config: 2\.0"),
        ({"logits_cap": 30.0}, "logits_cap=30"),
        ({"encode": "text"}, "encode='text'; it has to be a function"),
        ({"projector": None}, "projector=None; it has to be a name in quotes"),
        ({"lora_layers": "q_proj"}, "lora_layers='q_proj'; it has to be a tuple"),
    ],
)
def test_a_field_of_another_kind_is_refused_when_it_is_written(fields, message):
    right: dict[str, Any] = {
        "model_type": "x",
        "language_model": "m",
        "audio_tower": "a",
        "projector": "p",
        "audio_token": "<a>",
    }
    right["max_seconds"] = lambda processor: 30.0
    Family(**right)
    with pytest.raises(ModelError, match=message):
        Family(**right | fields)


def test_an_unknown_placeholder_is_refused(monkeypatch):
    with pytest.raises(ModelError, match=r"does not know <audio_9>.*correct audio_token"):
        declared("audioflamingo3", monkeypatch, audio_token="<audio_9>")


def test_an_unknown_extractor_is_refused(monkeypatch):
    policy = declared("audioflamingo3", monkeypatch, feature_extractor="audio_processor")
    with pytest.raises(ModelError, match="feature_extractor='audio_processor'"):
        check_policy(policy, tiny.rows(2))


def test_a_tokenizer_without_padding_is_refused():
    model, processor = tiny.tiny_model()
    processor.tokenizer.pad_token = None
    with pytest.raises(ModelError, match=r"has no padding token.*tokenizer_config\.json"):
        Policy.wrap(model, processor)


def test_a_checkpoint_without_its_tokenizer_is_refused_in_one_sentence(tmp_path):
    model, processor = tiny.tiny_model()
    save(model, processor, tmp_path)
    for file in tmp_path.glob("token*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"does not know <sound>.*own tokenizer files"):
        Policy.load(tmp_path)
    for file in tmp_path.glob("*processor*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"The checkpoint .* cannot be loaded"):
        Policy.load(tmp_path)


def test_the_half_of_a_prompt_stays_within_the_precision():
    model, processor = build("nemotron_h_omni")
    policy = Policy.wrap(model.to(torch.bfloat16), processor, lora=peft.LoraConfig(r=2))
    check_policy(policy, tiny.rows(2))
