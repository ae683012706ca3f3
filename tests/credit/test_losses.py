import math

import pytest
import torch

from leaf.credit import k3, policy_loss, token_weights
from leaf.errors import ConfigError

NAN, INF = float("nan"), float("inf")


def random_batch(seed, size=4, width=6):
    generator = torch.Generator().manual_seed(seed)
    new, old, ref, advantages = (
        torch.randn(size, width, generator=generator, dtype=torch.float64) * s - m
        for s, m in ((0.4, 2), (0.4, 2), (0.4, 2), (1, 0))
    )
    lengths = torch.randint(0, width + 1, (size,), generator=generator)
    lengths[0] = width
    return new, old, ref, advantages, torch.arange(width) < lengths[:, None]


def alone(mask, **options):
    """Return the weights of a batch that is one group."""
    return token_weights([mask], **options)[0]


def plain_loss(new, old, ref, advantages, mask, *, low=0.2, high=0.2, beta=0.02):
    """Write the formula down token by token: mean over each completion's tokens, then over non-empty completions."""
    completions = []
    for i in range(mask.shape[0]):
        tokens = []
        for t in mask[i].nonzero().flatten().tolist():
            ratio = (new[i, t] - old[i, t]).exp()
            clipped = torch.clamp(ratio, 1 - low, 1 + high)
            d = ref[i, t] - new[i, t]
            gain = torch.min(ratio * advantages[i, t], clipped * advantages[i, t])
            tokens.append(-gain + beta * (d.exp() - d - 1))
        if tokens:
            completions.append(torch.stack(tokens).mean())
    return torch.stack(completions).mean()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("low", "high"), [(0.2, None), (0.2, 0.28), (0.0, None)])
def test_loss_and_gradient_equal_the_formula(seed, low, high):
    new, old, ref, advantages, mask = random_batch(seed)
    a, b = new.clone().requires_grad_(), new.clone().requires_grad_()
    loss, _ = policy_loss(a, old, advantages, mask, weights=alone(mask), clip=low, clip_high=high, ref_logp=ref)
    want = plain_loss(b, old, ref, advantages, mask, low=low, high=low if high is None else high)
    assert torch.allclose(loss, want, atol=1e-7)
    (got,), (expected,) = torch.autograd.grad(loss, a), torch.autograd.grad(want, b)
    assert torch.allclose(got, expected, atol=1e-7)
    assert bool((got[~mask] == 0).all())


def test_one_token_by_hand():
    one = torch.ones(1, 1, dtype=torch.float64)
    mask = torch.ones(1, 1, dtype=torch.bool)
    old = torch.zeros(1, 1, dtype=torch.float64)

    def gradient(ratio, advantage, **options):
        new = (one * math.log(ratio)).requires_grad_()
        loss, stats = policy_loss(new, old, one * advantage, mask, weights=alone(mask), **options)
        loss.backward()
        assert new.grad is not None
        return loss.item(), new.grad.item(), stats

    assert gradient(1.0, 3.0)[:2] == (-3.0, -3.0)
    assert gradient(1.5, 3.0)[:2] == pytest.approx((-3.6, 0.0))  # held at 1 + ε
    assert gradient(1.5, -3.0)[:2] == pytest.approx((4.5, 4.5))  # the pessimistic side is free
    assert gradient(0.5, -3.0)[:2] == pytest.approx((2.4, 0.0))  # held at 1 − ε
    assert gradient(0.5, 3.0)[:2] == pytest.approx((-1.5, -1.5))
    assert gradient(1.25, 3.0, clip_high=0.3)[:2] == pytest.approx((-3.75, -3.75))
    assert gradient(1.5, 3.0)[2]["clip_fraction"].item() == 1.0
    assert gradient(1.1, 3.0)[2]["clip_fraction"].item() == 0.0
    loss, slope, stats = gradient(1.0, 0.0, ref_logp=one * math.log(2), kl_coef=0.5)
    assert (loss, slope) == pytest.approx((0.5 * (2 - math.log(2) - 1), 0.5 * (1 - 2)))
    assert stats["kl"].item() == pytest.approx(1 - math.log(2))


def test_k3_is_zero_at_equality_and_never_negative():
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)[None]
    assert bool((k3(x, x) == 0).all())
    assert bool((k3(x, x.flip(1)) >= 0).all())
    assert k3(torch.zeros(1, 1), torch.ones(1, 1)).item() == pytest.approx(math.e - 2)


@pytest.mark.parametrize("garbage", [NAN, INF, -INF, 1e30])
@pytest.mark.parametrize("where", [(0,), (1,), (2,), (3,), (0, 1, 2, 3)])
def test_padding_has_no_effect_whatever_stands_there(garbage, where):
    new, old, ref, advantages, mask = random_batch(3)
    want, stats = policy_loss(new, old, advantages, mask, weights=alone(mask), ref_logp=ref)
    inputs = (new, old, advantages, ref)
    dirty = [x.masked_fill(~mask, garbage if i in where else 0.0) for i, x in enumerate(inputs)]
    policy = dirty[0].requires_grad_()
    loss, dirty_stats = policy_loss(policy, dirty[1], dirty[2], mask, weights=alone(mask), ref_logp=dirty[3])
    assert torch.equal(loss, want)
    assert all(torch.equal(stats[key], dirty_stats[key]) for key in stats)
    loss.backward()
    assert policy.grad is not None
    assert bool(policy.grad.isfinite().all())
    assert bool((policy.grad[~mask] == 0).all())


