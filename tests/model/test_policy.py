"""A policy: adapters, start-up checks, prompts, precision, and what happens when its encoder runs out of memory."""

import copy

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from leaf.errors import AudioError, ModelError, RunError
from leaf.model.checks import check_policy
from leaf.model.device import pick_dtype
from leaf.model.policy import Policy
from leaf.model.projector import audio_features
from leaf.model.scoring import score
from tests.helpers import tiny
from tests.helpers.policies import groups_of
from tests.helpers.project import save


def test_only_the_language_model_gets_adapters_and_reference_is_the_base(policy):
    trained = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trained
    assert all("language_model" in name and "lora_" in name for name in trained)
    counts = policy.describe()
    assert counts["trainable"] == sum(p.numel() for n, p in policy.named_parameters() if n in trained)
    prompts, groups = groups_of(policy)
    with torch.no_grad(), policy.reference():
        reference = score(policy, prompts, [g.tree for g in groups]).log_probs[0]
    plain = Policy.wrap(*tiny.tiny_model(), temperature=0.7)
    assert torch.allclose(reference, score(plain, prompts, [g.tree for g in groups]).log_probs[0], atol=1e-5)
    with pytest.raises(ModelError, match="no adapter"), plain.reference():
        pass


def test_saved_adapter_loads_in_plain_transformers_and_peft(policy, tmp_path):
    prompts, groups = groups_of(policy, count=1)
    want = score(policy, prompts, [groups[0].tree]).log_probs[0].detach()
    model, _ = tiny.tiny_model()
    model.save_pretrained(tmp_path / "base")
    policy.save_adapter(tmp_path / "adapter")
    assert not list((tmp_path / "adapter").glob("*.bin"))
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    row = groups[0].tokens[0, : groups[0].lengths[0]]
    embedded = torch.cat([prompts[0].embeddings, loaded.get_input_embeddings()(row[:-1])])
    with torch.no_grad():
        logits = loaded(inputs_embeds=embedded[None]).logits[0, prompts[0].length - 1 :] / 0.7
    got = logits.log_softmax(-1).gather(-1, row[:, None]).squeeze(1)
    assert torch.allclose(got, want[0, : len(row)], atol=1e-4)


def test_start_up_checks_pass_and_fire(policy, monkeypatch):
    lines = check_policy(policy, tiny.rows(2))
    assert len(lines) == 3
    assert "trainable" in lines[0]
    with torch.no_grad():
        policy.projector.linear_2.weight.zero_()
    with pytest.raises(ModelError, match="audio does not reach"):
        check_policy(policy, tiny.rows(2))


@pytest.mark.parametrize(
    ("attention", "wanted"), [("leaf", "does not attend by the function"), ("eager", "does not honour the tree mask")]
)
def test_start_up_check_refuses_a_model_that_ignores_the_tree_mask(policy, attention, wanted, monkeypatch):
    policy.base.set_attn_implementation(attention)
    policy = Policy(policy.model, policy.processor, temperature=0.7)
    forward = type(policy.language_model).forward

    def blind(self, *args, attention_mask=None, **kwargs):
        keep = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
        return forward(self, *args, attention_mask=keep, **kwargs)

    monkeypatch.setattr(type(policy.language_model), "forward", blind)
    with pytest.raises(ModelError, match=wanted):
        check_policy(policy, tiny.rows(2))


def test_audio_integrity_is_refused_in_one_sentence(policy):
    row = tiny.rows(1)[0]
    with pytest.raises(ModelError, match="2 audio placeholders"):
        policy.embed([{**row, "prompt": "<sound> and <sound>"}])
    long = {"array": np.full(16000 * 3, 0.1, np.float32), "sampling_rate": 16000}
    with pytest.raises(AudioError, match=r"lasts 3\.0 s; this model takes at most 2 s"):
        policy.embed([{**row, "audio": long}])
    policy.max_prompt_tokens = 10
    with pytest.raises(ModelError, match="at most 10 are allowed"):
        policy.embed([row])


