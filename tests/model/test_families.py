"""Every family on a tiny model with its real processor: embedding, scoring, gradients, greedy tokens.

The oracle is the stock model's own outer forward and `generate`, given the audio and padded copies of the prompt.
"""

import dataclasses
import re
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import soundfile
import torch
from datasets import Dataset
from torch.utils import checkpoint
from transformers import GraniteForCausalLM
from transformers.utils.import_utils import BACKENDS_MAPPING

from leaf.commands.doctor import examine
from leaf.config import LeafConfig
from leaf.credit import PrefixTree
from leaf.errors import ModelError
from leaf.model import blocks
from leaf.model.checks import check_policy
from leaf.model.families import families, family_of
from leaf.model.kept import finish, taken
from leaf.model.layer_forward import plain_forward
from leaf.model.policy import Policy
from leaf.model.projector import audio_features, project
from leaf.model.sampling import sample
from leaf.model.scoring import layout_for, score
from leaf.train.align import check_frame_wise
from tests.helpers import tiny
from tests.helpers.families import (
    CASES,
    TEMPERATURE,
    assert_same_gradients,
    build,
    gradient,
    groups_of,
    policy_of,
    stock_inputs,
    stock_log_probs,
)
from tests.helpers.models import (
    granite_speech,
    qwen2_audio,
)
from tests.helpers.project import save


def test_log_probs_and_gradients_equal_the_stock_forward(case, monkeypatch):
    monkeypatch.setattr(blocks, "ROWS", 7)  # so that prompts and trees are cut
    policy = policy_of(case)
    rows = tiny.rows(3)
    groups = groups_of(policy, rows, keep_prompts=True)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(g.tokens.shape, generator=generator) * (g.tree.node >= 0) for g in groups]
    stock = stock_log_probs(policy, rows, groups)
    wanted = gradient(policy, stock, weights)
    scores = score(policy, [g.prompt for g in groups], [g.tree for g in groups])
    for got, want in zip(scores.log_probs, stock, strict=True):
        assert torch.allclose(got, want, atol=2e-5, rtol=1e-4)
    assert_same_gradients(gradient(policy, scores.log_probs, weights), wanted)
    assert any(float(value.abs().max()) > 1e-3 for value in wanted.values())
    for group, want in zip(groups, stock, strict=True):  # and the sampler drew from the same distribution
        assert torch.allclose(-group.surprisal, want.detach(), atol=1e-4)
    # An update that goes on from the sampler's run of the prompts learns the same.
    policy.train()
    with taken(policy, [(group.kept, group.tree) for group in groups]) as kept:
        assert (kept is not None) == policy.attention.planned
        scores = score(policy, [g.prompt for g in groups], [g.tree for g in groups], kept)
        gradient(policy, scores.log_probs, weights)
        finish(kept or [])
    for got, want in zip(scores.log_probs, stock, strict=True):
        assert torch.allclose(got, want, atol=2e-5, rtol=1e-4)
    assert_same_gradients({n: p.grad for n, p in policy.named_parameters() if p.requires_grad}, wanted)


def test_a_prompt_is_embedded_alone_as_it_is_beside_others(case):
    """Otherwise completions and scores depend on the batch size, the order of rows and the number of processes."""
    policy, rows = policy_of(case), tiny.rows(3)
    together, alone = policy.embed(rows), [policy.embed([row])[0] for row in rows]
    assert len({prompt.length for prompt in together}) == 3
    for one, beside in zip(alone, together, strict=True):
        assert torch.equal(one.is_audio, beside.is_audio)
        assert float((one.embeddings - beside.embeddings).norm() / one.embeddings.norm()) < 1e-4


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
    scores = score(policy, prompts, trees)
    for got, want in zip(scores.log_probs, stock, strict=True):
        assert torch.allclose(got, want, atol=2e-5, rtol=1e-4)
    assert_same_gradients(gradient(policy, scores.log_probs, weights), wanted)


def test_gradient_checkpointing_changes_nothing(case, monkeypatch):
    results, recomputed = [], []
    watched = checkpoint._checkpoint_without_reentrant_generator
    monkeypatch.setattr(
        checkpoint,
        "_checkpoint_without_reentrant_generator",
        lambda *given, **options: recomputed.append(len(results)) or watched(*given, **options),
    )
    for checkpointing in (False, True):
        policy = policy_of(case, gradient_checkpointing=checkpointing)
        groups = groups_of(policy, tiny.rows(2))
        policy.train()
        scores = score(policy, [g.prompt for g in groups], [g.tree for g in groups])
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
        with torch.no_grad(), plain_forward(policy):
            out = policy.base.generate(**inputs, **policy.family.forward, max_new_tokens=12, do_sample=False)
        stock += list(out[:, inputs["input_ids"].shape[1] :])
    for group, sequence in zip(groups, stock, strict=True):
        length = int(group.lengths[0])
        assert group.tokens[0, :length].tolist() == sequence[:length].tolist()
        assert torch.equal(group.tokens[0], group.tokens[1])


