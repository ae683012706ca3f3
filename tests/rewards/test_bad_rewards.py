"""Reward functions that fail or return what is no reward."""

import math

import pytest

from leaf.errors import ConfigError
from leaf.rewards.total import Rewards


def test_a_failing_function_leaves_its_completions_unscored():
    def broken(completions, kind, **_):
        if kind[0] == "raises":
            raise KeyError("answer")
        return {"text": ["1", 0.5], "few": [1.0], "infinite": [math.inf, 0.5], "none": [None, 0.5]}[kind[0]]

    def good(completions, **_):
        return [0.25, 0.25]

    rewards = Rewards([broken, good], on_error="skip")
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
        Rewards(["bleu"], on_error="ignore")
