import copy
import inspect

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForSeq2SeqLM

from leaf.credit import PrefixTree
from leaf.errors import AudioError, ModelError, RunError
from leaf.model.checks import check_policy, plain_log_probs
from leaf.model.choosing import choose
from leaf.model.decoding import PathDecoder
from leaf.model.device import pick_dtype
from leaf.model.packing import pack, unpack
from leaf.model.policy import Policy
from leaf.model.projector import audio_features
from leaf.model.sampling import sample
from leaf.model.scoring import _branches, score
from tests.helpers import tiny
from tests.helpers.project import save

LORA = {"r": 4, "lora_alpha": 8, "init_lora_weights": False}


@pytest.fixture
def policy():
    model, processor = tiny.tiny_model()
    return Policy.wrap(model, processor, lora=peft.LoraConfig(**LORA), temperature=0.7)


def groups_of(policy, count=3, seed=0, **options):
    prompts = policy.embed(tiny.rows(count))
    generator = torch.Generator().manual_seed(seed)
    options = {"num_completions": 5, "max_new_tokens": 9, "temperature": 0.7, "generator": generator} | options
    return prompts, sample(policy, prompts, **options)


def gradient(policy, loss):
    policy.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.requires_grad}


def test_embeddings_equal_the_stock_forward(policy):
    """Each prompt's unpadded embeddings give the stock model's logits for the whole padded batch."""
    inputs = policy.inputs(tiny.rows())
    with torch.no_grad():
        stock = policy.base(**inputs).logits
        for i, prompt in enumerate(policy.embed(tiny.rows())):
            assert int(prompt.is_audio.sum()) == int((inputs["input_ids"][i] == policy.audio_token_id).sum()) > 0
            hidden = policy.language_model(inputs_embeds=prompt.embeddings[None], use_cache=False).last_hidden_state
            got = policy.logits(hidden)[0] * policy.temperature
            assert torch.allclose(got, stock[i, -prompt.length :], atol=1e-4)


