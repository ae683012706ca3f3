"""The built-in reward functions against the reference packages and by hand, their options, and totals of several."""

import math

import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from leaf.errors import ConfigError, DataError, RewardError
from leaf.rewards.functions import REWARDS
from leaf.rewards.total import Rewards
from leaf.text import unique_names

LEXICON = ["press", "one", "two", "to", "leave", "the", "menu", "Now", "."]
WORDS = st.lists(st.sampled_from(LEXICON), min_size=1, max_size=12).map(" ".join)
# Any completion whatever, and any reference with a letter or digit that ROUGE knows.
TEXTS = st.text(max_size=30)
PAIRS = st.tuples(WORDS | TEXTS, WORDS | TEXTS.map(lambda text: text + " a1"))


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(list(REWARDS)), st.lists(PAIRS, min_size=1, max_size=4))
def test_rewards_lie_between_0_and_1_and_a_copy_gets_1(name, pairs):
    ours, theirs = [list(side) for side in zip(*pairs, strict=True)]
    values = REWARDS[name](completions=ours, reference=theirs)
    assert all(value is not None and 0.0 <= value <= 1.0 for value in values)
    worded = [text + " one" for text in theirs]  # a lone full stop has no word that ROUGE sees
    assert REWARDS[name](completions=worded, reference=worded) == pytest.approx([1.0] * len(theirs))
    turned = REWARDS[name](completions=ours[::-1], reference=theirs[::-1])
    assert turned[::-1] == values


def test_sentence_scores_are_those_of_the_reference_packages_after_folding_white_space():
    ours, theirs = "Press one to leave", "Press one to exit the menu"
    given = {"completions": [" Press  one\nto leave"], "reference": ["Press one to exit \tthe menu"]}
    assert REWARDS["bleu"](**given) == [sacrebleu.sentence_bleu(ours, [theirs]).score / 100]
    assert REWARDS["chrf"](**given) == [sacrebleu.sentence_chrf(ours, [theirs]).score / 100]
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    assert REWARDS["rouge_l"](**given) == [scorer.score(theirs, ours)["rougeL"].fmeasure]
    (cased,) = REWARDS["bleu"](completions=["press one"], reference=["Press one"])
    assert cased is not None
    assert cased < 1.0  # case counts


def test_sentence_bleu_by_hand():
    # 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, and 0 of 1 smoothed to 1/2: the root of 3/4 · 2/3 · 1/2 · 1/2 = 1/8.
    got = REWARDS["bleu"](completions=["a b c x"], reference=["a b c d"])
    assert got == [pytest.approx(0.125**0.25)]
    # Two words have two orders (effective order), both right; brevity exp(1 − 4/2).
    assert REWARDS["bleu"](completions=["a b"], reference=["a b c d"]) == [pytest.approx(math.exp(-1))]


def test_error_rates_and_f1_by_hand():
    assert REWARDS["wer"](completions=["a b"], reference=["a b c d"]) == [0.5]
    assert REWARDS["wer"](completions=["x y z w v u t"], reference=["a b"]) == [0.0]
    assert REWARDS["cer"](completions=["abc"], reference=["abcd"]) == [0.75]
    assert REWARDS["token_f1"](completions=["press one"], reference=["Press one two."]) == [0.8]
    assert REWARDS["exact_match"](completions=["press ONE"], reference=["Press one."]) == [1.0]
    assert [function(completions=[""], reference=["a b"]) for function in REWARDS.values()] == [[0.0]] * len(REWARDS)


def test_built_in_functions_take_what_trl_passes():
    row = {"prompts": ["p"], "completion_ids": [[1]], "trainer_state": None, "audio": ["x.wav"]}
    for name, function in REWARDS.items():
        assert function(completions=["a"], reference=["a"], **row) == [pytest.approx(1.0)]
        assert function.__name__ == name


def test_references_must_fit():
    for reference in (["a"], ["a", " "], ["a", None]):
        with pytest.raises(RewardError, match="The reward function bleu raised DataError: "):
            Rewards(["bleu"])(completions=["a", "b"], reference=reference)
    with pytest.raises(RewardError, match=r"The reward function bleu raised TypeError: bleu.* 'reference'"):
        Rewards(["bleu"])(completions=["a"])


