"""What leaf writes for a vLLM server is what leaf trains: loaded by plain transformers and peft, for every family."""

import json
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from leaf.engines.vllm.export import adapter_for_vllm, export_language_model, saved_adapter_for_vllm
from leaf.engines.vllm.names import Onto, how_to_serve, served
from leaf.errors import ModelError
from leaf.model.families import families, family
from leaf.model.policy import Policy
from leaf.model.scoring import score
from tests.helpers import tiny
from tests.helpers.families import CASES, TEMPERATURE, build, groups_of, policy_of
from tests.pages.shown import tables

PLAIN = [case for case in CASES if not case.startswith("gemma3n")]


def plain_log_probs(policy, model, groups):
    """Score completions with a plain language model, from the prompts' embeddings and the completions' tokens."""
    found = []
    for group in groups:
        copies = group.prompt.embeddings.expand(len(group.lengths), -1, -1)
        embeddings = torch.cat([copies, model.get_input_embeddings()(group.tokens)], 1)
        real = torch.arange(group.tokens.shape[1]) < group.lengths[:, None]
        logits = model(inputs_embeds=embeddings, use_cache=False).logits[:, group.prompt.length - 1 : -1].float()
        found.append((logits / TEMPERATURE).log_softmax(-1).gather(-1, group.tokens[..., None]).squeeze(-1) * real)
    return found


def close(got, wanted):
    return all(torch.allclose(a, b, atol=1e-5, rtol=1e-5) for a, b in zip(got, wanted, strict=True))


@pytest.mark.parametrize("case", PLAIN)
@torch.no_grad()
def test_the_exported_language_model_and_adapter_are_the_policy(case, tmp_path):
    policy = policy_of(case)  # its adapter is random, so that one which does nothing is seen
    groups = groups_of(policy, tiny.rows(2))
    prompts, trees = [group.prompt for group in groups], [group.tree for group in groups]
    adapted = score(policy, prompts, trees).log_probs
    with policy.reference():
        base = score(policy, prompts, trees).log_probs
    model = AutoModelForCausalLM.from_pretrained(export_language_model(policy, tmp_path / "language_model")).eval()
    assert close(plain_log_probs(policy, model, groups), base)
    exported = adapter_for_vllm(policy, tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(model, exported).eval()
    again = load_file(exported / "adapter_model.safetensors")
    assert set(peft.get_peft_model_state_dict(loaded)) == set(again)
    found = plain_log_probs(policy, loaded, groups)
    assert close(found, adapted)
    assert not close(found, base)


@torch.no_grad()
def test_layers_of_different_rank_and_scale_are_brought_to_one(tmp_path):
    """Not every version of vLLM reads patterns of rank and alpha."""
    model, processor = build("qwen2_audio")
    torch.manual_seed(1)
    patterns: dict[str, Any] = {
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 6},
        "alpha_pattern": {"v_proj": 3},
    }
    lora = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, use_rslora=True, **patterns)
    policy = Policy.wrap(model, processor, lora=lora, temperature=TEMPERATURE)
    groups = groups_of(policy, tiny.rows(1))
    adapted = score(policy, [group.prompt for group in groups], [group.tree for group in groups]).log_probs
    plain = AutoModelForCausalLM.from_pretrained(export_language_model(policy, tmp_path / "plain"))
    exported = adapter_for_vllm(policy, tmp_path / "adapter")
    settings = json.loads((exported / "adapter_config.json").read_text())
    assert (settings["r"], settings["rank_pattern"], settings["alpha_pattern"]) == (6, {}, {})
    loaded: torch.nn.Module = peft.PeftModel.from_pretrained(plain, exported).eval()
    assert close(plain_log_probs(policy, loaded, groups), adapted)


