"""Training on distinct completions, end to end on the tiny model."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from leaf import LeafConfig, LeafTrainer
from leaf.credit import CREDIT_RULES, SET_RULES, BatchCredit, SetDraw, distinct_rules, set_shares
from leaf.credit.sets import nbest, unordered_set
from leaf.errors import ConfigError
from leaf.model.policy import Policy
from leaf.train.rollout import shares_of
from leaf.train.update import add_gradient, weights_over_all
from tests.helpers import tiny


def recipe(tmp_path, **fields):
    settings = {
        "credit": "unordered_set",
        "rollout": "distinct",
        "top_p": 1.0,
        "num_completions": 4,
        "max_new_tokens": 6,
        "prompts_per_rollout": 2,
        "lora_r": 2,
        "lora_dropout": 0.0,
        "device": "cpu",
        "max_steps": 3,
        "eval_every": 0,
        "save_every": 2,
        "record_every": 1,
        "learning_rate": 1e-3,
        "output_dir": str(tmp_path / "run"),
    }
    return LeafConfig(**settings | fields)


def trainer(config, credit=None):
    model, processor = tiny.tiny_model()
    others = {"credit": credit, "processing_class": processor, "say": lambda line: None}
    return LeafTrainer(model, ["chrf"], config, tiny.rows(6), **others)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_times(records):
    return [{k: v for k, v in record.items() if not k.startswith(("seconds", "memory"))} for record in records]


@pytest.mark.parametrize("credit", distinct_rules())
def test_every_rule_trains_and_records_its_weights(tmp_path, credit):
    run = trainer(recipe(tmp_path, credit=credit)).train()
    metrics = lines(run.path / "metrics.jsonl")
    assert [record["step"] for record in metrics] == [1, 2, 3]
    for record in metrics:
        assert record["different_completions"] == 1.0
        assert 0 < record["set_mass"] <= 1
        assert record["grad_norm"] > 0
    assert metrics[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    group = lines(run.path / "groups.jsonl")[0]
    assert len(set(map(tuple, group["token_ids"]))) == 4
    assert sum(group["weight"]) == pytest.approx(1.0, abs=1e-3)
    expected = sum(w * r for w, r in zip(group["weight"], group["rewards"], strict=True))
    other = lines(run.path / "groups.jsonl")[1]
    expected += sum(w * r for w, r in zip(other["weight"], other["rewards"], strict=True))
    assert metrics[0]["reward_mean"] == pytest.approx(expected / 2, rel=1e-2)  # the expected reward, not the plain mean


def test_resumed_equals_uninterrupted(tmp_path):
    whole = recipe(tmp_path, output_dir=str(tmp_path / "whole"), schedule="constant", max_steps=4)
    short = replace(whole, output_dir=str(tmp_path / "cut"), max_steps=2)
    trainer(short).train()
    cut = trainer(replace(short, max_steps=4)).train(resume_from_checkpoint=True)
    expected = lines(trainer(whole).train().path / "metrics.jsonl")
    assert without_times(lines(cut.path / "metrics.jsonl")) == without_times(expected)


def test_sets_that_nothing_is_known_of_are_left_unscored(tmp_path):
    made = trainer(recipe(tmp_path, kl_coef=0.0))
    decode = made.policy.decode
    made.policy.decode = lambda embeddings, **arguments: decode(embeddings, **arguments) * float("nan")
    rolled = made.rollout(1)
    assert all(bool(one.isnan().all()) for one in rolled.rewards)
    assert rolled.left_out == ["step 1: 8 completions came from logits that are not finite; left unscored"]
    assert all(bool((one == 0).all()) for one in rolled.advantages)


@pytest.mark.parametrize("named", ["leaf", "nbest"])
def test_weights_are_those_of_the_rule_that_runs_whatever_the_recipe_names(tmp_path, named):
    for rule, estimator in ((SET_RULES["nbest"], nbest), (CREDIT_RULES["leaf"], unordered_set)):
        rolled = trainer(recipe(tmp_path, credit=named), credit=rule).rollout(1)
        for group, share in zip(rolled.groups, rolled.shares, strict=True):
            assert group.draw is not None
            torch.testing.assert_close(share.double(), set_shares(group.draw, estimator), rtol=1e-5, atol=1e-6)


def test_a_prompt_with_few_outcomes_counts_as_much_as_others(tmp_path):
    """A likely prompt may have two outcomes of K = 4: the shares of each prompt add up to K all the same."""
    draw = SetDraw.of(torch.tensor([0.7, 0.3]).log())
    group = SimpleNamespace(draw=draw, lengths=torch.tensor([1, 1]))
    share = shares_of(group, unordered_set, 4)  # type: ignore[arg-type]
    torch.testing.assert_close(share, torch.tensor([2.8, 1.2]))


def test_the_gradient_is_that_of_the_weighted_log_probabilities(tmp_path):
    """Σ_s w_s (r_s − b_s) ∇ log p(s), over the constant of the reduction, without divergence."""
    made = trainer(recipe(tmp_path, kl_coef=0.0, reduction="constant"))
    rolled = made.rollout(1)
    policy: Policy = made.policy
    policy.train()
    masks = [group.tree.node >= 0 for group in rolled.groups]
    weights = weights_over_all(masks, rolled.shares, made.config, made.processes)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    add_gradient(policy, rolled, masks, weights, made.config)
    got = [p.grad.clone() for p in parameters if p.grad is not None]
    policy.zero_grad()

    from leaf.model.scoring import score

    scores = score(policy, [g.prompt for g in rolled.groups], [g.tree for g in rolled.groups])
    objective = torch.zeros(())
    assert not isinstance(made.rule, BatchCredit)
    for group, log_probs, earned in zip(rolled.groups, scores.log_probs, rolled.rewards, strict=True):
        assert group.draw is not None
        share = set_shares(group.draw) / 4
        advantage = made.rule(group.tree, earned, surprisal=group.surprisal, draw=group.draw)[:, 0]
        objective = objective - (share * advantage * log_probs.sum(1).double()).sum()
    (objective / (2 * made.config.max_new_tokens)).backward()
    for ours, parameter in zip(got, parameters, strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-7)


def test_the_first_of_several_passes_has_the_gradient_of_a_single_one(tmp_path):
    """At ratio 1 nothing is lost; afterwards the ratio is per token, and sets and weights are of the old policy."""
    gradients = {}
    for passes in (1, 2):
        made = trainer(recipe(tmp_path, passes_per_rollout=passes))
        rolled = made.rollout(1)
        assert (rolled.old_log_probs is None) == (passes == 1)
        made.policy.train()
        masks = [group.tree.node >= 0 for group in rolled.groups]
        weights = weights_over_all(masks, rolled.shares, made.config, made.processes)
        add_gradient(made.policy, rolled, masks, weights, made.config)
        gradients[passes] = [p.grad.clone() for p in made.policy.parameters() if p.grad is not None]
    for once, first in zip(gradients[1], gradients[2], strict=True):
        torch.testing.assert_close(first, once, rtol=1e-4, atol=1e-7)


def test_long_answers_lose_nothing(tmp_path):
    """Of answers that are all improbable each counts once, and the credit is RLOO's."""
    rolled = trainer(recipe(tmp_path, max_new_tokens=110, prompts_per_rollout=1)).rollout(1)
    (group,), (reward,) = rolled.groups, rolled.rewards
    assert group.draw is not None
    assert bool((group.draw.log_prob < -30).all())
    torch.testing.assert_close(rolled.shares[0], torch.ones(4), rtol=1e-6, atol=0)
    rloo = ((reward - reward.mean()) * 4 / 3).float()
    torch.testing.assert_close(rolled.advantages[0][:, 0], rloo, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"credit": "grpo"}, "With rollout: distinct use unordered_set"),
        ({"rollout": "independent"}, "Set rollout=distinct, or use leaf"),
        ({"top_p": 0.9}, "Set top_p=1"),
        ({"completions_per_update": 2}, "Set completions_per_update=null"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_model_is_touched(tmp_path, fields, said):
    with pytest.raises(ConfigError, match=said):
        LeafTrainer("no/model", ["chrf"], recipe(tmp_path, **fields), tiny.rows(2))