def test_weights_and_unscored_values():
    def half(completions, **_):
        return [None, 0.5, float("nan"), None]

    def full(completions, marks, **_):
        return [1.0, 1.0, marks[2], -1.0]

    result = Rewards([half, full], weights=[2.0, 0.5])(completions=["a", "b", "c", "d"], marks=[0, 0, None, 0])
    np.testing.assert_array_equal(result.totals, [0.5, 1.5, np.nan, -0.5])
    assert result.totals.dtype == np.float64
    np.testing.assert_array_equal(result.parts["half"], [np.nan, 0.5, np.nan, np.nan])  # without the weight
    np.testing.assert_array_equal(result.parts["full"], [1.0, 1.0, np.nan, -1.0])
    assert set(result.seconds) == {"half", "full"}
    assert all(0.0 <= seconds < 5.0 for seconds in result.seconds.values())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.none() | st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=3), st.data())
def test_totals_are_trls(columns, data):
    weights = data.draw(st.lists(st.floats(-2, 2), min_size=len(columns), max_size=len(columns)))
    got = Rewards([lambda values=values, **_: values for values in columns], weights=weights)(completions=["a"] * 3)
    # GRPOTrainer: (rewards_per_func * weights).nansum(dim=1), rows without any value NaN.
    table = torch.tensor([[math.nan if v is None else v for v in column] for column in columns], dtype=torch.float64).T
    expected = (table * torch.tensor(weights, dtype=torch.float64)).nansum(dim=1)
    expected[table.isnan().all(dim=1)] = math.nan
    np.testing.assert_allclose(got.totals, expected.numpy(), atol=1e-12)


def test_one_function_cannot_change_what_the_next_one_sees():
    def spoil(completions, **_):
        completions.clear()
        return [0.0, 0.0]

    def count(completions, **_):
        return [float(len(completions))] * 2

    assert Rewards([spoil, count])(completions=["a", "b"]).totals.tolist() == [2.0, 2.0]


def test_the_same_name_twice_keeps_both_parts():
    result = Rewards(["exact_match", "exact_match"], weights=[1.0, 2.0])(completions=["a"], reference=["a"])
    assert result.totals.tolist() == [3.0]
    assert list(result.parts) == list(result.seconds) == ["exact_match", "exact_match (2)"]


def test_options_are_applied_or_refused(tmp_path):
    pair = {"completions": ["press one now"], "reference": ["press two now"]}
    chrf = sacrebleu.sentence_chrf("press one now", ["press two now"], word_order=2, char_order=4).score / 100
    options = {"chrf": {"word_order": 2, "char_order": 4}}
    assert Rewards(["chrf"], options=options)(**pair).totals.tolist() == [chrf]
    assert Rewards(["chrf"])(**pair).totals.tolist() != [chrf]
    ours, theirs = "我们明天去学校上课", "我们明天去学校上学"
    bleu = sacrebleu.sentence_bleu(ours, [theirs], tokenize="zh").score / 100
    chinese = Rewards(["bleu"], options={"bleu": {"tokenize": "zh"}})
    assert chinese(completions=[ours], reference=[theirs]).totals.tolist() == [bleu]
    assert bleu > 0.5
    lower = {"completions": ["Press One Or Two"], "reference": ["press one or two"]}
    assert Rewards(["bleu"], options={"bleu": {"lowercase": True}})(**lower).totals.tolist() == [1.0]
    for name, wrong, said in (
        ("chrf", {"word_order": 2, "tpyo": 1}, "reward chrf does not take the option tpyo. Allowed are char_order"),
        ("chrf", {"word_ordre": 2}, "Did you mean 'word_order'"),
        ("chrf", {"word_order": "2"}, "word_order of the reward chrf is '2', a str; it must be a whole number"),
        ("chrf", {"char_order": 0}, "char_order 0, .* allowed are 1 or more"),
        ("bleu", {"tokenize": "jp"}, "tokenize is 'jp'; allowed are auto, none, zh, 13a"),
        ("wer", {"characters": True}, "The reward wer does not take the option characters. Allowed are normalise"),
    ):
        with pytest.raises(ConfigError, match=said):
            Rewards([name], options={name: wrong})
    file = tmp_path / "mine.py"
    file.write_text("def mine(completions, level=1.0):\n    return [level] * len(completions)\n")
    name = f"{file}:mine"
    with pytest.raises(ConfigError, match=r"mine does not take the option levle\. Did you mean 'level'"):
        Rewards([name], options={name: {"levle": 2.0}})
    rewards = Rewards([name], options={name: {"level": 2.0}})
    with pytest.raises(DataError, match=r"mine has the option 'level' .* a column of that name"):
        rewards.check_rows([{"prompt": "p", "level": 5.0}])
    assert rewards(completions=["a"], level=[5.0]).totals.tolist() == [2.0]


def test_names_that_are_there_already_get_a_number():
    assert unique_names(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
    assert unique_names(["a", "a", "a (2)"]) == ["a", "a (3)", "a (2)"]