@pytest.mark.parametrize("gap", [1e3, -1e3])
@pytest.mark.parametrize("advantage", [0.0, 1.0, -1.0])
def test_no_gap_between_policies_makes_a_nan(gap, advantage):
    new = torch.full((1, 2), gap, requires_grad=True)
    zeros, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    loss, stats = policy_loss(new, zeros, zeros + advantage, mask, weights=alone(mask), ref_logp=zeros)
    loss.backward()
    assert bool(loss.isfinite())
    assert new.grad is not None
    assert bool(new.grad.isfinite().all())
    assert all(bool(value.isfinite()) for value in stats.values())


@pytest.mark.parametrize("reduction", ["completion_mean", "token_mean", "constant"])
def test_micro_batches_add_up_to_the_whole_batch(reduction):
    new, old, ref, advantages, mask = random_batch(7, size=9, width=5)
    mask[4] = False
    options = {"reduction": reduction, "constant_length": 5}
    whole = new.clone().requires_grad_()
    total, _ = policy_loss(whole, old, advantages, mask, weights=alone(mask, **options), ref_logp=ref)
    total.backward()
    # Parts of unlike size and width, as packed groups are.
    cuts, widths = [slice(0, 1), slice(1, 4), slice(4, 5), slice(5, 9)], [5, int(mask[1:4].sum(1).max()), 5, 5]
    parts = new.clone().requires_grad_()
    weights = token_weights([mask[c, :w] for c, w in zip(cuts, widths, strict=True)], **options)
    losses = [
        policy_loss(*(x[c, :w] for x in (parts, old, advantages, mask)), weights=weight, ref_logp=ref[c, :w])[0]
        for c, w, weight in zip(cuts, widths, weights, strict=True)
    ]
    for loss in losses:
        loss.backward(retain_graph=True)
    assert torch.allclose(torch.stack(losses).sum(), total, atol=1e-6)
    assert parts.grad is not None
    assert whole.grad is not None
    assert torch.allclose(parts.grad, whole.grad, atol=1e-7)


def test_reductions_by_hand():
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    other = torch.tensor([[1, 0]], dtype=torch.bool)
    a, b = token_weights([mask, other])
    assert torch.allclose(a, torch.tensor([[1 / 12] * 4, [1 / 6, 1 / 6, 0, 0], [0] * 4]))
    assert torch.allclose(b, torch.tensor([[1 / 3, 0]]))
    a, b = token_weights([mask, other], reduction="token_mean")
    assert torch.allclose(torch.cat([a[mask], b[other]]), torch.full((7,), 1 / 7))
    a, b = token_weights([mask, other], reduction="constant", constant_length=10)
    assert torch.allclose(torch.cat([a[mask], b[other]]), torch.full((7,), 1 / 30))


def test_nothing_real_gives_a_loss_of_zero():
    for shape in ((2, 3), (2, 0)):
        new = torch.full(shape, NAN, requires_grad=True)
        mask = torch.zeros(shape, dtype=torch.bool)
        loss, stats = policy_loss(new, new.detach(), new.detach(), mask, weights=alone(mask), ref_logp=new.detach())
        loss.backward()
        assert loss.item() == 0.0
        assert bool((new.grad == 0).all())
        assert all(value.item() == 0.0 for value in stats.values())


def test_statistics_are_detached_means_over_real_tokens():
    new = torch.log(torch.tensor([[1.5, 1.0, 0.5], [2.0, 9.0, 9.0]])).requires_grad_()
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)
    advantages = torch.tensor([[1.0, 1.0, -1.0], [-1.0, 5.0, 5.0]])
    _, stats = policy_loss(new, torch.zeros(2, 3), advantages, mask, weights=alone(mask))
    assert {key: round(value.item(), 6) for key, value in stats.items()} == {
        "clip_fraction": 0.5,
        "ratio_mean": 1.25,
        "ratio_max": 2.0,
    }
    assert not any(value.requires_grad for value in stats.values())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "options", [{"clip": -0.1}, {"clip": 1.0}, {"clip_high": -1.0}, {"kl_coef": -0.1}, {"clip": NAN}]
)
def test_refusals(options):
    x, mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ConfigError, match="allowed"):
        policy_loss(x, x, x, mask, weights=alone(mask), **options)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "options", [{"reduction": "tokenmean"}, {"reduction": "constant"}, {"reduction": "constant", "constant_length": 0}]
)
def test_reductions_that_are_refused(options):
    wanted = "at least 1" if options["reduction"] == "constant" else "allowed are .* Did you mean 'token_mean'"
    with pytest.raises(ConfigError, match=wanted):
        alone(torch.ones(1, 1, dtype=torch.bool), **options)
