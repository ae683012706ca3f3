"""Training all weights of the language model: the gradients are a plain model's, and only what should move does."""

import sys
from typing import Any

import pytest
import torch
from datasets import Dataset

from benchmarks import full_parameter as full
from benchmarks.learning import chosen
from benchmarks.records import read
from leaf.config import LeafConfig
from leaf.credit.tree import PrefixTree
from leaf.errors import ModelError
from leaf.files import append_row
from leaf.model.policy import Policy
from leaf.model.scoring import score
from leaf.train.trainer import RLTrainer
from tests.helpers import tiny


def length_reward(completions, **columns):
    """Something that differs between random completions."""
    return [len(text) / 20 for text in completions]


def tied_model():
    """Return the tiny model with a head equal to its embedding but apart from it, as in the embedded checkpoint."""
    model, processor = tiny.tiny_model()
    with torch.no_grad():
        model.lm_head.weight.copy_(model.get_input_embeddings().weight)
    return model, processor


def config(**given):
    settings: dict[str, Any] = {
        "max_steps": 4,
        "prompts_per_rollout": 2,
        "num_completions": 4,
        "max_new_tokens": 6,
        "device": "cpu",
    }
    settings |= {"learning_rate": 1e-3, "warmup_steps": 0, "credit": "grpo", "lora_dropout": 0.0, "token_budget": 512}
    return LeafConfig(**(settings | given))


def options():
    return {"train_rows": tiny.rows(5), "rewards": [length_reward], "say": lambda line: None}


def full_trainer(**given):
    policy = full.FullPolicy.wrap(*tied_model())
    masters = [weight.detach().clone() for weight in policy.trained()]
    return full.full_trainer(policy, masters, config(**given), **options())


def test_gradients_are_those_of_a_plain_forward():
    policy, (plain, processor) = full.FullPolicy.wrap(*tied_model()), tied_model()
    plain.lm_head.weight = plain.get_input_embeddings().weight
    completions = torch.tensor([[5, 6, 7, 2], [5, 6, 9, 2], [8, 2, 0, 0]])
    lengths = torch.tensor([4, 4, 2])
    row = tiny.rows(2)[1]
    (scores,) = score(policy, policy.embed([row]), [PrefixTree.build(completions, lengths)]).log_probs
    scores.sum().backward()

    inputs = Policy.wrap(plain, processor).inputs([row])
    plain.requires_grad_(True)
    for tokens, length in zip(completions, lengths.tolist(), strict=True):
        ids = torch.cat([inputs["input_ids"], tokens[None, :length]], 1)
        given = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = plain(**given).logits[0, -length - 1 : -1]
        logits.log_softmax(-1)[range(length), tokens[:length]].sum().backward()
    named = {"head": (policy.head, plain.lm_head)}
    named["layers"] = (policy.language_model, plain.model.language_model)
    for one, other in named.values():
        for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_a_step_moves_the_whole_language_model_and_nothing_else():
    trainer = full_trainer()
    policy = trainer.policy
    assert isinstance(policy, full.FullPolicy)
    assert policy.head.weight is policy.base.get_input_embeddings().weight
    assert sum(p.numel() for p in trainer.parameters) == sum(p.numel() for p in policy.language_model.parameters())
    before = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    began = trainer.rollout(1)
    first = full.rl_step(trainer, 1, 4)
    assert first["kl"] == pytest.approx(0.0, abs=1e-9)
    assert (first["norm"] or 0.0) > 0.0
    inside = {id(weight) for weight in policy.language_model.parameters()}
    for name, weight in policy.named_parameters():
        assert torch.equal(weight, before[name]) != (id(weight) in inside), name

    moved = [weight.detach().clone() for weight in policy.trained()]
    trees, prompts = [group.tree for group in began.groups], policy.embed(began.rows)
    with torch.no_grad():
        with policy.reference():
            reference = score(policy, prompts, trees).log_probs
        current = score(policy, prompts, trees).log_probs
    assert began.ref_log_probs is not None
    for value, was, now in zip(reference, began.ref_log_probs, current, strict=True):
        assert torch.equal(value, was)  # the text of the prompt too goes through the first embedding
        assert not torch.allclose(now, was)
    assert all(torch.equal(weight, value) for weight, value in zip(policy.trained(), moved, strict=True))
    assert (full.rl_step(trainer, 2, 4)["kl"] or 0.0) > 0.0


