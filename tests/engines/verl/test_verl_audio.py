"""The doors that leaf.engines.verl.audio opens in verl, on a tiny GLM-ASR with its real processor."""

# pyright: reportMissingImports=false

from types import SimpleNamespace

import pytest
import torch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from transformers import GlmAsrForConditionalGeneration

    from leaf.engines.verl.audio import open_doors
    from tests.helpers.models import glmasr

    open_doors()
    open_doors()
    config, processor = glmasr.config_and_processor()
    folder = tmp_path_factory.mktemp("glmasr")
    torch.manual_seed(0)
    GlmAsrForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_verl_loads_processor_and_head_of_a_speech_model(checkpoint):
    from verl.utils import hf_processor
    from verl.utils.model import get_hf_auto_model_class
    from verl.workers.config import model

    processor = hf_processor(checkpoint)
    assert type(processor).__name__ == "GlmAsrProcessor"
    assert model.hf_processor is hf_processor  # where its workers take it from
    kind = get_hf_auto_model_class(processor.config)
    assert type(kind.from_pretrained(checkpoint)).__name__ == "GlmAsrForConditionalGeneration"


def test_a_text_model_has_no_processor_as_before(tmp_path):
    from transformers import LlamaConfig
    from verl.utils import hf_processor

    from tests.helpers.models import glmasr

    LlamaConfig(architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    glmasr.config_and_processor()[1].tokenizer.save_pretrained(tmp_path)
    assert hf_processor(str(tmp_path)) is None


def test_a_server_gets_every_placeholder_once(checkpoint):
    from verl.utils import hf_processor
    from verl.workers.rollout import utils

    processor = hf_processor(checkpoint)
    audio = processor.audio_token_id
    collapse = utils.qwen2_5_vl_dedup_image_tokens
    assert collapse([77, audio, audio, audio, 66, 66, audio, audio], processor) == [77, audio, 66, 66, audio]
    assert collapse([audio], processor) == [audio]
    assert collapse([], processor) == []
    seeing = SimpleNamespace(image_processor=object(), feature_extractor=object())
    assert collapse([audio, audio], seeing) == [audio, audio]
    assert utils.get_vision_placeholder_token_ids(processor) == [audio]
    assert utils.get_vision_placeholder_token_ids(None) == []
