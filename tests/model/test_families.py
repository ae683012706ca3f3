"""Every family on a tiny model with its real processor: embedding, scoring, gradients, greedy tokens, adapters.

The oracle is the stock model's own outer forward and `generate`, given the audio and padded copies of the prompt.
"""

import dataclasses
import math
import re
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import soundfile
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, GraniteForCausalLM
from transformers.utils.import_utils import BACKENDS_MAPPING

from leaf.commands.doctor import examine
from leaf.config import LeafConfig
from leaf.credit import PrefixTree
from leaf.errors import ModelError
from leaf.model.checks import check_policy
from leaf.model.families import families, family_of
from leaf.model.merging import write_merged
from leaf.model.own_adapter import load_own_adapter, merge_own_adapter
from leaf.model.policy import Policy
from leaf.model.sampling import sample
from leaf.train.align import check_frame_wise
from leaf.train.sft import sft_gradient, share_audio
from tests.helpers import tiny
from tests.helpers.models import (
    gemma3n,
    glmasr,
    granite_speech,
    musicflamingo,
    nemotron_h_omni,
    phi4_multimodal,
    qwen2_5_omni,
    qwen2_audio,
    qwen3_omni_moe,
    vibevoice_asr,
    voxtral,
)

CASES = {
    "audioflamingo3": tiny.tiny_model,
    "gemma3n": gemma3n.build,
    "gemma3n wide": lambda: gemma3n.build(sliding_window=512),
    "glmasr": glmasr.build,
    "granite_speech": granite_speech.build,
    "granite_speech 4 dense": lambda: granite_speech.build(text=granite_speech.DENSE_4),
    "granite_speech 4 hybrid": lambda: granite_speech.build(text=granite_speech.HYBRID_4),
    "granite_speech_plus": lambda: granite_speech.build(plus=True),
    "musicflamingo": musicflamingo.build,
    "nemotron_h_omni": nemotron_h_omni.build,
    "phi4_multimodal": phi4_multimodal.build,
    "qwen2_5_omni": qwen2_5_omni.build,
    "qwen2_audio": qwen2_audio.build,
    "qwen2_audio sliding": lambda: qwen2_audio.build(window=9),
    "qwen3_omni_moe": qwen3_omni_moe.build,
    "vibevoice_asr": vibevoice_asr.build,
    "voxtral": voxtral.build,
}
TEMPERATURE = 0.7


def build(case):
    """Return (model, processor) that hardly ever says the audio placeholder."""
    model, processor = CASES[case]()
    family = family_of(model.config)
    with torch.no_grad():
        model.get_submodule(family.head).weight[processor.tokenizer.convert_tokens_to_ids(family.audio_token)] = 0.0
    return model, processor


def policy_of(case, **options):
    model, processor = build(case)
    torch.manual_seed(1)
    lora = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False)
    return Policy.wrap(model, processor, lora=lora, temperature=TEMPERATURE, **options)


def groups_of(policy, rows, **options):
    prompts = policy.embed(rows)
    options = {"num_completions": 5, "max_new_tokens": 9, "temperature": TEMPERATURE} | options
    for seed in range(20):  # a placeholder that a model happens to say is audio to the stock forward
        groups = sample(policy, prompts, generator=torch.Generator().manual_seed(seed), **options)
        if not any(bool((group.tokens == policy.audio_token_id).any()) for group in groups):
            return groups
    raise AssertionError("every seed sampled the audio placeholder")


def stock_inputs(policy, rows):
    """Return the processor's tensors per row, cut from one padded batch unless batch mates change them."""
    if policy.family.alone:
        return [policy.inputs([row]) for row in rows]
    inputs = policy.inputs(rows)
    return [{key: value[i : i + 1] for key, value in inputs.items()} for i in range(len(rows))]


def stock_log_probs(policy, rows, groups):
    """Score completions by the outer forward on K padded copies of each prompt with its audio."""
    found = []
    for inputs, group in zip(stock_inputs(policy, rows), groups, strict=True):
        copies = {key: value.repeat_interleave(len(group.lengths), 0) for key, value in inputs.items()}
        real = torch.arange(group.tokens.shape[1]) < group.lengths[:, None]
        prompt = copies["input_ids"].shape[1]
        copies["input_ids"] = torch.cat([copies["input_ids"], group.tokens], 1)
        copies["attention_mask"] = torch.cat([copies["attention_mask"], real.long()], 1)
        logits = policy.base(**copies, **policy.family.forward, use_cache=False).logits[:, prompt - 1 : -1].float()
        logits = logits / (policy.logits_scale * policy.temperature)
        found.append(logits.log_softmax(-1).gather(-1, group.tokens[..., None]).squeeze(-1) * real)
    return found


