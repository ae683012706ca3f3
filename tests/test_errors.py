"""The hint that errors give on a mistyped name."""

import pytest

from leaf.errors import did_you_mean


@pytest.mark.parametrize(
    ("given", "hint"),
    [("leaff", " Did you mean 'leaf'?"), ("zzz", ""), (7, ""), ("leaf" * 10_000, "")],
)
def test_a_mistyped_name_is_told_the_closest_allowed_one(given, hint):
    assert did_you_mean(given, ["leaf", "grpo"]) == hint