@pytest.mark.parametrize("token_budget", [1, 60, 4096])
def test_packed_equals_plain_in_log_probs_and_gradients(policy, token_budget):
    policy.token_budget = token_budget
    prompts, groups = groups_of(policy)
    weight = torch.Generator().manual_seed(1)
    weights = [torch.randn(g.tokens.shape, generator=weight) * (g.tree.node >= 0) for g in groups]
    packed = score(policy, prompts, [g.tree for g in groups])
    loss = sum((w * p).sum() for w, p in zip(weights, packed.log_probs, strict=True))
    fast = gradient(policy, loss)
    plain = [inspect.unwrap(plain_log_probs)(policy, g.prompt, g.tokens, g.lengths) for g in groups]
    slow = gradient(policy, sum((w * p).sum() for w, p in zip(weights, plain, strict=True)))
    for a, b in zip(packed.log_probs, plain, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    for name, value in slow.items():
        assert float((fast[name] - value).abs().max()) <= 1e-4 * float(value.abs().max()), name
    assert packed.packed_tokens < packed.plain_tokens


def test_gradient_checkpointing_changes_nothing():
    results = []
    for checkpointing in (False, True):
        model, processor = tiny.tiny_model()
        torch.manual_seed(1)
        policy = Policy.wrap(
            model, processor, lora=peft.LoraConfig(**LORA), gradient_checkpointing=checkpointing, temperature=0.7
        )
        prompts, groups = groups_of(policy)
        policy.train()
        results.append(gradient(policy, score(policy, prompts, [g.tree for g in groups]).log_probs[0].sum()))
    for name, value in results[0].items():
        assert float((results[1][name] - value).abs().max()) <= 1e-5 * float(value.abs().max()), name


def test_entropy_is_that_of_the_next_token_distribution(policy):
    prompts, groups = groups_of(policy, count=1)
    got = score(policy, prompts, [groups[0].tree]).entropies[0]
    hidden = policy.language_model(inputs_embeds=prompts[0].embeddings[None], use_cache=False).last_hidden_state
    p = policy.logits(hidden[:, -1]).softmax(-1)
    assert torch.allclose(got[:, 0], -(p * p.log()).sum().expand(5), atol=1e-4)


def test_the_sampler_records_the_entropy_of_the_policy_whatever_the_nucleus(policy):
    prompts = policy.embed(tiny.rows(3))
    options = {"num_completions": 5, "max_new_tokens": 9, "temperature": policy.temperature, "entropy": True}
    for top_p in (1.0, 0.6):
        draws = torch.Generator().manual_seed(0)
        groups = sample(policy, prompts, top_p=top_p, generator=draws, **options)
        scores = score(policy, prompts, [group.tree for group in groups])
        for group, wanted in zip(groups, scores.entropies, strict=True):
            assert group.entropy is not None
            assert torch.allclose(group.entropy, wanted.detach() * (group.tree.node >= 0), atol=1e-4)
            picked = group.select([2, 0]).entropy
            assert picked is not None
            assert torch.equal(picked, group.entropy[[2, 0]])
    assert groups_of(policy)[1][0].entropy is None


def test_greedy_tokens_equal_stock_generate(policy):
    rows = tiny.rows()
    prompts = policy.embed(rows)
    groups = sample(policy, prompts, num_completions=2, max_new_tokens=12, greedy=True)
    with torch.no_grad():
        stock = policy.base.generate(**policy.inputs(rows), max_new_tokens=12, do_sample=False)
    for i, group in enumerate(groups):
        length = int(group.lengths[0])
        want = stock[i, -stock.shape[1] :]
        want = want[policy.inputs(rows)["input_ids"].shape[1] :][:length]
        assert group.tokens[0, :length].tolist() == want.tolist()
        assert torch.equal(group.tokens[0], group.tokens[1])


def test_surprisal_is_that_of_the_sampling_distribution(policy):
    """Without top-p it equals the scored log-probability; with top-p it is never larger."""
    prompts, groups = groups_of(policy)
    scores = score(policy, prompts, [g.tree for g in groups]).log_probs
    for group, logp in zip(groups, scores, strict=True):
        assert torch.allclose(group.surprisal, -logp.detach(), atol=1e-4)
    prompts, groups = groups_of(policy, top_p=0.6)
    scores = score(policy, prompts, [g.tree for g in groups]).log_probs
    for group, logp in zip(groups, scores, strict=True):
        assert bool((group.surprisal <= -logp.detach() + 1e-4).all())
        assert bool((group.surprisal >= 0).all())


def test_draws_do_not_depend_on_the_rest_of_the_batch(policy):
    """The same uniform numbers give the same completions, however rows leave the batch."""
    options = {"num_completions": 5, "max_new_tokens": 9, "top_p": 0.9}
    prompts = policy.embed(tiny.rows(3))

    def draws(i):
        return torch.Generator().manual_seed(i)

    groups = sample(policy, prompts, generator=[draws(i) for i in range(3)], **options)
    for i, group in enumerate(groups):
        (alone,) = sample(policy, prompts[i : i + 1], generator=[draws(i)], **options)
        assert torch.equal(alone.tokens, group.tokens)
    ended = [int(length) for group in groups for length in group.lengths]
    assert all(
        int(g.tokens[i, n - 1]) in policy.eos_token_ids or bool(g.truncated[i])
        for g in groups
        for i, n in enumerate(g.lengths.tolist())
    )
    assert max(ended) <= 9


def test_top_p_keeps_the_smallest_nucleus():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    row = torch.zeros(1000, dtype=torch.long)
    draws = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    tokens, nats = choose(logits, row, (0.7, None), False, draws)
    counts = torch.bincount(tokens, minlength=4).tolist()
    assert counts == [625, 375, 0, 0]
    assert torch.allclose(nats[tokens == 0], -torch.tensor(0.625).log().expand(625))
    every, _ = choose(logits, row, (1.0, None), False, draws)
    assert torch.bincount(every, minlength=4).tolist() == [500, 300, 150, 50]
    wide, one = torch.zeros(1, 1000), row[:1]  # a nucleus wider than the fast path's top tokens
    assert choose(wide, one, (0.9, None), False, torch.tensor([0.999], dtype=torch.float64))[0].item() < 1000
    assert choose(wide, one, (0.9, None), False, torch.tensor([0.0], dtype=torch.float64))[1].item() == pytest.approx(
        np.log(900), abs=2e-3
    )


def test_top_k_keeps_the_likeliest_tokens_and_top_p_looks_at_these():
    # Probabilities .4 .3 .2 .1. Of the likeliest three .444 .333 .222; a nucleus of 0.7 of these has the first two.
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()[None].repeat(1000, 1)
    draws = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
    for kept, probabilities in (((1.0, 3), [4 / 9, 3 / 9, 2 / 9, 0]), ((0.7, 3), [4 / 7, 3 / 7, 0, 0])):
        tokens, nats = choose(logits, torch.arange(1000), kept, False, draws)
        shares = torch.bincount(tokens, minlength=4) / 1000
        assert shares.tolist() == pytest.approx(probabilities, abs=2e-3)
        assert torch.allclose((-nats).exp(), torch.tensor(probabilities)[tokens], atol=1e-5)
    everything, _ = choose(logits, torch.arange(1000), (1.0, 50), False, draws)
    assert set(everything.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(("top_p", "greedy"), [(1.0, False), (0.8, False), (1.0, True)])
def test_completions_that_share_a_row_draw_as_if_each_had_its_own(top_p, greedy):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 50, generator=generator)
    row = torch.randint(0, 7, (40,), generator=generator)
    draws = torch.rand(40, generator=generator, dtype=torch.float64)
    shared = choose(logits, row, (top_p, None), greedy, draws)
    apart = choose(logits[row], torch.arange(40), (top_p, None), greedy, draws)
    assert torch.equal(shared[0], apart[0])
    assert torch.allclose(shared[1], apart[1])


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


EMPTY = PrefixTree.build(torch.zeros(4, 0, dtype=torch.long), torch.zeros(4, dtype=torch.long))
EMPTY_PADDED = PrefixTree.build(torch.zeros(4, 3, dtype=torch.long), torch.zeros(4, dtype=torch.long))
SOME_EMPTY = PrefixTree.build(torch.tensor([[5, 6, 7], [5, 8, 0], [0, 0, 0], [9, 0, 0]]), torch.tensor([3, 2, 0, 1]))


@pytest.mark.parametrize("layout", ["tree", "prompt_once", "copies"])
def test_groups_of_empty_completions_score_zero_and_teach_nothing(policy, layout):
    policy.layout = layout
    prompts = policy.embed(tiny.rows(3))
    (alone,) = score(policy, prompts[:1], [SOME_EMPTY]).log_probs
    wanted = gradient(policy, alone.sum())
    trees = [SOME_EMPTY, EMPTY, EMPTY_PADDED]
    scores = score(policy, prompts, trees)
    assert [values.shape for values in scores.log_probs] == [(4, 3), (4, 0), (4, 3)]
    assert torch.allclose(scores.log_probs[0], alone, atol=1e-5)
    assert scores.log_probs[0][2].tolist() == scores.log_probs[2][0].tolist() == [0, 0, 0]
    found = gradient(policy, sum(values.sum() for values in scores.log_probs))
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, atol=1e-4 * float(value.abs().max())), name
    only = score(policy, prompts[1:], trees[1:])
    assert not any(bool(values.any()) for values in (*only.log_probs, *only.entropies))
    nothing = gradient(policy, sum(values.sum() for values in only.log_probs))
    assert all(not bool(value.any()) for value in nothing.values())