def gradient(policy, log_probs, weights):
    policy.zero_grad()
    sum((w * p).sum() for w, p in zip(weights, log_probs, strict=True)).backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad}


def assert_same_gradients(got, wanted):
    for name, value in wanted.items():
        assert float((got[name] - value).abs().max()) <= 1e-4 * float(value.abs().max()) + 1e-9, name


@pytest.fixture(params=CASES, ids=lambda case: case.replace(" ", "-"))
def case(request):
    return request.param


def test_log_probs_and_gradients_equal_the_stock_forward(case):
    policy = policy_of(case)
    rows = tiny.rows(3)
    groups = groups_of(policy, rows)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(g.tokens.shape, generator=generator) * (g.tree.node >= 0) for g in groups]
    stock = stock_log_probs(policy, rows, groups)
    wanted = gradient(policy, stock, weights)
    scores = policy([g.prompt for g in groups], [g.tree for g in groups])
    for got, want in zip(scores.log_probs, stock, strict=True):
        assert torch.allclose(got, want, atol=2e-5, rtol=1e-4)
    assert_same_gradients(gradient(policy, scores.log_probs, weights), wanted)
    assert any(float(value.abs().max()) > 1e-3 for value in wanted.values())
    for group, want in zip(groups, stock, strict=True):  # and the sampler drew from the same distribution
        assert torch.allclose(-group.surprisal, want.detach(), atol=1e-4)


@pytest.mark.parametrize("layout", ["prompt_once", "copies"])
def test_other_layouts_give_the_same(case, layout):
    policy = policy_of(case)
    rows = tiny.rows(3)
    groups = groups_of(policy, rows)
    weights = [torch.randn(g.tokens.shape) * (g.tree.node >= 0) for g in groups]
    prompts, trees = [g.prompt for g in groups], [g.tree for g in groups]
    stock = stock_log_probs(policy, rows, groups)
    wanted = gradient(policy, stock, weights)
    policy.layout = layout
    scores = policy(prompts, trees)
    for got, want in zip(scores.log_probs, stock, strict=True):
        assert torch.allclose(got, want, atol=2e-5, rtol=1e-4)
    assert_same_gradients(gradient(policy, scores.log_probs, weights), wanted)


def test_gradient_checkpointing_changes_nothing(case, monkeypatch):
    results, recomputed = [], []
    watched = torch.utils.checkpoint._checkpoint_without_reentrant_generator
    monkeypatch.setattr(
        torch.utils.checkpoint,
        "_checkpoint_without_reentrant_generator",
        lambda *given, **options: recomputed.append(len(results)) or watched(*given, **options),
    )
    for checkpointing in (False, True):
        policy = policy_of(case, gradient_checkpointing=checkpointing)
        groups = groups_of(policy, tiny.rows(2))
        policy.train()
        scores = policy([g.prompt for g in groups], [g.tree for g in groups])
        results.append(gradient(policy, scores.log_probs, [g.tree.node >= 0 for g in groups]))
    assert_same_gradients(results[1], results[0])
    assert set(recomputed) == {1}  # in the second run and not in the first


def test_greedy_tokens_equal_stock_generate(case):
    policy = policy_of(case)
    rows = tiny.rows(3)
    groups = sample(policy, policy.embed(rows), num_completions=2, max_new_tokens=12, greedy=True)
    batches = stock_inputs(policy, rows) if policy.family.alone else [policy.inputs(rows)]
    stock = []
    for inputs in batches:
        with torch.no_grad():
            out = policy.base.generate(**inputs, **policy.family.forward, max_new_tokens=12, do_sample=False)
        stock += list(out[:, inputs["input_ids"].shape[1] :])
    for group, sequence in zip(groups, stock, strict=True):
        length = int(group.lengths[0])
        assert group.tokens[0, :length].tolist() == sequence[:length].tolist()
        assert torch.equal(group.tokens[0], group.tokens[1])


