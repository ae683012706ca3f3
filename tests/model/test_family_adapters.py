"""Adapters of every family: where they are, what they change, how they are saved, merged and loaded again."""

import math
import re
from dataclasses import replace

import peft
import pytest
import torch
from torch import nn
from transformers import AutoConfig

from leaf.errors import ModelError
from leaf.model.checks import check_policy
from leaf.model.families import family_of
from leaf.model.merging import write_merged
from leaf.model.own_adapter import load_own_adapter, merge_own_adapter
from leaf.model.policy import Policy
from leaf.model.projector import unfreeze_projector
from leaf.model.scoring import score
from leaf.train.sft import sft_gradient, share_audio
from tests.helpers import tiny
from tests.helpers.families import TEMPERATURE, build, gradient, groups_of, policy_of, stock_log_probs
from tests.helpers.models import (
    granite_speech,
    phi4_multimodal,
)


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
        reference = score(policy, prompts, trees).log_probs
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
    scores = score(policy, prompts, trees)
    found = gradient(policy, scores.log_probs, [g.tree.node >= 0 for g in groups])
    assert all(values.dtype == torch.float32 for values in scores.log_probs)
    assert all(value.dtype == torch.float32 and bool(torch.isfinite(value).all()) for value in found.values())
    full = [replace(prompt, embeddings=prompt.embeddings.float()) for prompt in prompts]
    for got, want in zip(scores.log_probs, score(exact, full, trees).log_probs, strict=True):
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
        trained = unfreeze_projector(policy)
        policy.train()
        prompt = policy.embed(tiny.rows(1))[0].embeddings
        assert prompt.dtype == frozen.dtype == dtype
        assert torch.allclose(prompt.float(), frozen.float(), atol=0.02 * float(frozen.float().abs().max()))
        weight = torch.randn(prompt.shape, generator=torch.Generator().manual_seed(0))
        gradients = torch.autograd.grad((prompt.float() * weight).sum(), trained)
        found[dtype] = torch.cat([gradient.flatten() for gradient in gradients])
        assert math.isfinite(sft_gradient(policy, share_audio(policy, tiny.rows(3))))
        found_in = [p.grad for p in trained if p.grad is not None]
        assert len(found_in) == len(trained)
        assert {p.dtype for p in (*trained, *found_in)} == {torch.float32}
        assert all(bool(grad.isfinite().all()) for grad in found_in)
    half, full = found[torch.bfloat16], found[torch.float32]
    assert float(torch.cosine_similarity(half, full, dim=0)) > 0.99


def test_a_merged_checkpoint_is_the_adapted_model(case, tmp_path):
    policy = policy_of(case)
    groups = groups_of(policy, tiny.rows(2))
    prompts, trees = [g.prompt for g in groups], [g.tree for g in groups]
    with torch.no_grad():
        wanted = score(policy, prompts, trees).log_probs
        with policy.reference():
            without = score(policy, prompts, trees).log_probs
    assert any(float((a - b).abs().max()) > 0.01 for a, b in zip(wanted, without, strict=True))
    folder = write_merged(policy, tmp_path / "merged")
    merged = Policy.wrap(policy.family.auto_model.from_pretrained(folder), policy.processor, temperature=TEMPERATURE)
    with torch.no_grad():
        for got, want in zip(score(merged, prompts, trees).log_probs, wanted, strict=True):
            assert torch.allclose(got, want, atol=5e-5, rtol=1e-4)


def test_chosen_layers_alone_get_an_adapter_where_peft_shortens_the_names():
    """peft makes bare names of an expression where it renames the layers of a mixture of experts."""
    lora = peft.LoraConfig(r=2, layers_to_transform=[1])
    policy = Policy.wrap(*build("qwen3_omni_moe"), lora=lora)
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert trained
    assert all(".layers.1." in name for name in trained)


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
        for got, want in zip(score(policy, prompts, trees).log_probs, wanted, strict=True):
            assert torch.allclose(got, want, atol=2e-5, rtol=1e-4)
    assert not any("speech" in name for name, p in policy.named_parameters() if p.requires_grad)
    adapted = [values.detach() for values in score(policy, prompts, trees).log_probs]
    assert float((adapted[0] - wanted[0]).abs().max()) > 0.1
    policy.save_adapter(tmp_path / "adapter")
    again = Policy.load(folder, adapter=tmp_path / "adapter", temperature=TEMPERATURE)
    for got, want in zip(score(again, prompts, trees).log_probs, adapted, strict=True):
        assert torch.allclose(got, want, atol=2e-5, rtol=1e-4)
    whole = Policy.load(write_merged(again, tmp_path / "whole"), temperature=TEMPERATURE)
    for got, want in zip(score(whole, prompts, trees).log_probs, adapted, strict=True):
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
