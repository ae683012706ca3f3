"""Log-probabilities without logits: values, entropies and gradients against the plain computation in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from leaf.model.head import read_log_probs


def plain(head, hidden, row, token, scale, cap):
    logits = head(hidden) / scale
    logits = logits if cap is None else cap * torch.tanh(logits / cap)
    log_probs = logits.log_softmax(-1)
    return log_probs[row, token], -(log_probs.exp() * log_probs).sum(-1)[row]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 9),
    st.integers(0, 30),
    st.integers(1, 12),
    st.booleans(),
    st.sampled_from([0.3, 1.0, 8.0]),
    st.sampled_from([None, 0.7, 5.0]),
)
def test_values_and_gradients_equal_plain_autograd(seed, states, tokens, chunk, bias, scale, cap):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    head = nn.Linear(6, 11, bias=bias).requires_grad_(False)
    hidden = torch.randn(states, 6, generator=generator).requires_grad_()
    row = torch.randint(0, states, (tokens,), generator=generator)
    token = torch.randint(0, 11, (tokens,), generator=generator)
    weight = torch.randn(tokens, generator=generator)
    values, entropies = read_log_probs(head, hidden, row, token, scale=scale, rows=chunk, cap=cap)
    (values * weight).sum().backward()
    got, hidden.grad = hidden.grad, None
    assert got is not None
    exact_head, exact = head.double(), hidden.detach().double().requires_grad_()
    wanted, wanted_entropies = plain(exact_head, exact, row, token, scale, cap)
    (wanted * weight).sum().backward()
    assert torch.allclose(values.double(), wanted, atol=1e-5)
    assert torch.allclose(entropies.double(), wanted_entropies, atol=1e-5)
    assert exact.grad is not None
    assert torch.allclose(got.double(), exact.grad, atol=1e-5)


def test_no_logits_are_kept_for_the_backward_pass():
    head = nn.Linear(8, 5000, bias=False).requires_grad_(False)
    hidden = torch.randn(40, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        read_log_probs(head, hidden, torch.arange(40), torch.arange(40), scale=1.0, rows=16)
    own = [tensor for tensor in kept if tensor.data_ptr() != head.weight.data_ptr()]
    assert max(tensor.numel() for tensor in own) == hidden.numel()


def test_extreme_logits_give_no_nan():
    head = nn.Linear(2, 3, bias=False).requires_grad_(False)
    head.weight.copy_(torch.tensor([[1e4, 0.0], [-1e4, 0.0], [0.0, 1e4]]))
    hidden = torch.ones(1, 2, requires_grad=True)
    values, entropies = read_log_probs(head, hidden, torch.tensor([0, 0]), torch.tensor([0, 1]), scale=1.0, rows=4)
    values.sum().backward()
    assert bool(torch.isfinite(values).all())
    assert hidden.grad is not None
    assert bool(torch.isfinite(hidden.grad).all())
    assert float(entropies[0].detach()) == pytest.approx(0.6931, abs=1e-3)