def test_adapters_are_where_they_are_meant_and_the_reference_is_the_base(case):
    policy = policy_of(case)
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    layers = f"base_model.model.{policy.family.language_model}.layers."
    assert trained
    assert all(name.startswith(f"model.{layers}") and "lora_" in name for name in trained)
    policy.train()
    assert not policy.family.module(policy.base, policy.family.audio_tower).training
    assert not policy.projector.training
    groups = groups_of(policy, tiny.rows(2))
    prompts, trees = [g.prompt for g in groups], [g.tree for g in groups]
    with torch.no_grad(), policy.reference():
        reference = policy(prompts, trees).log_probs
    model, processor = build(case)
    plain = stock_log_probs(Policy.wrap(model, processor, temperature=TEMPERATURE), tiny.rows(2), groups)
    for got, want in zip(reference, plain, strict=True):
        assert torch.allclose(got, want, atol=2e-5, rtol=1e-4)


def test_the_saved_adapter_loads_in_plain_transformers_and_peft(case, tmp_path):
    policy = policy_of(case)
    rows = tiny.rows(2)
    groups = groups_of(policy, rows)
    wanted = stock_log_probs(policy, rows, groups)
    build(case)[0].save_pretrained(tmp_path / "base")
    policy.processor.save_pretrained(tmp_path / "base")
    policy.save_adapter(tmp_path / "adapter")
    family = family_of(AutoConfig.from_pretrained(tmp_path / "base"))
    model = family.auto_model.from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()
    plain = Policy(loaded, policy.processor, temperature=TEMPERATURE)
    for got, want in zip(stock_log_probs(plain, rows, groups), wanted, strict=True):
        assert torch.allclose(got, want, atol=2e-5, rtol=1e-4)


def test_start_up_checks_pass(case):
    policy = policy_of(case)
    lines = check_policy(policy, tiny.rows(3))
    recurrent = case in ("granite_speech 4 hybrid", "nemotron_h_omni")
    assert policy.layout == ("prompt_once" if recurrent else "tree")
    assert any(f"layout {policy.layout}" in line for line in lines)
    assert any("audio reaches the model" in line for line in lines)


def test_half_precision_trains_float32_adapters_in_the_precision_of_the_weights(case):
    model, processor = build(case)
    torch.manual_seed(1)
    lora = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False)
    policy = Policy.wrap(model.to(torch.bfloat16), processor, lora=lora, temperature=TEMPERATURE)
    check_policy(policy, tiny.rows(2))
    groups = groups_of(policy, tiny.rows(2))
    exact = policy_of(case)
    prompts, trees = [g.prompt for g in groups], [g.tree for g in groups]
    policy.train()
    scores = policy(prompts, trees)
    found = gradient(policy, scores.log_probs, [g.tree.node >= 0 for g in groups])
    assert all(values.dtype == torch.float32 for values in scores.log_probs)
    assert all(value.dtype == torch.float32 and bool(torch.isfinite(value).all()) for value in found.values())
    full = [replace(prompt, embeddings=prompt.embeddings.float()) for prompt in prompts]
    for got, want in zip(scores.log_probs, exact(full, trees).log_probs, strict=True):
        # The median, since rounding may send a token to another expert. It is 0.06 at most (AVX2).
        assert float((got - want).detach().abs().median()) < 0.12