def test_prompt_shapes_of_the_ecosystem_are_the_same(policy):
    content = [{"type": "audio", "audio": ""}, {"type": "text", "text": "hello"}]
    assert policy.render("hello") == policy.render([{"role": "user", "content": content}])
    ready = policy.render("hello")
    assert policy.render(ready) == ready


def test_the_callers_lora_settings_are_not_changed_and_what_they_exclude_stays_excluded():
    for excluded in (["layers.1.mlp.up_proj", "q_proj"], r".*[.](1[.]mlp[.]up_proj|q_proj)"):
        lora = peft.LoraConfig(r=2, exclude_modules=excluded)
        before = copy.deepcopy(lora.to_dict())
        policy = Policy.wrap(*tiny.tiny_model(), lora=lora)
        assert lora.to_dict() == before
        adapted = {name.split(".lora_A")[0] for name, _ in policy.base.named_parameters() if "lora_A" in name}
        assert {name.rpartition(".")[2] for name in adapted} == {
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        }
        assert all(name.startswith("model.language_model.layers.") for name in adapted)
        assert not any("layers.1.mlp.up_proj" in name for name in adapted)
        assert any("layers.0.mlp.up_proj" in name for name in adapted)
        again = Policy.wrap(*tiny.tiny_model(seed=1), lora=lora)  # and the same settings do for another model
        assert sorted(again.describe().items()) == sorted(policy.describe().items())


def test_running_out_of_memory_in_the_encoder_halves_the_rows_and_keeps_that(policy, monkeypatch):
    rows = tiny.rows(5)
    wanted, calls, encode = policy.embed(rows), [], policy.base.model.audio_tower.forward

    def small(features, *arguments, **options):
        calls.append(len(features))
        if len(features) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return encode(features, *arguments, **options)

    monkeypatch.setattr(policy.base.model.audio_tower, "forward", small)
    for got, want in zip(policy.embed(rows), wanted, strict=True):
        assert torch.allclose(got.embeddings, want.embeddings, atol=1e-5)
        assert torch.equal(got.is_audio, want.is_audio)
    assert calls == [5, 2, 2, 1]
    policy.embed(rows[:3])
    assert calls[4:] == [2, 1]  # what did not fit is not tried again
    policy.rows_at_once = None
    assert [frames.shape[0] for frames in audio_features(policy, rows)] == [int(p.is_audio.sum()) for p in wanted]
    assert calls[6:] == [5, 2, 2, 1]  # stage align encodes in the same way

    def never(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(policy.base.model.audio_tower, "forward", never)
    with pytest.raises(RunError, match=r"audio of a single prompt was encoded\. Shorten the audio"):
        policy.embed(rows)


def test_an_unknown_family_is_refused():
    model, processor = tiny.tiny_model()
    model.config.model_type = "whisper"
    with pytest.raises(ModelError, match="known are audioflamingo3"):
        Policy.wrap(model, processor)


def test_auto_precision_is_bfloat16_only_where_the_device_computes_in_it(monkeypatch):
    asked = {}
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **how: asked.update(how) or True)
    assert pick_dtype("auto", "cuda:0") == "bfloat16"
    assert asked == {"including_emulation": False}
    for found, expected in (({"avx2": True}, "float32"), ({"avx512_bf16": True}, "bfloat16"), ({}, "float32")):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda found=found: found)
        assert pick_dtype("auto", "cpu") == expected
        assert pick_dtype("bfloat16", "cpu") == "bfloat16"


def test_a_policy_loads_in_the_precision_that_auto_picks(tmp_path, monkeypatch):
    model, processor = tiny.tiny_model()
    save(model, processor, tmp_path)
    for found, dtype in (({}, torch.float32), ({"amx_bf16": True}, torch.bfloat16)):
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda found=found: found)
        assert Policy.load(tmp_path, dtype="auto").base.dtype == dtype
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert Policy.load(f"~/{tmp_path.name}").base.dtype == torch.float32
