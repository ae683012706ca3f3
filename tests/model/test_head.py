"""Log-probabilities without logits: values, entropies and gradients against the plain computation in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from leaf.model.head import read_log_probs, tile_on
from tests.helpers.peak import peak_of_tensors

TILES = st.tuples(st.integers(1, 12), st.integers(1, 13))


def plain(head, hidden, row, token, scale, cap):
    logits = head(hidden) / scale
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    log_probs = logits.log_softmax(-1)
    return log_probs[row, token], torch.special.entr(log_probs.exp()).sum(-1)[row]


def read_both_ways(head, hidden, row, token, *, scale=1.0, cap=None, tile=None):
    """Return values, entropies and the gradient of weighted values: as leaf reads them, and exact."""
    weight = torch.randn(len(token), generator=torch.Generator().manual_seed(3))
    ours = hidden.clone().requires_grad_()
    values, entropies = read_log_probs(head, ours, row, token, scale=scale, cap=cap, tile=tile)
    (values * weight.to(values)).sum().backward()
    assert ours.grad is not None
    exact = hidden.double().requires_grad_()
    wanted, spread = plain(head.double(), exact, row, token, scale, cap)
    (wanted * weight).sum().backward()
    assert exact.grad is not None
    return (values, entropies, ours.grad.double()), (wanted, spread, exact.grad)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(0, 30),
    TILES,
    st.booleans(),
    st.sampled_from([0.3, 1.0, 8.0]),
    st.sampled_from([None, 0.7, 5.0]),
)
def test_values_and_gradients_equal_plain_autograd(seed, states, tokens, tile, bias, scale, cap):
    torch.manual_seed(seed)
    head = nn.Linear(6, 11, bias=bias).requires_grad_(False)
    row, token = torch.randint(0, states, (tokens,)), torch.randint(0, 11, (tokens,))
    got, wanted = read_both_ways(head, torch.randn(states, 6), row, token, scale=scale, cap=cap, tile=tile)
    for ours, exact in zip(got, wanted, strict=True):
        assert torch.allclose(ours.double(), exact, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), TILES, st.sampled_from([3.0, 30.0, 80.0]))
def test_far_apart_and_equal_logits_are_exact_however_they_are_cut(seed, tile, size):
    """The largest logit comes early, late or several times, and the others are up to 160 nats below it."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(11, 11, bias=False).requires_grad_(False)
    head.weight.copy_(torch.eye(11))
    logits = torch.randint(-2, 3, (5, 11), generator=generator) * (size / 2)
    logits[0] = size  # all equal
    row, token = torch.arange(5).repeat_interleave(11), torch.arange(11).repeat(5)
    got, wanted = read_both_ways(head, logits, row, token, tile=tile)
    for ours, exact in zip(got, wanted, strict=True):
        assert torch.allclose(ours.double(), exact, atol=1e-5, rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), TILES, st.integers(1, 10))
def test_words_that_are_shut_out_have_no_probability(seed, tile, count):
    """A bias of −inf shuts words out, a whole part of the vocabulary too."""
    torch.manual_seed(seed)
    head = nn.Linear(6, 11).requires_grad_(False)
    head.bias[torch.randperm(11)[:count]] = -torch.inf
    allowed = head.bias.isfinite().nonzero().squeeze(1)
    hidden, row = torch.randn(4, 6), torch.arange(4).repeat_interleave(len(allowed))
    token = allowed.repeat(4)
    (values, _, gradient), (wanted, _, exact) = read_both_ways(head, hidden, row, token, tile=tile)
    assert torch.allclose(values.double(), wanted, atol=1e-5)
    assert torch.allclose(gradient, exact, atol=1e-5)


@pytest.mark.parametrize("deviation", [0.3, 2.0, 8.0])
def test_half_precision_loses_nothing_but_the_rounding_of_logits_and_of_the_gradient(deviation):
    """Spread-out, middling and peaked distributions, over several parts of a vocabulary, from bfloat16."""
    torch.manual_seed(0)
    head = nn.Linear(64, 3000, bias=False).bfloat16().requires_grad_(False)
    nn.init.normal_(head.weight, std=0.15)
    hidden, row = (deviation * torch.randn(40, 64)).bfloat16().requires_grad_(), torch.arange(40)
    logits = nn.functional.linear(hidden, head.weight).detach().double()  # as they are rounded
    log_probs = logits.log_softmax(-1)
    token = log_probs.exp().multinomial(1).squeeze(1)
    values, entropies = read_log_probs(head, hidden, row, token, scale=1.0, tile=(32, 700))
    values.sum().backward()
    assert values.dtype == entropies.dtype == torch.float32
    assert torch.allclose(values.double(), log_probs[row, token], atol=5e-6)
    assert torch.allclose(entropies.double(), torch.special.entr(log_probs.exp()).sum(-1), atol=5e-6)
    assert hidden.grad is not None
    exact = head.weight.double()[token] - log_probs.exp() @ head.weight.double()
    assert float((hidden.grad.double() - exact).norm() / exact.norm()) < 2**-8


def test_tokens_beyond_the_vocabulary_are_refused():
    head, token = nn.Linear(4, 10, bias=False).requires_grad_(False), torch.tensor([10])
    for tile in ((2, 3), (2, 5), (2, 20)):
        with pytest.raises(IndexError):
            read_log_probs(head, torch.randn(5, 4), torch.tensor([4]), token, scale=1.0, tile=tile)


def test_no_hidden_states_give_nothing():
    nothing = torch.zeros(0, dtype=torch.long)
    values, entropies = read_log_probs(nn.Linear(4, 10), torch.zeros(0, 4), nothing, nothing, scale=1.0)
    assert values.shape == entropies.shape == (0,)


def test_no_logits_are_kept_for_the_backward_pass():
    head = nn.Linear(8, 5000, bias=False).requires_grad_(False)
    hidden = torch.randn(40, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        read_log_probs(head, hidden, torch.arange(40), torch.arange(40), scale=1.0)
    own = [tensor for tensor in kept if tensor.data_ptr() != head.weight.data_ptr()]
    assert max(tensor.numel() for tensor in own) == hidden.numel()


def test_logits_exist_for_one_tile_at_a_time(tmp_path):
    head = nn.Linear(8, 20_000, bias=False).bfloat16().requires_grad_(False)
    hidden = torch.randn(1500, 8).bfloat16().requires_grad_()
    at = torch.arange(1500)
    peak = peak_of_tensors(lambda: read_log_probs(head, hidden, at, at, scale=1.0), tmp_path)
    rows, words = tile_on(hidden.device)
    assert peak < 12 * rows * words + 200 * 1500  # 10 bytes a logit; all of them in float32 take 120 MB


def test_extreme_logits_give_no_nan():
    head = nn.Linear(2, 3, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[1e4, 0.0], [-1e4, 0.0], [0.0, 1e4]]))
    hidden = torch.ones(1, 2, requires_grad=True)
    values, entropies = read_log_probs(head, hidden, torch.tensor([0, 0]), torch.tensor([0, 1]), scale=1.0)
    values.sum().backward()
    assert bool(torch.isfinite(values).all())
    assert hidden.grad is not None
    assert bool(torch.isfinite(hidden.grad).all())
    assert float(entropies[0].detach()) == pytest.approx(0.6931, abs=1e-3)
