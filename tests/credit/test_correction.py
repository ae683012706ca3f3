import math

import pytest
import torch

from leaf.credit.correction import Correction, bounded, importance_ratios, mismatch

LOG2 = math.log(2)
# Two completions of two tokens and one of one: π/μ is 2, 4; 1/2, 2; 8.
POLICY = torch.tensor([[LOG2, 2 * LOG2], [-LOG2, LOG2], [3 * LOG2, 99.0]]) - 5
SAMPLER = torch.full((3, 2), -5.0)
MASK = torch.tensor([[True, True], [True, True], [True, False]])


def test_ratios_of_tokens_and_of_sequences_by_hand():
    tokens = importance_ratios(POLICY, SAMPLER, MASK, "token")
    assert torch.allclose(tokens, torch.tensor([[2.0, 4.0], [0.5, 2.0], [8.0, 1.0]]))
    sequences = importance_ratios(POLICY, SAMPLER, MASK, "sequence")
    assert torch.allclose(sequences, torch.tensor([[8.0, 8.0], [1.0, 1.0], [8.0, 1.0]]))
    assert torch.equal(importance_ratios(POLICY, SAMPLER, MASK, "none"), torch.ones(3, 2))


@pytest.mark.parametrize(
    ("bound", "wanted"),
    [("truncate", [[2.0, 3.0], [0.5, 2.0], [3.0, 1.0]]), ("mask", [[2.0, 0.0], [0.5, 2.0], [0.0, 1.0]])],
)
def test_large_weights_are_cut_or_taken_out(bound, wanted):
    correction = Correction("token", bound, 3.0)
    ratios = importance_ratios(POLICY, SAMPLER, MASK)
    assert torch.allclose(bounded(ratios, correction), torch.tensor(wanted))


def test_what_is_recorded_by_hand():
    correction = Correction("token", "truncate", 3.0)
    weights, found = mismatch([POLICY[:2], POLICY[2:]], [SAMPLER[:2], SAMPLER[2:]], [MASK[:2], MASK[2:]], correction)
    assert torch.allclose(torch.cat(weights), torch.tensor([[2.0, 3.0], [0.5, 2.0], [3.0, 1.0]]))
    record = found.record()
    # |log ratios| are 1, 2, 1, 1, 3 times log 2; weights 2, 3, ½, 2, 3.
    assert record["sampling/sampling_logp_difference/mean"] == pytest.approx(8 * LOG2 / 5)
    assert record["sampling/sampling_logp_difference/max"] == pytest.approx(3 * LOG2)
    assert record["sampling/importance_sampling_ratio/min"] == 0.5
    assert record["sampling/importance_sampling_ratio/mean"] == pytest.approx(10.5 / 5)
    assert record["sampling/importance_sampling_ratio/max"] == 3.0
    assert record["rollout_corr/rollout_is_ratio_fraction_high"] == pytest.approx(2 / 5)
    assert record["rollout_corr/rollout_is_eff_sample_size"] == pytest.approx(10.5**2 / (5 * 26.25))
    k3 = sum(ratio - 1 - math.log(ratio) for ratio in (2, 4, 0.5, 2, 8)) / 5
    assert record["rollout_corr/k3_kl"] == pytest.approx(k3)


def test_the_same_model_has_weights_of_one():
    for level in ("token", "sequence"):
        weights, found = mismatch([POLICY], [POLICY], [MASK], Correction(level))
        assert torch.equal(weights[0], torch.ones(3, 2))
        assert found.record()["rollout_corr/rollout_is_eff_sample_size"] == 1.0
        assert found.record()["sampling/sampling_logp_difference/max"] == 0.0


def test_truncated_weights_estimate_the_policy_from_another_models_draws():
    """E_μ[w f] = E_π[f] while no weight is cut."""
    generator = torch.Generator().manual_seed(0)
    policy, sampler = torch.tensor([0.5, 0.3, 0.2]).log(), torch.tensor([0.3, 0.4, 0.3]).log()
    drawn = torch.multinomial(sampler.exp(), 200_000, replacement=True, generator=generator)
    values = torch.tensor([1.0, 10.0, -5.0])[drawn]
    mask = torch.ones(len(drawn), 1, dtype=torch.bool)
    ratios = importance_ratios(policy[drawn][:, None], sampler[drawn][:, None], mask)
    weights = bounded(ratios, Correction(threshold=2.0))
    assert float((weights[:, 0] * values).mean()) == pytest.approx(0.5 + 3 - 1, abs=0.03)
