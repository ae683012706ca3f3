"""What `leaf data export --for verl` writes, read by verl's own data set and given to a processor as verl gives it."""

# pyright: reportMissingImports=false

import asyncio
import io
import json

import numpy as np
import pytest
import soundfile

from leaf.data import load
from leaf.data.audio import load_audio
from leaf.data.export import export_for_verl
from leaf.data.recordings import hear
from tests.helpers.sound import tone


@pytest.fixture
def exported(tmp_path):
    """Write a manifest of three rows, one of them a stretch and one of two files, as Parquet."""
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", tone(0.5 + i / 4, hz=200 + 100 * i), 16000)
    rows = [
        {"prompt": "Say it.", "audio": "0.wav", "reference": "zero", "kind": "digit"},
        {"prompt": "Say it.", "audio": "1.wav", "offset": 0.2, "duration": 0.4, "reference": "one"},
        {"prompt": "Say both.", "audio": ["0.wav", "2.wav"], "reference": "zero two", "kind": "digits"},
    ]
    manifest = tmp_path / "my.jsonl"
    manifest.write_text("\n".join(json.dumps({**row, "split": "train"}) for row in rows))
    dataset = load(str(manifest), "train")
    files = export_for_verl(dataset, "my", "train", tmp_path / "train.parquet")
    return dataset, [str(file) for file in files]


def data_set(files, processor, tmp_path, **more):
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import get_dataset_class

    config = OmegaConf.create({"cache_dir": str(tmp_path), "filter_overlong_prompts_workers": 1, **more})
    made = get_dataset_class(config)(files, processor.tokenizer, config, processor)
    return config, made


BY_LEAF = {"custom_cls": {"path": "pkg://leaf.engines.verl.dataset", "name": "LeafDataset"}}


@pytest.fixture(scope="module")
def processor():
    from tests.helpers.models import glmasr

    return glmasr.config_and_processor()[1]


def test_verls_own_data_set_reads_the_file(exported, processor, tmp_path):
    dataset, files = exported
    _, rows = data_set(files, processor, tmp_path, filter_overlong_prompts=False)
    assert len(rows) == 3
    row = rows[2]
    audio, text = row["raw_prompt"][0]["content"]
    assert text == {"type": "text", "text": "Say both."}
    wave, rate = soundfile.read(io.BytesIO(audio["audio"]["bytes"]))
    assert rate == 16000
    np.testing.assert_allclose(wave, load_audio(dataset[2]["audio"]), atol=2**-23)
    assert row["reward_model"]["ground_truth"] == "zero two"
    assert row["data_source"] == "my"
    assert (row["index"], row["extra_info"]["columns"]["kind"]) == (2, "digits")


def test_leafs_data_set_gives_what_verls_agent_loop_and_glm_asr_take(exported, processor, tmp_path):
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    from leaf.engines.verl.audio import open_doors

    open_doors()
    dataset, files = exported
    config, rows = data_set(files, processor, tmp_path, max_prompt_length=200, **BY_LEAF)
    assert len(rows) == 3  # verl drops, without an error, the rows that its processor call fails on
    builder = create_continuous_token_builder(processor.tokenizer, hf_model_type="glmasr", processor=processor)
    for i in range(3):
        messages = rows[i]["raw_prompt"]
        _, _, audios = asyncio.run(type(rows).process_multi_modal_info(messages, image_patch_size=14, config=config))
        np.testing.assert_allclose(audios[0], hear(dataset[i]), atol=2**-23)
        ids = builder.build_initial_tokens(messages, audios=audios)
        placeholder = processor.tokenizer.convert_tokens_to_ids("<|pad|>")
        mel_frames = int(np.ceil(len(audios[0]) / 160))
        assert 0 < ids.count(placeholder) <= mel_frames


def test_too_long_prompts_are_dropped_by_verl_with_their_audio_counted(exported, processor, tmp_path):
    _, files = exported
    lengths = []
    for most in (10, 15, 20, 200):
        _, rows = data_set(files, processor, tmp_path, max_prompt_length=most, **BY_LEAF)
        lengths.append(len(rows))
    assert lengths == sorted(lengths)
    assert lengths[0] < 3 == lengths[-1]