def test_a_projector_is_trained_in_float32_within_a_half_precision_model(case):
    """What it makes of the audio stays what the frozen model makes of it, and its gradient that of float32."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model, processor = build(case)
        torch.manual_seed(1)
        lora = peft.LoraConfig(r=2, init_lora_weights=False)
        policy = Policy.wrap(model.to(dtype), processor, lora=lora)
        frozen = policy.embed(tiny.rows(1))[0].embeddings
        trained = policy.unfreeze_projector()
        policy.train()
        prompt = policy.embed(tiny.rows(1))[0].embeddings
        assert prompt.dtype == frozen.dtype == dtype
        assert torch.allclose(prompt.float(), frozen.float(), atol=0.02 * float(frozen.float().abs().max()))
        weight = torch.randn(prompt.shape, generator=torch.Generator().manual_seed(0))
        gradients = torch.autograd.grad((prompt.float() * weight).sum(), trained)
        found[dtype] = torch.cat([gradient.flatten() for gradient in gradients])
        assert math.isfinite(sft_gradient(policy, share_audio(policy, tiny.rows(3))))
        assert {p.dtype for p in trained} == {p.grad.dtype for p in trained} == {torch.float32}
        assert all(bool(p.grad.isfinite().all()) for p in trained)
    half, full = found[torch.bfloat16], found[torch.float32]
    assert float(torch.cosine_similarity(half, full, dim=0)) > 0.99


FRAME_WISE = {"audioflamingo3", "glmasr", "musicflamingo", "nemotron_h_omni", "qwen2_audio"}


def test_align_takes_frame_wise_projectors_and_says_why_others_are_refused(case):
    policy = Policy.wrap(*build(case))
    rows = tiny.rows(3)
    if case.split()[0] not in FRAME_WISE:
        wanted = r"The projector.*(not one frame per audio position|not one of each|differs from what).*stage sft"
        with pytest.raises(ModelError, match=wanted):
            check_frame_wise(policy, rows[0])
        return
    check_frame_wise(policy, rows[0])
    projected = policy.project(policy.audio_features(rows))
    for frames, prompt in zip(projected, policy.embed(rows), strict=True):
        assert torch.allclose(frames, prompt.embeddings[prompt.is_audio], atol=1e-4)


def test_prompts_of_the_ecosystem_give_the_same_embeddings(case):
    policy = policy_of(case)
    row = tiny.rows(1)[0]
    content = [{"type": "audio", "audio": row["audio"]}, {"type": "text", "text": row["prompt"]}]
    messages = {**row, "prompt": [{"role": "user", "content": content}]}
    del messages["audio"]
    (plain,), (chat,) = policy.embed([row]), policy.embed([messages])
    assert torch.equal(plain.embeddings, chat.embeddings)
    assert 0 < int(plain.is_audio.sum()) < plain.length


def test_messages_out_of_a_data_set_are_those_that_went_in(case, tmp_path):
    """`datasets` gives all parts of a column the same keys, with None where a part had none."""
    policy = policy_of(case)
    row = tiny.rows(1)[0]
    soundfile.write(tmp_path / "a.wav", row["audio"]["array"], 16000)
    content = [{"type": "audio", "audio": str(tmp_path / "a.wav")}, {"type": "text", "text": row["prompt"]}]
    messages = {"prompt": [{"role": "user", "content": content}]}
    named = {"prompt": [{"role": "user", "content": content, "name": "x"}]}
    through = Dataset.from_list([messages, named])[0]
    assert through["prompt"][0]["content"][1] == {"type": "text", "audio": None, "text": row["prompt"]}
    assert through["prompt"][0]["name"] is None
    (plain,), (chat,) = policy.embed([messages]), policy.embed([through])
    assert torch.equal(plain.embeddings, chat.embeddings)
    assert plain.length - int(plain.is_audio.sum()) >= len(policy.token_ids(row["prompt"]))


def test_audio_that_would_be_lost_is_refused(case):
    policy = policy_of(case)
    row = tiny.rows(1)[0]
    token = policy.family.audio_token
    with pytest.raises(ModelError, match="2 audio placeholders"):
        policy.embed([{**row, "prompt": f"{token} and {token}"}])
    with pytest.raises(ModelError, match="0 audio placeholders"):
        policy.embed([{**row, "prompt": [{"role": "user", "content": "no audio here"}]}])
    policy.max_prompt_tokens = 3
    with pytest.raises(ModelError, match="at most 3 are allowed"):
        policy.embed([row])


def test_a_merged_checkpoint_is_the_adapted_model(case, tmp_path):
    policy = policy_of(case)
    groups = groups_of(policy, tiny.rows(2))
    prompts, trees = [g.prompt for g in groups], [g.tree for g in groups]
    with torch.no_grad():
        wanted = policy(prompts, trees).log_probs
        with policy.reference():
            without = policy(prompts, trees).log_probs
    assert any(float((a - b).abs().max()) > 0.01 for a, b in zip(wanted, without, strict=True))
    folder = write_merged(policy, tmp_path / "merged")
    merged = Policy.wrap(policy.family.auto_model.from_pretrained(folder), policy.processor, temperature=TEMPERATURE)
    with torch.no_grad():
        for got, want in zip(merged(prompts, trees).log_probs, wanted, strict=True):
            assert torch.allclose(got, want, atol=5e-5, rtol=1e-4)


def with_own_adapter(model, folder, sub, targets):
    """Save a checkpoint with a speech LoRA of its own beside it, and return the model with that LoRA active."""
    model.save_pretrained(folder)
    own = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(5)
    active = peft.get_peft_model(model, own).eval()
    active.save_pretrained(folder / sub)
    return active


@pytest.mark.parametrize(
    ("build", "sub", "targets"),
    [
        (granite_speech.build, "", r"model[.]language_model[.].*[.](q_proj|v_proj)"),
        (phi4_multimodal.build, "speech-lora", r"model[.]layers[.].*[.](qkv_proj|o_proj)"),
    ],
    ids=["granite_speech", "phi4_multimodal"],
)
def test_the_reference_holds_the_checkpoints_own_speech_adapter(build, sub, targets, tmp_path):
    """Loaded, the base is the model as published, its speech LoRA on; a saved adapter needs that base, merged."""
    model, processor = build()
    bare = Policy(model, processor, temperature=TEMPERATURE).eval()
    rows = tiny.rows(2)
    groups = groups_of(bare, rows)
    without = [values.detach() for values in stock_log_probs(bare, rows, groups)]
    folder = tmp_path / "checkpoint"
    published = Policy(with_own_adapter(model, folder, sub, targets), processor, temperature=TEMPERATURE).eval()
    processor.save_pretrained(folder)
    wanted = [values.detach() for values in stock_log_probs(published, rows, groups)]
    assert any(float((a - b).abs().max()) > 0.1 for a, b in zip(wanted, without, strict=True))

    lora = peft.LoraConfig(r=4, init_lora_weights=False)
    policy = Policy.load(folder, lora=lora, temperature=TEMPERATURE)
    prompts, trees = [g.prompt for g in groups], [g.tree for g in groups]
    with torch.no_grad(), policy.reference():
        for got, want in zip(policy(prompts, trees).log_probs, wanted, strict=True):
            assert torch.allclose(got, want, atol=2e-5, rtol=1e-4)
    assert not any("speech" in name for name, p in policy.named_parameters() if p.requires_grad)
    adapted = [values.detach() for values in policy(prompts, trees).log_probs]
    assert float((adapted[0] - wanted[0]).abs().max()) > 0.1
    policy.save_adapter(tmp_path / "adapter")
    again = Policy.load(folder, adapter=tmp_path / "adapter", temperature=TEMPERATURE)
    for got, want in zip(again(prompts, trees).log_probs, adapted, strict=True):
        assert torch.allclose(got, want, atol=2e-5, rtol=1e-4)
    whole = Policy.load(write_merged(again, tmp_path / "whole"), temperature=TEMPERATURE)
    for got, want in zip(whole(prompts, trees).log_probs, adapted, strict=True):
        assert torch.allclose(got, want, atol=2e-5, rtol=1e-4)
    # And as docs/adding_a_family.md shows, without a policy.
    merged = policy.family.auto_model.from_pretrained(folder)
    load_own_adapter(merged, policy.family, folder)
    merge_own_adapter(merged)
    loaded = Policy(peft.PeftModel.from_pretrained(merged, tmp_path / "adapter").eval(), processor)
    loaded.temperature = TEMPERATURE
    for got, want in zip(stock_log_probs(loaded, rows, groups), adapted, strict=True):
        assert torch.allclose(got, want, atol=2e-5, rtol=1e-4)


def test_an_own_adapter_whose_weights_did_not_load_is_refused(tmp_path):
    model, processor = granite_speech.build()
    own = peft.LoraConfig(r=3, target_modules=r"model[.]language_model[.].*[.](q_proj|v_proj)")  # B starts at zero
    model.add_adapter(own)
    with pytest.raises(ModelError, match="speech adapter is all zero"):
        Policy.wrap(model, processor)


def test_granite_logits_are_scaled_as_its_text_class_does():
    """GraniteForCausalLM divides by logits_scaling; the speech class of transformers does not."""
    policy = policy_of("granite_speech")
    text = GraniteForCausalLM(policy.text_config).eval()
    plain = Policy.wrap(*granite_speech.build(), temperature=1.0)
    text.model.load_state_dict(plain.language_model.state_dict())
    text.lm_head.load_state_dict(plain.base.lm_head.state_dict())
    (prompt,) = plain.embed(tiny.rows(1))
    with torch.no_grad():
        wanted = text(inputs_embeds=prompt.embeddings[None]).logits[0]
        hidden = plain.language_model(inputs_embeds=prompt.embeddings[None]).last_hidden_state[0]
        assert torch.allclose(plain.logits(hidden), wanted, atol=1e-5)
        assert plain.logits_scale == 8.0
        stock = plain.base(**plain.inputs(tiny.rows(1))).logits[0]
        assert torch.allclose(stock / 8.0, wanted, atol=1e-5)  # the day transformers divides, this says so


@pytest.mark.parametrize("case", ["qwen2_audio", "qwen2_audio sliding", "granite_speech"])
def test_eager_attention_gets_a_float_mask(case):
    policy = policy_of(case)
    rows = tiny.rows(3)
    groups = groups_of(policy, rows)
    wanted = stock_log_probs(policy, rows, groups)
    policy.base.set_attn_implementation("eager")
    eager = Policy(policy.model, policy.processor, temperature=TEMPERATURE)
    assert eager.attention.implementation == "eager"
    for got, want in zip(eager([g.prompt for g in groups], [g.tree for g in groups]).log_probs, wanted, strict=True):
        assert torch.allclose(got, want, atol=2e-5, rtol=1e-4)
    for a, b in zip(groups_of(eager, rows), groups, strict=True):
        assert torch.equal(a.tokens, b.tokens)


@pytest.mark.parametrize("case", ["qwen2_audio", "qwen2_audio sliding", "granite_speech", "phi4_multimodal"])
def test_kernels_without_masks_decode_row_by_row(case):
    """With a kernel that takes no dense mask the prompt runs once and rows keep caches of their own."""
    policy = policy_of(case)
    rows = tiny.rows(3)
    wanted = groups_of(policy, rows)
    policy.attention = replace(policy.attention, implementation="flash_attention_2")
    assert not policy.attention.packable
    assert policy._layout() == "prompt_once"
    for a, b in zip(groups_of(policy, rows), wanted, strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert torch.allclose(a.surprisal, b.surprisal, atol=1e-4)


def test_recurrent_layers_are_never_packed():
    policy = policy_of("granite_speech 4 hybrid")
    assert policy.layout == "prompt_once"
    with pytest.raises(ModelError, match="linear_attention do not honour a dense attention mask"):
        policy_of("granite_speech 4 hybrid", layout="tree")
    assert policy_of("granite_speech 4 hybrid", gradient_checkpointing=True).layout == "copies"


def test_positions_that_change_the_frequencies_of_a_whole_batch_are_refused():
    policy = policy_of("phi4_multimodal")  # LongRoPE from 512 positions on
    prompts = policy.embed(tiny.rows(1))
    with pytest.raises(ModelError, match=r"and 512 new ones exceed 512 positions"):
        sample(policy, prompts, num_completions=1, max_new_tokens=512)
    room = 512 - prompts[0].length
    trees = [PrefixTree.build(torch.full((1, room + 1), 9), torch.tensor([length])) for length in (room, room + 1)]
    assert policy(prompts, trees[:1]).log_probs[0].shape == (1, room + 1)
    with pytest.raises(ModelError, match=rf"of {prompts[0].length} tokens and {room + 1} new ones exceed 512"):
        policy(prompts, trees[1:])


@pytest.mark.parametrize(
    ("case", "backend", "extra"),
    [("granite_speech", "torchaudio", "granite"), ("voxtral", "mistral-common", "voxtral")],
)
def test_a_package_that_a_processor_lacks_is_named_with_its_extra(case, backend, extra, tmp_path, monkeypatch):
    model, processor = build(case)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    def missing(*arguments, **options):
        raise ImportError(f"The processor requires the {backend} library but it was not found in your environment")

    if case == "granite_speech":  # transformers itself says so
        monkeypatch.setitem(BACKENDS_MAPPING, backend, (lambda: False, BACKENDS_MAPPING[backend][1]))
    else:
        monkeypatch.setattr("leaf.model.loading.AutoProcessor.from_pretrained", missing)
    wanted = rf"processor of .* \({case}\) needs a package.*{backend}.*Install the extra {extra}: pip install"
    with pytest.raises(ModelError, match=wanted):
        Policy.load(tmp_path)
    found = [finding for finding in examine(LeafConfig(model=str(tmp_path))) if finding.subject == "model"]
    assert found[0].state == "fails"
    assert f"pip install 'leaf-speech[{extra}]'" in found[0].found


def test_a_kernel_that_is_not_installed_is_said_in_one_sentence(tmp_path):
    model, processor = build("voxtral")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"FlashAttention2.*a recipe chooses a kernel that needs none"):
        Policy.load(tmp_path, attention="flash_attention_2")


class Mixer(nn.Module):
    """A block with linear layers and, if it is recurrent, a short convolution."""

    def __init__(self, names, recurrent=False):
        super().__init__()
        for name in names:
            self.add_module(name, nn.Linear(4, 4))
        if recurrent:
            self.conv = nn.Conv1d(4, 4, 3)


def test_only_recurrent_blocks_are_left_out_not_layers_called_like_theirs():
    """Attention may call its output `out_proj` too (LFM2): it gets an adapter, the convolution's does not."""
    layers = nn.ModuleList()
    for _ in range(2):
        layer = nn.Module()
        layer.self_attn = Mixer(["q_proj", "out_proj"])
        layer.conv = Mixer(["in_proj", "out_proj"], recurrent=True)
        layers.append(layer)
    model, decoder = nn.Module(), nn.Module()
    decoder.layers = layers
    model.add_module("lm", decoder)
    family = replace(family_of(build("qwen2_audio")[0].config), language_model="lm")
    targets, elsewhere = family.lora_targets(model), family.lora_elsewhere(model)
    adapted = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and re.fullmatch(targets, name) and not re.fullmatch(elsewhere, name)
    }
    assert adapted == {f"lm.layers.{i}.self_attn.{name}" for i in range(2) for name in ("q_proj", "out_proj")}
    with pytest.raises(ModelError, match="layers called in_proj outside its recurrent blocks; it has out_proj"):
        family.lora_targets(model, ["in_proj"])


