"""Sampled completions: greedy tokens, nuclei, surprisals and entropies, and draws that do not depend on the batch."""

import numpy as np
import pytest
import torch

from leaf.errors import RunError
from leaf.model.choosing import choose
from leaf.model.decoding import PathDecoder
from leaf.model.sampling import sample
from leaf.model.scoring import score
from tests.helpers import tiny
from tests.helpers.policies import groups_of


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