def test_the_first_rollout_is_that_of_the_lora_run():
    model, processor = tied_model()
    lora = RLTrainer.from_model(model, config(seed=3), processor=processor, **options()).rollout(1)
    mine = full_trainer(seed=3).rollout(1)
    assert [row["id"] for row in mine.rows] == [row["id"] for row in lora.rows]
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(mine.groups, lora.groups, strict=True))


def test_small_updates_add_up_in_the_masters():
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = full.MasterAdamW([weight], [torch.ones(1)], config(learning_rate=1e-3))
    seen = []
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        optimizer.zero_grad()
        assert weight.grad is None
        seen.append(weight.item())
    # The neighbour below 1 is 1 - 2^-8 = 0.9961: 0.999 is nearer to 1, 0.998 and 0.997 are nearer to it.
    assert seen == [1.0, 1 - 2**-8, 1 - 2**-8]


def test_sft_takes_the_prompts_of_the_rollouts_and_begins_anew_with_every_pass(monkeypatch):
    trainer = full_trainer(learning_rate=1e-2)
    seen = []
    gradient = full.sft_gradient

    def spy(policy, groups):
        seen.append(sorted(row["id"] for rows in groups for row in rows))
        return gradient(policy, groups)

    monkeypatch.setattr(full, "sft_gradient", spy)
    losses = [full.sft_step(trainer, step, 2)["nll"] for step in range(1, 5)]
    assert seen[:2] == seen[2:] == [sorted(row["id"] for row in trainer.rollout(step).rows) for step in (1, 2)]
    assert losses[2] < losses[0]


def test_without_a_copy_there_is_no_reference():
    policy = full.FullPolicy.wrap(*tied_model(), keep_start=False)
    with pytest.raises(ModelError, match="keep_start"), policy.reference():
        pass


def test_a_run_is_scored_split_by_split_and_shown_beside_the_lora_runs_of_its_set(monkeypatch, tmp_path, capsys):
    def train(args, seed, given):
        assert given == ["max_steps=1"]
        return {"task": "qa", "method": args.method, "seed": seed}, full_trainer()

    monkeypatch.setattr(full, "train", train)
    monkeypatch.setattr(full, "load", lambda task, split, limit: Dataset.from_list(tiny.rows(limit)))
    monkeypatch.setattr(full, "RUNS", tmp_path / "full.jsonl")
    monkeypatch.setattr(chosen, "RUNS", tmp_path / "lora.jsonl")
    greedy = {"greedy": {"bleu": 50.0, "exact_match": 40.0, "chrf": 60.0}}
    for seed, group in ((0, "ours"), (1, "theirs")):
        lora = {"task": "qa", "credit": "leaf", "seed": seed, "steps": 1, "set": group, "test": greedy}
        append_row(chosen.RUNS, lora)

    for command in ("run --method grpo --steps 1 --items 2 --sampled test", "table --set ours"):
        monkeypatch.setattr(sys, "argv", ["full_parameter.py", *command.split()])
        full.main()
    records = read(full.RUNS)
    assert [set(record["test"]) for record in records if "test" in record] == [{"items", "greedy", "sampled"}]
    assert [set(record["test_heldout"]) for record in records if "test_heldout" in record] == [{"items", "greedy"}]
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[4] for line in shown if line[1:3] == ["LoRA,", "LEAF"]] == ["1"]
    assert sum(line[1:4] == ["all", "weights,", "GRPO"] for line in shown) == 3  # test twice, held out greedily
