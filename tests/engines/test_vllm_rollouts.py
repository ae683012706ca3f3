"""Rollouts with a real vLLM server: what it draws is the policy's, step by step, and it may die."""

import json
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

from leaf import LeafTrainer
from leaf.commands.doctor import examine
from leaf.config import LeafConfig
from leaf.engines.vllm.export import adapter_for_vllm, export_language_model
from leaf.engines.vllm.folder import CARD, card_of
from leaf.engines.vllm.options import vllm_options
from leaf.engines.vllm.sampler import VllmSampler
from leaf.errors import ConfigError, ModelError, RunError
from leaf.files import write_json
from leaf.model.draws import step_generator
from leaf.model.policy import Policy
from leaf.model.sampler import Drawing, LocalSampler
from leaf.model.sampler_check import check_sampler
from leaf.model.scoring import score
from tests.helpers import tiny
from tests.helpers.families import build
from tests.helpers.models.common import wider
from tests.helpers.vllm_server import serving, wide_policy

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# An adapter on the embedding as well is what vLLM 0.32 on a CPU dies of when prompts and completions share a batch.
MORE = ("--lora-target-modules", *LAYERS)
DIFFERENCE = "sampling/sampling_logp_difference/"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Return a policy and the address of a server of its language model."""
    folder = tmp_path_factory.mktemp("served")
    policy = wide_policy("glmasr", temperature=0.8)
    with serving(export_language_model(policy, folder / "model"), folder, more=MORE) as url:
        yield policy, url


def generators(count):
    return [torch.Generator().manual_seed(i) for i in range(count)]


def sampler_at(url, folder, said=None, **options):
    return VllmSampler(vllm_options({"url": url, **options}), folder, say=[].append if said is None else said.append)


def test_completions_are_drawn_as_leaf_means_them(served, tmp_path):
    policy, url = served
    sampler = sampler_at(url, tmp_path / "adapters")
    (line,) = sampler.begin(policy)
    assert url in line
    sampler.sync(policy, 3)
    prompts = policy.embed(tiny.rows(3))
    drawing = Drawing(8, 10, temperature=0.8)
    groups = sampler.sample(policy, prompts, drawing, generators(3))
    with torch.no_grad():
        scores = score(policy, prompts, [group.tree for group in groups]).log_probs
    for group, own in zip(groups, scores, strict=True):
        real = torch.arange(group.tokens.shape[1]) < group.lengths[:, None]
        assert float(((-group.surprisal - own) * real).abs().max()) < 1e-4
        ends = torch.tensor([group.tokens[k, n - 1] in policy.eos_token_ids for k, n in enumerate(group.lengths)])
        assert torch.equal(group.truncated, ~ends)  # the end token counts in
        assert bool((group.lengths[group.truncated] == 10).all())
        assert len({tuple(row) for row in group.tokens.tolist()}) > 1  # each has a seed of its own
        assert group.version == 3
    again = sampler.sample(policy, prompts, drawing, generators(3))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(groups, again, strict=True))
    sampler.close()


@torch.no_grad()
def test_tokens_are_drawn_with_the_policys_probabilities(served, tmp_path):
    """First tokens of 300 groups: how often each comes, and how often two completions of a group have the same."""
    policy, url = served
    sampler = sampler_at(url, tmp_path / "adapters")
    sampler.begin(policy)
    sampler.sync(policy, 0)
    (prompt,) = policy.embed(tiny.rows(1))
    hidden = policy.decode(prompt.embeddings[None], use_cache=False)[0, -1]
    wanted = policy.logits(hidden).softmax(-1).double()
    draws = [step_generator(0, i) for i in range(300)]
    groups = sampler.sample(policy, [prompt] * 300, Drawing(8, 1, temperature=policy.temperature), draws)
    first = torch.stack([group.tokens[:, 0] for group in groups])
    expected = wanted * first.numel()
    found = torch.bincount(first.flatten(), minlength=len(wanted)).double()
    seen = expected >= 5
    assert float(((found - expected) ** 2 / expected)[seen].sum()) < 3 * int(seen.sum())
    pairs = [(first[:, a] == first[:, b]).double().mean() for a in range(8) for b in range(a)]
    assert float(torch.stack(pairs).mean()) == pytest.approx(float((wanted**2).sum()), abs=0.03)
    sampler.close()


def test_greedy_and_sampled_passes_of_an_evaluation(served, tmp_path):
    policy, url = served
    sampler = sampler_at(url, tmp_path / "adapters")
    sampler.begin(policy)
    sampler.sync(policy, 0)
    prompts = policy.embed(tiny.rows(2))
    how = Drawing(3, 8, temperature=0.8, top_p=0.9, top_k=50, greedy=[True, False, True])
    draws = [[torch.Generator().manual_seed(10 * i + k) for k in range(3)] for i in range(2)]
    got, wanted = (one.sample(policy, prompts, how, draws) for one in (sampler, LocalSampler()))
    for one, other in zip(got, wanted, strict=True):
        for k in (0, 2):
            assert one.tokens[k, : one.lengths[k]].tolist() == other.tokens[k, : other.lengths[k]].tolist()
    with pytest.raises(ConfigError, match="distinct"):
        sampler.sample(policy, prompts, Drawing(3, 8, distinct=True), generators(2))
    sampler.close()


def test_a_server_that_ignores_the_adapter_is_found(served, tmp_path, monkeypatch):
    """The adapter under the names that peft gives it: the server answers 200, and draws from the bare model."""
    policy, url = served

    def as_peft_names_them(policy, to):
        adapter_for_vllm(policy, to)
        policy.save_adapter(to)
        return to

    monkeypatch.setattr("leaf.engines.vllm.sampler.adapter_for_vllm", as_peft_names_them)
    sampler = sampler_at(url, tmp_path / "adapters")
    sampler.begin(policy)
    sampler.sync(policy, 17)
    with pytest.raises(ModelError, match=r"of the bare model .* ignores the adapter"):
        check_sampler(policy, sampler, policy.embed(tiny.rows(2)), 1e-3)
    sampler.close()


def recipe(folder, url, **changes):
    values = {
        "output_dir": str(folder),
        "max_steps": 20,
        "prompts_per_rollout": 2,
        "num_completions": 8,
        "max_new_tokens": 12,
        "learning_rate": 1e-2,
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "eval_every": 10,
        "eval_items": 2,
        "device": "cpu",
        "top_p": 1.0,
        "sampler": "vllm",
        "sampler_options": {"url": url},
    }
    return LeafConfig(**(values | changes))


def length(completions, **columns):
    return [len(text) / 20 for text in completions]


def train(case, config, said=None, on_step=None):
    with wider():
        model, processor = build(case)
    rows = tiny.rows(5)
    say = [].append if said is None else said.append
    trainer = LeafTrainer(model, [length], config, rows, rows[:2], processor, say=say, on_step=on_step)
    return trainer.train()


@pytest.mark.parametrize("case", ["granite_speech", "glmasr", "qwen2_audio"])
def test_twenty_steps_of_three_families_stay_with_the_policy(case, tmp_path):
    with wider():
        model, processor = build(case)
    language_model = export_language_model(Policy.wrap(model, processor), tmp_path / "model")
    with serving(language_model, tmp_path, more=MORE) as url:
        run = train(case, recipe(tmp_path / "run", url))
        records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        assert len(records) == 20
        assert max(record[DIFFERENCE + "max"] for record in records) < 1e-3
        assert records[-1]["kl"] > records[0]["kl"]  # it has learned something, and the server came along
        ahead = recipe(tmp_path / "ahead", url, max_steps=6, sampler_options={"url": url, "overlap": True})
        run = train(case, ahead)
        records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        assert max(record["sampling/engine_logp_difference/max"] for record in records) < 1e-3
        assert max(record[DIFFERENCE + "mean"] for record in records[1:]) > 1e-3


def test_two_servers_share_the_work_and_one_may_die(served, tmp_path):
    """The second one is killed behind step 3 of 6: its prompts go to the first."""
    policy, url = served
    said, counts = [], []
    with ExitStack() as second:
        model = export_language_model(policy, tmp_path / "model")
        other = second.enter_context(serving(model, tmp_path, more=MORE))
        (log,) = tmp_path.glob("vllm-*.log")

        def on_step(record):
            counts.append(log.read_text().count("POST /v1/completions"))
            if record["step"] == 3:
                second.close()

        options = {"urls": [url, other], "retries": 0, "concurrency": 1}
        config = recipe(tmp_path / "run", url, sampler_options=options, max_steps=6, eval_every=0)
        run = train("glmasr", config, said, on_step)
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert len(records) == 6
    assert max(record[DIFFERENCE + "max"] for record in records) < 1e-3
    assert counts[0] < counts[1] < counts[2] == counts[5]  # one prompt of every step was its, as long as it lived
    assert [line for line in said if f"the server {other} is gone" in line and "go to the other 1" in line]


def test_all_servers_have_to_be_there_at_first(served, tmp_path):
    _, url = served
    said = []
    options = {"urls": [url, "http://127.0.0.1:9"], "start_s": 1.0}
    with pytest.raises(RunError, match=r"No server of vLLM answers at http://127\.0\.0\.1:9"):
        train("glmasr", recipe(tmp_path / "run", url, sampler_options=options), said)
    assert not (tmp_path / "run").exists()


def test_the_doctor_looks_at_the_server(served, tmp_path, tmp_path_factory):
    policy, url = served
    config = recipe(tmp_path / "run", url, model=str(tmp_path / "speech"), max_prompt_tokens=200, dtype="float32")
    policy.base.save_pretrained(tmp_path / "speech")
    policy.processor.save_pretrained(tmp_path / "speech")
    (found,) = [one for one in examine(config) if one.subject == "sampler" and "serves" in one.found]
    assert found.state == "ok", found
    assert "takes embeddings of width 128" in found.found
    (found,) = [one for one in examine(replace(config, max_prompt_tokens=900)) if "serves" in one.found]
    assert (found.state, "--max-model-len 912" in found.advice) == ("fails", True)
    assert "ERROR" not in next(tmp_path_factory.getbasetemp().glob("served*/vllm-*.log")).read_text()
    card = tmp_path_factory.getbasetemp() / "served0" / CARD
    for model, dtype, state, said in (
        (config.model, "float32", "ok", "takes embeddings"),
        (config.model, "bfloat16", "unsure", "exported in bfloat16, and the policy computes in float32"),
        ("another", "float32", "fails", "serves the language model of another, and the recipe's model is"),
    ):
        write_json(card, card_of(model, dtype))
        (found,) = [one for one in examine(config) if one.subject == "sampler" and "serves" in one.found]
        assert (found.state, said in found.found) == (state, True), found
    card.unlink()
    gone = replace(config, sampler_options={"url": "http://127.0.0.1:9"})
    (found,) = [one for one in examine(gone) if one.subject == "sampler"]
    assert found.state == "fails"
    assert "does not answer" in found.found
