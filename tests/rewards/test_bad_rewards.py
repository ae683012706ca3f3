"""Reward functions that fail, that return what is no reward, or that cannot be called as one."""

import math
import sys

import numpy as np
import pytest
import torch

from leaf.errors import ConfigError, RewardError
from leaf.plugins import load_plugins
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


def test_a_file_that_fails_is_named_and_can_be_mended(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("def two(completions, **columns)\n")
    with pytest.raises(ConfigError, match=r"broken.py:two' cannot be imported \(SyntaxError"):
        Rewards([f"{file}:two"])
    assert str(file) not in sys.modules
    file.write_text("def two(completions, **columns):\n    return [2.0] * len(completions)\n")
    assert Rewards([f"{file}:two"])(completions=["a"]).totals.tolist() == [2.0]


def test_refusals_before_the_first_call():
    with pytest.raises(ConfigError, match=r"Did you mean 'bleu'\? Allowed are bleu"):
        Rewards(["blue"])
    for nothing in ([], "bleu"):
        with pytest.raises(ConfigError, match="give a list"):
            Rewards(nothing)
    for weights in ([1.0, 2.0], [], [float("nan")]):
        with pytest.raises(ConfigError, match="one number for each"):
            Rewards(["bleu"], weights=weights)
    with pytest.raises(ConfigError, match="cannot be called"):
        Rewards([3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda **_: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda **_: [1.0], "1 values for 2 completions"),
        (lambda **_: [1.0, 2.0, 3.0], "3 values for 2 completions"),
        (lambda **_: ["1", "2"], "returned '1' for completion 0"),
        (lambda **_: [1.0, float("inf")], "returned inf for completion 1"),
        (lambda **_: [10**400, 1], "for completion 0"),
        (lambda **_: [1.0, [2.0]], "for completion 1"),
        (lambda **_: np.ones((2, 1)), "for completion 0"),
        (lambda **_: [1j, 1.0], "for completion 0"),
        (lambda **_: None, "must return 2 numbers"),
        (lambda **_: 0.5, "must return 2 numbers"),
        (lambda **_: torch.tensor(0.5), "must return 2 numbers"),
        (lambda **_: "ab", "must return 2 numbers"),
        (lambda **_: {0: 0.5, 1: 0.5}, "must return 2 numbers"),
        (lambda **_: {0.5, 1.0}, "must return 2 numbers"),
    ],
)
def test_a_bad_reward_function_is_named(value, message):
    def mine(**columns):
        return value(**columns)

    with pytest.raises(RewardError, match=f"The reward function mine .*{message}"):
        Rewards([mine])(completions=["a", "b"])


def test_the_users_exception_is_the_cause():
    def mine(**_):
        raise KeyError("answer")

    with pytest.raises(RewardError, match=r"mine raised KeyError: 'answer' \(.*line \d+, in mine: `raise ") as caught:
        Rewards([mine])(completions=["a"])
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_failure_is_shown_with_the_line_of_the_users_file(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import json\n\ndef graded(text):\n    return json.loads(text)['grade']\n\n"
        "def mine(completions, **_):\n    return [graded(text) for text in completions]\n"
    )
    monkeypatch.chdir(tmp_path)
    rewards = Rewards(["mine.py:mine"])
    at = r"`return json.loads\(text\)\['grade'\]`"
    for text, kind in (("{}", "KeyError"), ("{", "JSONDecodeError")):  # the second is raised inside Python's json
        with pytest.raises(RewardError, match=rf"mine raised {kind}: .* \(mine.py, line 4, in graded: {at}\)"):
            rewards(completions=[text])
    skipping = Rewards(["mine.py:mine"], on_error="skip")
    assert "line 4" in skipping(completions=["{}"]).messages[0]
    (tmp_path / "broken.py").write_text("import json\n\nvalue = json.loads('{')\n")
    with pytest.raises(ConfigError, match=r"cannot be imported \(JSONDecodeError.*\(broken.py, line 3, in <module>"):
        Rewards(["broken.py:mine"])


def test_a_corrected_file_counts_in_the_same_process(tmp_path):
    """In a notebook the run fails, the file is corrected, and the run is started again."""
    file = tmp_path / "mine.py"
    file.write_text("def mine(completions, **_):\n    return [1 / 0]\n")
    with pytest.raises(RewardError, match="ZeroDivisionError"):
        Rewards([f"{file}:mine"])(completions=["a"])
    file.write_text("def mine(completions, **_):\n    return [2.0]\n")
    assert Rewards([f"{file}:mine"])(completions=["a"]).totals.tolist() == [2.0]


def test_functions_that_cannot_be_called_as_rewards_are_refused_before_anything_runs():
    def by_position(completions, /):
        return [0.0]

    def other(texts):
        return [0.0]

    wanted = r"cannot be given completions=.*Write it as .*\(completions, \*\*columns\)"
    for wrong in (by_position, other, lambda: [0.0]):
        with pytest.raises(ConfigError, match=wanted):
            Rewards([wrong])


def test_a_reward_or_a_plugin_that_ends_the_process_is_named(tmp_path):
    def leaves(completions, **columns):
        sys.exit(3)

    with pytest.raises(RewardError, match="The reward function leaves raised SystemExit: 3"):
        Rewards([leaves]).of_texts([{"prompt": "p", "reference": "r"}], [["a", "b"]])
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(ConfigError, match=r"cannot be imported \(SystemExit: 3\)"):
        Rewards([f"{tmp_path / 'leaving.py'}:reward"])
    with pytest.raises(ConfigError, match=r"leaving\.py' cannot be imported \(SystemExit: 3\)"):
        load_plugins([str(tmp_path / "leaving.py")])