@pytest.mark.parametrize(("case", "block"), [("granite_speech 4 hybrid", "mamba"), ("nemotron_h_omni", "in_proj")])
def test_recurrent_blocks_get_no_adapter(case, block):
    policy = policy_of(case)
    assert any(block in name for name, _ in policy.language_model.named_parameters())
    assert not any(block in name and "lora_" in name for name, _ in policy.named_parameters())


def test_expert_models_get_no_adapter_in_the_audio_tower():
    policy = policy_of("qwen3_omni_moe")
    assert not any("lora_" in name for name, _ in policy.base.model.audio_tower.named_parameters())


def test_unknown_layer_names_are_refused():
    model, processor = phi4_multimodal.build()
    with pytest.raises(ModelError, match=r"no linear layers called q_proj; it has .*qkv_proj"):
        Policy.wrap(model, processor, lora=peft.LoraConfig(target_modules=["q_proj", "o_proj"]))


def test_the_documented_way_to_add_a_family_works(monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "adding_a_family.md").read_text()
    block = re.findall(r"```python\n(.*?)```", text, flags=re.S)[0]
    monkeypatch.setattr("leaf.model.families._FAMILIES", {})
    exec(block, {})
    model, processor = qwen2_audio.build()
    model.config.model_type = "my_speech"
    policy = Policy.wrap(model, processor, lora=peft.LoraConfig(r=2, init_lora_weights=False))
    assert len(check_policy(policy, tiny.rows(2))) == 3
    for name in dataclasses.asdict(policy.family):
        assert f"`{name}`" in text, name


def test_a_refused_class_says_why():
    model, processor = qwen2_audio.build()
    model.config.model_type = "voxtral_realtime"
    with pytest.raises(ModelError, match=r"not supported\. It adds audio to every generated token"):
        Policy.wrap(model, processor)


def test_every_registered_family_is_tested():
    named = {case.split()[0] for case in CASES}
    assert {name.removesuffix("_thinker") for name in families()} == named
