"""Scores of completions: equal to the stock forward whatever is packed, and zero where nothing was said."""

import inspect

import peft
import pytest
import torch

from leaf.credit import PrefixTree
from leaf.model.checks import plain_log_probs
from leaf.model.packing import pack, unpack
from leaf.model.policy import Policy
from leaf.model.scoring import _branches, score
from tests.helpers import tiny
from tests.helpers.policies import LORA, groups_of


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


def test_empty_and_single_completions_score(policy):
    prompts = policy.embed(tiny.rows(1))
    tree = PrefixTree.build(torch.tensor([[5, 6], [0, 0]]), torch.tensor([2, 0]))
    scores = score(policy, prompts, [tree]).log_probs[0]
    assert bool((scores[0] < 0).all())
    assert bool((scores[1] == 0).all())
