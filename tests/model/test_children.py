"""Children of a beam: drawn by blocks of the vocabulary, they are those that a Gumbel for every token gives."""

import math

import pytest
import torch

from leaf.model.children import Children, gumbel, noise_width

VOCABULARY, SLOTS = 700, 3  # six blocks, the last one filled up; four of them are opened


def drawn(logits, rounds, seed=0, log_prob=-0.5, key=0.25):
    noise = gumbel((rounds, noise_width(len(logits), SLOTS)), torch.Generator().manual_seed(seed))
    beams = torch.tensor([log_prob, key], dtype=torch.float64)[:, None].expand(2, rounds)
    return Children.of(logits.expand(rounds, -1), beams[0], beams[1], noise, SLOTS)


@pytest.fixture(scope="module")
def logits():
    return 2.5 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(7))


def test_children_are_drawn_without_replacement_and_in_order(logits):
    rounds = 40_000
    p = logits.double().softmax(0)
    found = drawn(logits, rounds)
    first, second = found.token[:, 0], found.token[:, 1]
    assert bool((first != second).all())
    expected = rounds * p
    # The second one is t with probability Σ over the first ones s of p(s) p(t) / (1 − p(s)).
    after = p / (1 - p)
    for token, wanted in ((first, expected), (second, rounds * p * (after.sum() - after))):
        counted = token.bincount(minlength=VOCABULARY).double()
        often = wanted >= 5
        cells = torch.cat([counted[often], counted[~often].sum()[None]])
        wanted = torch.cat([wanted[often], wanted[~often].sum()[None]])
        statistic, freedom = float(((cells - wanted) ** 2 / wanted).sum()), len(cells) - 1
        assert freedom > 100
        assert abs(statistic - freedom) / math.sqrt(2 * freedom) < 4


def test_keys_are_those_of_a_gumbel_for_every_token_given_the_greatest(logits):
    """Given the first token and the greatest key, e^-G₂ − e^-G₁ is exponential with the rate of all other tokens."""
    p = logits.double().softmax(0)
    found = drawn(logits, 20_000)
    torch.testing.assert_close(found.key[:, 0], torch.full((20_000,), 0.25, dtype=torch.float64))
    taken = p[found.token].cumsum(1)
    keys = torch.cat([found.key, found.threshold[:, None]], 1)
    for i in range(SLOTS):
        rate = math.exp(-0.5) * (1 - taken[:, i])
        uniform = torch.exp(-rate * ((-keys[:, i + 1]).exp() - (-keys[:, i]).exp())).sort().values
        distance = (uniform - torch.linspace(0, 1, len(uniform), dtype=torch.float64)).abs().max()
        assert float(distance) * math.sqrt(len(uniform)) < 1.95  # Kolmogorov and Smirnov at 0.001


@pytest.mark.parametrize("peak", [0.0, 30.0, 80.0])
def test_probabilities_are_exact_however_sure_the_policy_is(logits, peak):
    logits = logits.clone()
    logits[300] += peak
    found = drawn(logits, 50)
    every = logits.double().log_softmax(0)
    torch.testing.assert_close(found.log_prob, every[found.token] - 0.5, rtol=0, atol=1e-5)
    for token, rest in zip(found.token, found.log_rest.tolist(), strict=True):
        others = every.clone()
        others[token] = -math.inf
        assert rest == pytest.approx(float(others.logsumexp(0)) - 0.5, abs=1e-5)


def test_tokens_that_cannot_be_are_no_children():
    logits = torch.full((VOCABULARY,), -math.inf)
    logits[[5, 600]] = torch.tensor([1.0, 2.0])
    found = drawn(logits, 8)
    assert {frozenset(row) for row in found.token[:, :2].tolist()} == {frozenset({5, 600})}
    assert bool((found.log_prob[:, 2:] == -math.inf).all())
    assert bool((found.key[:, 2:] == -math.inf).all())
    assert bool((found.log_rest == -math.inf).all() and (found.threshold == -math.inf).all())
