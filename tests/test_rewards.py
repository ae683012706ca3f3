import math
import time

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf.errors import ConfigError, RewardError
from leaf.rewards import REWARDS, RewardSum

WORDS = st.lists(st.sampled_from("press one two to leave the menu Now .".split()), min_size=1, max_size=12).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(REWARDS)), st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_rewards_lie_between_0_and_1_and_a_copy_gets_1(name, pairs):
    ours, theirs = [list(side) for side in zip(*pairs, strict=True)]
    values = REWARDS[name](completions=ours, reference=theirs)
    assert all(0.0 <= value <= 1.0 for value in values)
    assert REWARDS[name](completions=theirs, reference=theirs) == pytest.approx([1.0] * len(theirs))
    turned = REWARDS[name](completions=ours[::-1], reference=theirs[::-1])
    assert turned[::-1] == values


def test_bleu_is_sacrebleus_sentence_bleu_after_folding_white_space():
    got = REWARDS["bleu"](completions=["Press  one\nto leave"], reference=["Press one to exit the menu"])
    assert got == [sacrebleu.sentence_bleu("Press one to leave", ["Press one to exit the menu"]).score / 100]
    assert REWARDS["bleu"](completions=["press one"], reference=["Press one"])[0] < 1.0  # case counts


def test_error_rates_and_f1_by_hand():
    assert REWARDS["wer"](completions=["a b"], reference=["a b c d"]) == [0.5]
    assert REWARDS["wer"](completions=["x y z w v u t"], reference=["a b"]) == [0.0]
    assert REWARDS["cer"](completions=["abc"], reference=["abcd"]) == [0.75]
    assert REWARDS["token_f1"](completions=["press one"], reference=["Press one two."]) == [0.8]
    assert REWARDS["exact_match"](completions=["press ONE"], reference=["Press one."]) == [1.0]


def test_weights_and_unscored_values():
    def half(completions, **_):
        return [None, 0.5, float("nan")]

    def full(completions, marks, **_):
        return [1.0, 1.0, marks[2]]

    result = RewardSum([half, full], weights=[2.0, 1.0])(completions=["a", "b", "c"], marks=[0, 0, None])
    assert result.totals[:2].tolist() == [1.0, 2.0]
    assert math.isnan(result.totals[2])
    assert set(result.parts) == {"half", "full"}


def test_own_functions_by_import_path(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def two(completions, **columns):\n    return [2.0] * len(completions)\n")
    assert RewardSum([f"{file}:two"])(completions=["a"]).totals.tolist() == [2.0]
    with pytest.raises(ConfigError, match="cannot be imported"):
        RewardSum([f"{file}:three"])
    with pytest.raises(ConfigError, match="allowed are bleu"):
        RewardSum(["blue"])
    with pytest.raises(ConfigError, match="no reward function"):
        RewardSum([])
    with pytest.raises(ConfigError, match="one number for each"):
        RewardSum(["bleu"], weights=[1.0, 2.0])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda **_: 1 / 0, "raised ZeroDivisionError"),
        (lambda **_: [1.0], "1 values for 2 completions"),
        (lambda **_: ["1", "2"], "returned '1' for completion 0"),
        (lambda **_: [1.0, float("inf")], "returned inf for completion 1"),
        (lambda **_: [1.0, [2.0]], "for completion 1"),
        (lambda **_: None, "must return 2 numbers"),
    ],
)
def test_a_bad_reward_function_is_named(value, message):
    with pytest.raises(RewardError, match=message):
        RewardSum([value])(completions=["a", "b"])


def test_a_hanging_reward_function_is_cut_off():
    def slow(**_):
        time.sleep(2)
        return [1.0]

    with pytest.raises(RewardError, match="slow took longer than 0.05 s"):
        RewardSum([slow], timeout_s=0.05)(completions=["a"])
