from typing import Any

import numpy as np
import pytest
import torch

from leaf.credit import (
    Fork,
    PrefixTree,
    credit_mass,
    credit_mass_by_position,
    fork_rates,
    fork_rates_by_position,
    forks,
    grpo_advantages,
    wilson,
)
from leaf.errors import DataError
from tests.helpers.groups import as_tensors

NAN = float("nan")


def forks_of(completions, rewards, cuts):
    tokens, lengths, _, reward = as_tensors(completions, rewards, [[0.0] * len(c) for c in completions])
    return forks(PrefixTree.build(tokens, lengths), reward, torch.tensor(cuts, dtype=torch.long))


def test_forks_by_hand():
    completions = [[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 6, 7], [8, 9], [8, 9]]
    found = forks_of(completions, [1.0, 0.25, 0.5, 0.75, 0.75], [2, 3])
    assert [fork.position for fork in found] == [2, 3]
    assert [fork.sizes for fork in found] == [(3, 2), (2, 2)]
    assert [fork.spreads for fork in found] == [(0.75, 0.0), (0.75, 0.0)]
    assert all(fork.fires and fork.usable for fork in found)


def test_a_fork_fires_without_being_usable_and_may_not_fire():
    equal, apart = (
        forks_of([[1, 2, 3], [1, 2, 4], [5, 6, 7]], [0.5, 0.5, 1.0], [1, 2]),
        forks_of([[1, 2], [3, 4]], [0.0, 1.0], [1]),
    )
    assert [(fork.fires, fork.usable, fork.sizes) for fork in equal] == [(True, False, (2,))] * 2
    assert [(fork.fires, fork.usable, fork.sizes) for fork in apart] == [(False, False, ())]


def test_unscored_and_empty_completions_make_no_fork():
    assert not forks_of([[1, 2], [1, 3], [], []], [0.0, NAN, 0.0, 1.0], [1])[0].fires
    assert forks_of([[1, 2], [1, 3]], [0.0, 1.0], []) == []


def test_wilson_intervals():
    # Newcombe (1998), table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(20, 20) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(DataError, match="impossible"):
        wilson(3, 2)


def test_rates_overall_and_by_position():
    found = forks_of([[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7], [1, 8, 8, 8, 8, 8]], [1.0, 0.5, 0.0], [1, 3, 5])
    found += forks_of([[1, 2, 3], [4, 5, 6]], [1.0, 0.0], [2])
    rates = fork_rates(found)
    assert (rates["boundaries"], rates["fire_rate"], rates["usable_rate"], rates["groups"]) == (4, 0.75, 0.75, 3)
    assert rates["fire_interval"] == wilson(3, 4)
    assert rates["group_size"] == pytest.approx(7 / 3)
    assert rates["reward_spread"] == pytest.approx(2 / 3)
    by_position = fork_rates_by_position(found, edges=(1, 3, 9))
    assert list(by_position) == [(1, 3), (3, 9), (9, None)]
    assert [part["boundaries"] for part in by_position.values()] == [2, 2, 0]
    assert [part["usable_rate"] for part in by_position.values()] == [0.5, 1.0, 0.0]
    assert fork_rates([])["usable_interval"] == (0.0, 1.0)


def test_intervals_cover_the_rate_where_boundaries_of_a_prompt_are_alike():
    """As often as they say, for boundaries that agree within a prompt, that are independent, and in between."""

    def interval(hits) -> Any:
        found = [Fork(1, bool(hit), False, (), (), prompt) for prompt, some in enumerate(hits) for hit in some]
        return fork_rates(found)["fire_interval"], wilson(int(hits.sum()), hits.size)

    draws = np.random.default_rng(0)
    for alike in (1.0, 0.5, 0.0):
        covered = naive = 0
        for _ in range(400):
            own, shared = draws.random((64, 2)) < 0.4, draws.random((64, 1)) < 0.4
            (low, high), (lowest, highest) = interval(np.where(draws.random((64, 1)) < alike, shared, own))
            covered += low <= 0.4 <= high
            naive += lowest <= 0.4 <= highest
        assert 0.92 <= covered / 400 <= 0.98, alike
        assert alike < 1 or naive / 400 < 0.88


def test_intervals_of_prompts_by_hand():
    def interval(*prompts):
        found = [Fork(1, hit, False, (), (), name) for name, some in prompts for hit in some]
        return fork_rates(found)["fire_interval"]

    yes, no = [True, True], [False, False]
    assert interval(("a", yes), ("b", no)) == wilson(1, 2)  # two prompts, not four boundaries
    assert interval(("a", no), ("b", no)) == wilson(0, 2)  # where all agree, so may those of a prompt
    assert interval(("a", yes)) == wilson(1, 1)
    assert interval(("a", [True, False]), ("b", [True, False])) == wilson(1, 2)  # nothing is known of a difference
    assert interval((None, [True, True, True, False])) == wilson(3, 4)


def test_credit_mass_by_hand():
    advantages = torch.tensor([[1.0, -1.0, 0.0, 2.0], [-4.0, 0.0, 9.0, 9.0]])
    lengths = torch.tensor([4, 2])
    # Halves: |1| + |−1| + |−4| against |0| + |2| + |0|; what stands in the padding does not count.
    assert credit_mass(advantages, lengths, bins=2).tolist() == [0.75, 0.25]
    assert credit_mass_by_position(advantages, lengths, edges=(0, 1, 3)).tolist() == [0.625, 0.125, 0.25]
    assert credit_mass(torch.zeros(2, 4), lengths).tolist() == [0.0] * 5
    assert credit_mass_by_position(torch.zeros(2, 0), torch.tensor([0, 0]), edges=(0, 2)).tolist() == [0.0, 0.0]


def test_grpo_spreads_its_credit_evenly():
    lengths = torch.tensor([20, 20])
    advantages = grpo_advantages(torch.tensor([1.0, 0.0]), lengths)
    assert credit_mass(advantages, lengths, bins=4).tolist() == pytest.approx([0.25] * 4)
    assert credit_mass_by_position(advantages, lengths, edges=(0, 5, 10)).tolist() == pytest.approx([0.25, 0.25, 0.5])


@pytest.mark.usefixtures("unchecked")
def test_refusals():
    x, lengths = torch.zeros(1, 1), torch.tensor([1])
    with pytest.raises(DataError, match="ascending"):
        credit_mass_by_position(x, lengths, edges=(0, 3, 3))
    with pytest.raises(DataError, match="begin with 0"):
        credit_mass_by_position(x, lengths, edges=(1, 3))
    with pytest.raises(DataError, match="at least 1"):
        credit_mass(x, lengths, bins=0)
    with pytest.raises(DataError, match="ascending"):
        fork_rates_by_position([], edges=())