def test_a_saved_adapter_is_renamed_as_one_in_memory(tmp_path):
    """Without weights of the base; and for vLLM's own speech class of the family."""
    policy = policy_of("granite_speech")
    policy.base.save_pretrained(tmp_path / "base")
    policy.processor.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").unlink()
    policy.save_adapter(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    places: dict[Onto, str] = {"language_model": "model", "speech": "language_model.model"}
    for onto, place in places.items():
        one = adapter_for_vllm(policy, tmp_path / f"a-{onto}", onto=onto)
        other = saved_adapter_for_vllm(tmp_path / "adapter", tmp_path / "base", tmp_path / f"b-{onto}", onto=onto)
        found = load_file(one / "adapter_model.safetensors")
        wanted = {
            name.replace("base_model.model.model.language_model.", f"base_model.model.{place}."): value
            for name, value in saved.items()
        }
        assert set(found) == set(wanted) != set(saved)
        for exported in (found, load_file(other / "adapter_model.safetensors")):
            assert all(torch.equal(exported[name], wanted[name]) for name in wanted)


def test_what_a_server_would_leave_out_is_refused(tmp_path):
    policy = policy_of("qwen2_audio")
    policy.base.save_pretrained(tmp_path / "base")
    policy.processor.save_pretrained(tmp_path / "base")
    policy.save_adapter(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    (tmp_path / "adapter" / "checksums.json").unlink()
    saved = load_file(file)
    first = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    for name, said in (
        (first.replace("language_model", "audio_tower"), "outside model.language_model"),
        (first.replace("layers.0", "layers.7"), "no linear layer model.layers.7.self_attn.q_proj"),
        (first.replace("q_proj", "g_proj"), "no linear layer model.layers.0.self_attn.g_proj"),
    ):
        other = name.replace("lora_A", "lora_B")
        changed = {**saved, name: saved[first].clone(), other: saved[first.replace("lora_A", "lora_B")].clone()}
        save_file(changed, file)
        with pytest.raises(ModelError, match=said):
            saved_adapter_for_vllm(tmp_path / "adapter", tmp_path / "base", tmp_path / "exported")
    save_file({key: value for key, value in saved.items() if key != first}, file)
    with pytest.raises(ModelError, match=r"holds one matrix of .*q_proj and lacks the other"):
        saved_adapter_for_vllm(tmp_path / "adapter", tmp_path / "base", tmp_path / "exported")
    save_file({**saved, first: saved[first][:, :-1].contiguous()}, file)
    with pytest.raises(ModelError, match="takes 31 values and gives 32; that of Qwen2ForCausalLM takes 32"):
        saved_adapter_for_vllm(tmp_path / "adapter", tmp_path / "base", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_adapters_that_vllm_does_not_take_are_refused(tmp_path):
    model, processor = build("qwen2_audio")
    dora = Policy.wrap(model, processor, lora=peft.LoraConfig(r=2, use_dora=True))
    with pytest.raises(ModelError, match=r"has use_dora, which vLLM does not take. Merge it"):
        adapter_for_vllm(dora, tmp_path / "adapter")
    model, processor = build("qwen2_audio")
    biased = Policy.wrap(model, processor, lora=peft.LoraConfig(r=2, lora_bias=True, target_modules=["q_proj"]))
    with pytest.raises(ModelError, match="has lora_bias, which vLLM does not take"):
        adapter_for_vllm(biased, tmp_path / "adapter")
    with pytest.raises(ModelError, match="has no adapter to export"):
        adapter_for_vllm(Policy(*build("qwen2_audio")), tmp_path / "adapter")


def test_families_that_vllm_does_not_serve_say_what_to_do(tmp_path):
    gemma = policy_of("gemma3n")
    with pytest.raises(ModelError, match=r"cannot be served alone. The layers of Gemma 3n .* `--for merged`"):
        export_language_model(gemma, tmp_path / "language_model")
    with pytest.raises(ModelError, match=r"serves Gemma 3n without LoRA. Merge the adapter into .* `--for merged`"):
        adapter_for_vllm(gemma, tmp_path / "adapter", onto="speech")
    with pytest.raises(
        ModelError, match=r"Qwen2-Audio without LoRA. Export the decoder .* `--language-model`, or merge"
    ):
        adapter_for_vllm(policy_of("qwen2_audio"), tmp_path / "adapter", onto="speech")
    granite = policy_of("granite_speech")
    granite.base.config.has_lora_adapter = True  # as those up to 3.3
    with pytest.raises(ModelError, match=r"has a speech LoRA of its own .* `--for merged`"):
        adapter_for_vllm(granite, tmp_path / "adapter", onto="speech")
    assert [*tmp_path.iterdir()] == []


def test_every_family_is_in_the_table_of_names():
    unknown = served(family("qwen2_audio").__class__("mine", "a", "b", "c", "d", max_seconds=lambda processor: 1.0))
    assert [name for name in families() if served(family(name)) == unknown] == []


@torch.no_grad()
def test_tied_and_resized_vocabularies_are_exported_as_they_are(tmp_path):
    """Whatever the configuration says: Granite's speech class ties what its text part calls untied."""
    tied = policy_of("granite_speech")
    written = AutoModelForCausalLM.from_pretrained(export_language_model(tied, tmp_path / "tied"))
    assert written.config.tie_word_embeddings
    assert written.lm_head.weight is written.model.embed_tokens.weight
    model, processor = build("qwen2_audio")
    model.resize_token_embeddings(400)
    lora = peft.LoraConfig(r=2, init_lora_weights=False)
    resized = Policy.wrap(model, processor, lora=lora, temperature=TEMPERATURE)
    resized.base.config.text_config.vocab_size = 320  # as configurations with padded vocabularies have it
    folder = export_language_model(resized, tmp_path / "resized")
    again = AutoModelForCausalLM.from_pretrained(folder)
    assert not again.config.tie_word_embeddings
    assert again.lm_head.weight.shape == again.model.embed_tokens.weight.shape == (400, 32)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert again.generation_config.eos_token_id == list(resized.eos_token_ids)
    with pytest.raises(ModelError, match="exists and is left as it is"):
        export_language_model(resized, folder)


def test_a_card_says_how_each_family_is_served():
    said = {name: how_to_serve(family(name), projector=False) for name in families()}
    assert all("--for merged" in text for text in said.values())
    native = {name for name, text in said.items() if "leaf export ADAPTER --for vllm" in text}
    assert native == {name for name in families() if served(family(name)).speech}
    assert "serves Qwen2-Audio without LoRA. An adapter cannot be served there" in said["qwen2_audio"]
    assert "speech LoRA of its own is served merged" in said["granite_speech"]
    assert "speech LoRA of its own" not in said["glmasr"]
    trained = how_to_serve(family("glmasr"), projector=True)
    assert "--for vllm" not in trained
    assert "would have another projector" in trained


def test_the_page_about_serving_has_every_family_as_it_is():
    rows = {row[0].strip("`"): row[1:] for row in tables("serving.md") if len(row) == 4}
    named = {name.removesuffix("_thinker") for name in families()}
    assert named <= set(rows)
    for name in named:
        own_class, _, decoder = rows[name]
        assert own_class.startswith(("no", "not")) != (served(family(name)).speech is not None), name
        assert decoder.startswith("yes") == (served(family(name)).plain is not None), name
        assert all(cell.endswith(("tried", "read", "not known", "refused", "token")) for cell in rows[name]), name