def test_trees_are_laid_out_on_their_own_device(monkeypatch):
    """Whatever is made beside a tree is made where the tree is: with another default device it would not mix."""
    generator = torch.Generator().manual_seed(0)
    tokens, lengths = torch.randint(0, 3, (6, 5), generator=generator), torch.tensor([5, 3, 0, 5, 1, 4])
    cpu = torch.device("cpu")

    def laid_out(tree):
        packed = pack(7, tree)
        tensors = [packed.token, packed.position, packed.mask, packed.parents, packed.parent_of]
        return [*tensors, *_branches(packed, cpu)]

    wanted = laid_out(PrefixTree.build(tokens, lengths))
    tree = PrefixTree.build(tokens, lengths)  # nothing cached
    with torch.device("meta"):
        got = [*laid_out(tree), *_branches(pack(7, EMPTY), cpu)]
        spread = unpack(torch.arange(1.0, 1 + tree.num_nodes, device="cpu"), tree)
    assert all(value.device.type == "cpu" for value in [*got, spread])
    for a, b in zip(got, wanted, strict=False):
        assert torch.equal(a, b)
    assert spread.tolist() == (tree.node + 1).tolist()


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


@pytest.mark.parametrize("when", ["start", "advance"])
def test_running_out_of_memory_while_sampling_splits_the_prompts_and_changes_no_completion(policy, monkeypatch, when):
    budget, most = policy.token_budget, 2
    _, wanted = groups_of(policy, count=5)
    tried, method = [], getattr(PathDecoder, when)

    def small(self, *arguments):
        tried.append(len(self.prompts))
        if len(self.prompts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return method(self, *arguments)

    monkeypatch.setattr(PathDecoder, when, small)
    for _ in range(2):
        for got, want in zip(groups_of(policy, count=5)[1], wanted, strict=True):
            assert torch.equal(got.tokens, want.tokens)
            assert torch.allclose(got.surprisal, want.surprisal, atol=1e-5)
    assert list(dict.fromkeys(tried)) == [5, 2, 1]  # the first attempt with less is a smaller one
    assert tried.count(5) == 1  # and what did not fit is not tried again
    assert policy.sampled_at_once == 5 * (60 + 5 * 9) // 2
    assert policy.token_budget == budget
    most = 0
    with pytest.raises(RunError, match=r"completions of a single prompt were sampled\. Use fewer num_completions"):
        groups_of(policy)


def test_an_unknown_family_is_refused():
    model, processor = tiny.tiny_model()
    model.config.model_type = "whisper"
    with pytest.raises(ModelError, match="known are audioflamingo3"):
        Policy.wrap(model, processor)


def test_empty_and_single_completions_score(policy):
    prompts = policy.embed(tiny.rows(1))
    tree = PrefixTree.build(torch.tensor([[5, 6], [0, 0]]), torch.tensor([2, 0]))
    scores = score(policy, prompts, [tree]).log_probs[0]
    assert bool((scores[0] < 0).all())
    assert bool((scores[1] == 0).all())


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