def test_start_up_checks_pass(case):
    policy = policy_of(case)
    lines = check_policy(policy, tiny.rows(3))
    recurrent = case in ("granite_speech 4 hybrid", "nemotron_h_omni")
    layout = layout_for(policy).name
    assert layout == ("prompt_once" if recurrent else "tree")
    assert any(f"layout {layout}" in line for line in lines)
    assert any("audio reaches the model" in line for line in lines)


FRAME_WISE = {"audioflamingo3", "glmasr", "musicflamingo", "nemotron_h_omni", "qwen2_audio"}


def test_align_takes_frame_wise_projectors_and_says_why_others_are_refused(case):
    policy = Policy.wrap(*build(case))
    rows = tiny.rows(3)
    if case.split()[0] not in FRAME_WISE:
        wanted = (
            r"The projector.*(not one frame per audio position|not one of each|differs from the prompt's).*stage sft"
        )
        with pytest.raises(ModelError, match=wanted):
            check_frame_wise(policy, rows[0])
        return
    check_frame_wise(policy, rows[0])
    projected = project(policy, audio_features(policy, rows))
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
    for got, want in zip(
        score(eager, [g.prompt for g in groups], [g.tree for g in groups]).log_probs, wanted, strict=True
    ):
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
    assert layout_for(policy).name == "prompt_once"
    for a, b in zip(groups_of(policy, rows), wanted, strict=True):
        assert torch.equal(a.tokens, b.tokens)
        assert torch.allclose(a.surprisal, b.surprisal, atol=1e-4)


def test_recurrent_layers_are_never_packed():
    policy = policy_of("granite_speech 4 hybrid")
    assert layout_for(policy).name == "prompt_once"
    with pytest.raises(ModelError, match="linear_attention do not honour a dense attention mask"):
        layout_for(policy_of("granite_speech 4 hybrid", layout="tree"))
    assert layout_for(policy_of("granite_speech 4 hybrid", gradient_checkpointing=True)).name == "copies"


def test_positions_that_change_the_frequencies_of_a_whole_batch_are_refused():
    policy = policy_of("phi4_multimodal")  # LongRoPE from 512 positions on
    prompts = policy.embed(tiny.rows(1))
    with pytest.raises(ModelError, match=r"and 512 new ones exceed 512 positions"):
        sample(policy, prompts, num_completions=1, max_new_tokens=512)
    room = 512 - prompts[0].length
    trees = [PrefixTree.build(torch.full((1, room + 1), 9), torch.tensor([length])) for length in (room, room + 1)]
    assert score(policy, prompts, trees[:1]).log_probs[0].shape == (1, room + 1)
    with pytest.raises(ModelError, match=rf"of {prompts[0].length} tokens and {room + 1} new ones exceed 512"):
        score(policy, prompts, trees[1:])


@pytest.mark.parametrize(
    ("case", "backend", "extra"),
    [("granite_speech", "torchaudio", "granite"), ("voxtral", "mistral-common", "voxtral")],
)
def test_a_package_that_a_processor_lacks_is_named_with_its_extra(case, backend, extra, tmp_path, monkeypatch):
    model, processor = build(case)
    save(model, processor, tmp_path)

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
    assert f"pip install '.[{extra}]' in leaf's clone" in found[0].found


def test_a_kernel_that_is_not_installed_is_said_in_one_sentence(tmp_path):
    model, processor = build("voxtral")
    save(model, processor, tmp_path)
    with pytest.raises(ModelError, match=r"FlashAttention2.*set attention: sdpa, a kernel that needs none"):
        Policy.load(tmp_path, attention="flash_attention_2")


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


def test_mistyped_names_are_answered_with_the_name_that_was_meant():
    model, processor = qwen2_audio.build()
    with pytest.raises(ModelError, match=r"called q_prj; .* Did you mean 'q_proj'\?"):
        Policy.wrap(model, processor, lora=peft.LoraConfig(target_modules=["q_prj"]))
    mistyped = dataclasses.replace(family_of(model.config), projector="model.multi_modal_projektor")
    with pytest.raises(ModelError, match=r"expects a submodule .* Did you mean 'model\.multi_modal_projector'\?"):
        mistyped.module(model, mistyped.projector)
    model.config.model_type = "qwen2_adio"
    with pytest.raises(ModelError, match=r"'qwen2_adio' is not a speech family .* Did you mean 'qwen2_audio'\?"):
        family_of(model.config)


def test_every_registered_family_is_tested():
    named = {case.split()[0] for case in CASES}
    assert {name.removesuffix("_thinker") for name in families()} == named
