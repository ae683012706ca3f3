"""Reward functions that fail, hang or return what is no reward."""

import math
import threading

import pytest

from leaf.errors import ConfigError, RewardError
from leaf.rewards.total import MOST_HANGING, RewardSum


def test_a_failing_function_leaves_its_completions_unscored():
    def broken(completions, kind, **_):
        if kind[0] == "raises":
            raise KeyError("answer")
        return {"text": ["1", 0.5], "few": [1.0], "infinite": [math.inf, 0.5], "none": [None, 0.5]}[kind[0]]

    def good(completions, **_):
        return [0.25, 0.25]

    rewards = RewardSum([broken, good], on_error="skip")
    for kind, totals, failed, said in (
        ("raises", [None, None], [True, True], "broken raised KeyError: 'answer'"),
        ("text", [None, 0.75], [True, False], "broken returned '1' for completion 0"),
        ("infinite", [None, 0.75], [True, False], "broken returned inf for completion 0"),
        ("few", [None, None], [True, True], "broken returned 1 values for 2 completions"),
        ("none", [0.25, 0.75], [False, False], None),  # could not be scored is no failure
    ):
        got = rewards(completions=["a", "b"], kind=[kind] * 2)
        assert [None if math.isnan(total) else total for total in got.totals] == totals
        assert got.failed.tolist() == failed
        assert len(got.messages) == (said is not None)
        assert said is None or said in got.messages[0]
    with pytest.raises(ConfigError, match="allowed are stop and skip"):
        RewardSum(["bleu"], on_error="ignore")


def test_hanging_functions_do_not_pile_up():
    release = threading.Event()

    def slow(**_):
        release.wait(30)
        return [1.0]

    rewards = RewardSum([slow], timeout_s=0.01, on_error="skip")
    for _ in range(MOST_HANGING - 1):
        assert rewards(completions=["a"]).failed.all()
    with pytest.raises(RewardError, match=f"{MOST_HANGING} calls of reward functions still run"):
        rewards(completions=["a"])
    release.set()


def test_values_without_end_are_not_waited_for():
    def forever(**_):
        while True:
            yield 1.0

    with pytest.raises(RewardError, match="returned 3 values for 2 completions"):
        RewardSum([forever])(completions=["a", "b"])
