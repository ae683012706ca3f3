import math

import pytest
import torch

from leaf.credit import SURROGATES, policy_loss, surrogate, token_weights
from leaf.credit.surrogates import cispo, clip, gspo, sapo
from leaf.errors import ConfigError

MASK = torch.tensor([[True, True, True], [True, True, False]])
OLD = torch.full((2, 3), -1.0, dtype=torch.float64)
MOVED = torch.tensor([[0.3, -0.1, 0.4], [-0.5, 0.1, 9.0]], dtype=torch.float64)  # log ratios; the last is padding
ADVANTAGE = torch.tensor([[1.0, 1.0, 1.0], [-2.0, -2.0, 7.0]], dtype=torch.float64)


def gradient(function, new=OLD + MOVED, advantage=ADVANTAGE, *, low=0.2, high=0.2, **options):
    """Compute a surrogate's values at the real tokens of the group above, and the slope of their sum."""
    new = new.clone().requires_grad_()
    given = function(new, OLD, advantage, MASK, low, high, **options)
    (slope,) = torch.autograd.grad(given.loss[MASK].sum(), new)
    return given.loss.detach(), slope, given.held


@pytest.mark.parametrize("name", SURROGATES)
def test_at_a_ratio_of_one_every_surrogate_has_the_gradient_of_the_policy(name):
    _, slope, held = gradient(SURROGATES[name], new=OLD)
    assert torch.allclose(slope[MASK], -ADVANTAGE[MASK])
    assert not held[MASK].any()


@pytest.mark.parametrize("name", SURROGATES)
def test_padding_changes_neither_loss_nor_gradient(name):
    def run(padding):
        new = (OLD + MOVED).masked_fill(~MASK, padding).requires_grad_()
        loss, statistics = policy_loss(
            new, OLD, ADVANTAGE, MASK, weights=token_weights([MASK])[0], surrogate=SURROGATES[name]
        )
        return loss, torch.autograd.grad(loss, new)[0], statistics

    (loss, slope, seen), (again, same, statistics) = run(-3.0), run(float("inf"))
    assert loss == again
    assert torch.equal(slope, same)
    assert bool((slope[~MASK] == 0).all())
    assert seen == statistics


def test_gspo_has_one_ratio_per_completion():
    first, second = math.exp((0.3 - 0.1 + 0.4) / 3), math.exp((-0.5 + 0.1) / 2)  # 1.2214 and 0.8187
    loss, slope, held = gradient(gspo, low=0.1, high=0.3)
    # The first is within 1.3. The second is below 1 − 0.1 with A < 0: held.
    assert torch.allclose(loss[0], torch.full((3,), -first, dtype=torch.float64))
    assert torch.allclose(loss[1, :2], torch.full((2,), 2 * 0.9, dtype=torch.float64))
    assert torch.allclose(slope[0], torch.full((3,), -first, dtype=torch.float64))
    assert bool((slope[1] == 0).all())
    assert held[1, :2].all()
    assert not held[0].any()
    assert second < 0.9


def test_gspo_tokens_add_up_to_the_papers_sequence_objective():
    # J = mean over completions of min(s A, clip(s) A), s the length-normalised ratio with its own graph.
    new = (OLD + MOVED).requires_grad_()
    count = MASK.sum(1)
    s = torch.exp(((new - OLD) * MASK).sum(1) / count)
    advantage = ADVANTAGE[:, 0]
    want = -torch.minimum(s * advantage, s.clamp(0.7, 1.3) * advantage).mean()
    (expected,) = torch.autograd.grad(want, new)

    again = (OLD + MOVED).requires_grad_()
    weights = token_weights([MASK])[0]
    loss, _ = policy_loss(again, OLD, ADVANTAGE, MASK, weights=weights, surrogate=gspo, clip=0.3)
    (slope,) = torch.autograd.grad(loss, again)
    assert torch.allclose(loss, want)
    assert torch.allclose(slope, expected, atol=1e-7)


def test_cispo_bounds_the_weight_and_keeps_every_token():
    loss, slope, held = gradient(cispo, high=0.2)
    ratio = MOVED.exp()
    weight = torch.where(ratio > 1.2, 1.2, ratio)
    assert torch.allclose(slope[MASK], (-weight * ADVANTAGE)[MASK])
    assert torch.allclose(loss[MASK], (-weight * ADVANTAGE * (OLD + MOVED))[MASK])
    assert held[MASK].tolist() == [True, False, True, False, False]  # e^0.3 and e^0.4 are above 1.2
    assert slope[1, 0] == pytest.approx(2 * math.exp(-0.5))  # far below 1, and not lost


def test_sapo_by_hand():
    loss, slope, held = gradient(sapo)
    ratio = math.exp(0.3)
    gate = 1 / (1 + math.exp(-(ratio - 1)))
    assert loss[0, 0] == pytest.approx(-4 * gate)
    assert slope[0, 0] == pytest.approx(-4 * gate * (1 - gate) * ratio)
    ratio = math.exp(-0.5)
    gate = 1 / (1 + math.exp(-1.05 * (ratio - 1)))
    assert loss[1, 0] == pytest.approx(2 * gate * 4 / 1.05)
    assert slope[1, 0] == pytest.approx(2 * 4 * gate * (1 - gate) * ratio)
    assert not held.any()
    closed, _, _ = gradient(sapo, tau_pos=100.0)
    assert closed[0, 0] == pytest.approx(-4 / 100)


def test_clip_higher_lets_more_of_a_better_token_through():
    assert gradient(clip, high=0.2)[1][0, 0] == 0
    assert gradient(clip, high=0.4)[1][0, 0] == pytest.approx(-math.exp(0.3))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gsp", {}, "Did you mean 'gspo'"),
        ("sapo", {"tau": 1.0}, "does not take the option tau"),
        ("sapo", {"tau_pos": 0.0}, "must be finite numbers above 0"),
        ("sapo", {"tau_neg": "soft"}, "must be a number"),
        ("clip", {"low": 0.1}, "It takes none"),
    ],
)
def test_unknown_losses_and_options_are_refused(name, options, message):
    with pytest.raises(ConfigError, match=message):
        surrogate(name, **options)
