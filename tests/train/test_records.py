"""Statistics of a rollout on distinct completions: they describe the policy, not the set."""

from dataclasses import replace

import pytest
import torch

from leaf.credit import SetDraw, set_shares
from leaf.model.policy import Prompt
from leaf.model.sampling import Group
from leaf.train.records import rollout_statistics

PROMPT = Prompt(torch.zeros(1, 1), torch.zeros(1, dtype=torch.bool))


def distinct(first, others):
    """One completion of probability `first` that shares no token, and others that share their first one."""
    tokens = torch.tensor([[1, 2]] + [[3, 4 + i] for i in range(len(others))])
    count = len(tokens)
    surprisal = torch.zeros(count, 2)
    surprisal[:, 1] = 1.0
    draw = SetDraw.of(torch.tensor([first, *others], dtype=torch.float64).log())
    return Group(
        PROMPT, tokens, torch.full((count,), 2), surprisal, torch.zeros(count, dtype=torch.bool), draw, beams=2 * count
    )


def statistics(group, rewards, advantages=None):
    share = set_shares(group.draw) if group.draw is not None else torch.ones(len(rewards))
    given = torch.zeros(group.tokens.shape) if advantages is None else advantages
    return rollout_statistics([group], [torch.tensor(rewards)], [given], [share], [{"f": torch.tensor(rewards)}])


def test_all_completions_that_were_cut_are_exactly_all_of_them():
    """Shares of 6 groups of 8 add up to 0.9999999999999999."""
    group = replace(distinct(0.3, [0.1] * 7), draw=None, truncated=torch.ones(8, dtype=torch.bool))
    share, reward, given = torch.ones(8), torch.zeros(8), torch.zeros(group.tokens.shape)
    assert rollout_statistics([group] * 6, [reward] * 6, [given] * 6, [share] * 6)["truncated"] == 1.0


def test_the_deviation_is_that_of_what_the_policy_says():
    """p = 0.99 with reward 1 and seven others with 0: the policy deviates by 0.1, the set by 0.35."""
    found = statistics(distinct(0.99, [0.001] * 7), [1.0] + [0.0] * 7)
    assert found["reward_std"] == pytest.approx(0.106, abs=0.005)
    assert found["reward_std"] == found["rewards/f/std"]
    independent = replace(distinct(0.99, [0.001] * 7), draw=None)
    assert statistics(independent, [1.0] + [0.0] * 7)["reward_std"] == pytest.approx(8**-0.5)


def test_a_fork_is_usable_where_leaf_credits_its_node():
    """Seven rare completions begin alike, but stand for less than two: LEAF retains no node there."""
    rewards = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert statistics(distinct(0.99, [0.001] * 7), rewards)["usable_fork_rate"] == 0
    assert statistics(distinct(0.001, [0.14] * 7), rewards)["usable_fork_rate"] == 1
    assert statistics(replace(distinct(0.99, [0.001] * 7), draw=None), rewards)["usable_fork_rate"] == 1


def test_credit_counts_as_often_as_its_completion():
    """Rare completions have all their credit at the end, the likely one has its own at the start."""
    advantages = torch.zeros(8, 2)
    advantages[0, 0] = advantages[1:, 1] = 1.0
    group = distinct(0.99, [0.001] * 7)
    first = float(set_shares(group.draw)[0]) / 8 if group.draw is not None else 0.0
    assert statistics(group, [1.0] * 8, advantages)["credit_mass/0"] == pytest.approx(first)
    assert first > 0.9
