import asyncio
import math
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sacrebleu
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from leaf.errors import ConfigError, DataError, RewardError
from leaf.model.policy import Prompt
from leaf.model.sampling import Group
from leaf.plugins import load_plugins
from leaf.rewards.functions import REWARDS
from leaf.rewards.total import Rewards
from leaf.text import unique_names

LEXICON = ["press", "one", "two", "to", "leave", "the", "menu", "Now", "."]
WORDS = st.lists(st.sampled_from(LEXICON), min_size=1, max_size=12).map(" ".join)
# Any completion whatever, and any reference with a letter or digit that ROUGE knows.
TEXTS = st.text(max_size=30)
PAIRS = st.tuples(WORDS | TEXTS, WORDS | TEXTS.map(lambda text: text + " a1"))


def test_columns_that_functions_take_by_name_are_looked_for_before_training():
    def graded(completions, answer, prompts, *, level, note="", **columns):
        return [0.0] * len(completions)

    rewards = Rewards(["bleu", graded])
    assert rewards.columns == {"reference": "bleu", "answer": "graded", "level": "graded"}
    whole = {"prompt": "p", "audio": "a.wav", "reference": "r", "answer": "x", "level": 1}
    rewards.check_rows([whole, {**whole, "more": 2}])
    rewards.check_rows(Dataset.from_list([whole]))
    lacking = {key: value for key, value in whole.items() if key != "level"}
    wanted = r"reward function graded takes 'level' by name, and training row 1, counted from 0, has only the columns p"
    with pytest.raises(DataError, match=wanted):
        rewards.check_rows([whole, lacking])
    with pytest.raises(DataError, match=r"graded takes 'level' by name, and the training data has only the columns"):
        rewards.check_rows(Dataset.from_list([lacking]))
    with pytest.raises(DataError, match=r"bleu takes 'reference' .*in the recipe \(`columns: {reference: \.\.\.}`\)"):
        Rewards(["bleu"]).check_rows([{"prompt": "p", "answer": "x"}])
    with pytest.raises(DataError, match=r"takes 'prompt' by name, .*The prompts come as `prompts`.*give the argument"):
        Rewards([lambda completions, prompt: [0.0]]).check_rows([whole])
    rewards.check_rows(map(dict, [lacking]))  # nothing can be seen of these yet


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


def test_columns_of_names_that_are_taken_are_refused():
    row = {"prompt": "a", "reference": "b"}
    for name in ("completions", "prompts", "completion_ids", "trainer_state", "log_extra", "log_metric", "self"):
        with pytest.raises(DataError, match=f"has a column '{name}', .* Rename the column"):
            Rewards(["bleu"]).check_rows([row, {**row, name: "c"}])


def test_one_function_stands_for_a_list_of_it():
    def one(completions, **columns):
        return [1.0] * len(completions)

    assert Rewards(one)(completions=["a"]).totals.tolist() == [1.0]


def test_the_same_name_twice_keeps_both_parts():
    result = Rewards(["exact_match", "exact_match"], weights=[1.0, 2.0])(completions=["a"], reference=["a"])
    assert result.totals.tolist() == [3.0]
    assert list(result.parts) == list(result.seconds) == ["exact_match", "exact_match (2)"]


def test_callables_of_other_kinds():
    class Judge:
        def __call__(self, completions, **_):
            return [0.25 for _ in completions]

    assert list(Rewards([Judge()])(completions=["a"]).parts) == ["Judge"]


@pytest.mark.parametrize(
    "value",
    [
        [1, 0],
        (True, False),
        np.array([1.0, 0.0], dtype=np.float32),
        [np.float64(1), np.int64(0)],
        np.array([True, False]),
        torch.tensor([1.0, 0.0]),
        torch.tensor([1.0, 0.0], requires_grad=True),
        [torch.tensor(1), np.array(0.0)],
        [Fraction(1), 0],
        range(1, -1, -1),
    ],
)
def test_numbers_of_every_kind_count(value):
    assert Rewards([lambda **_: value])(completions=["a", "b"]).totals.tolist() == [1.0, 0.0]


def test_a_generator_counts_and_its_failure_is_named():
    def halves(completions, **_):
        for text in completions:
            yield 1 / len(text)

    functions: list[Any] = [halves]
    assert Rewards(functions)(completions=["a", "bb"]).totals.tolist() == [1.0, 0.5]
    with pytest.raises(RewardError, match="halves raised ZeroDivisionError"):
        Rewards(functions)(completions=["a", ""])


def test_own_functions_by_import_path(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\ncalls = []\n"
        "@dataclass\nclass Judged:\n    value: float\n"
        "def two(completions, **columns):\n    calls.append(1)\n    return [Judged(2.0).value] * len(completions)\n"
        "def called(completions, **columns):\n    return [float(len(calls))] * len(completions)\nconstant = 3\n"
    )
    # One file is loaded once: its functions share what they hold.
    assert Rewards([f"{file}:two", f"{file}:called"])(completions=["a"]).totals.tolist() == [3.0]
    monkeypatch.syspath_prepend(tmp_path)
    assert Rewards(["mine:two"])(completions=["a"]).totals.tolist() == [2.0]
    with pytest.raises(ConfigError, match="cannot be imported"):
        Rewards([f"{file}:three"])
    with pytest.raises(ConfigError, match="is a int, which cannot be called"):
        Rewards([f"{file}:constant"])
    with pytest.raises(ConfigError, match=r"cannot be imported \(FileNotFoundError"):
        Rewards([f"{tmp_path / 'absent.py'}:two"])
    with pytest.raises(ConfigError, match=r"cannot be imported \(ModuleNotFoundError"):
        Rewards(["no_such_package.module:two"])


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


def test_a_function_without_columns_gets_what_it_takes():
    def short(completions):
        return [float(len(text)) for text in completions]

    def keyword(*, completions, reference):
        return [float(text == theirs) for text, theirs in zip(completions, reference, strict=True)]

    class Counts:
        def count(self, completions, level=2.0):
            return [level for _ in completions]

    rewards = Rewards([short, keyword, Counts().count, lambda completions, prompts: [1.0] * len(prompts)])
    columns = {"prompts": ["p", "q"], "reference": ["a", "b"], "audio": ["1.wav", "2.wav"], "completion_ids": [[1], []]}
    assert rewards(completions=["a", "bcd"], **columns).totals.tolist() == [5.0, 6.0]


def test_functions_that_cannot_be_called_as_rewards_are_refused_before_anything_runs():
    def by_position(completions, /):
        return [0.0]

    def other(texts):
        return [0.0]

    wanted = r"cannot be given completions=.*Write it as .*\(completions, \*\*columns\)"
    for wrong in (by_position, other, lambda: [0.0]):
        with pytest.raises(ConfigError, match=wanted):
            Rewards([wrong])


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


def test_async_functions_work_also_where_an_event_loop_runs():
    loops = []

    async def later(completions, **_):
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        return [float(len(text)) for text in completions]

    class Judge:
        async def __call__(self, completions, **_):
            raise KeyError("grade")

    async def in_a_notebook():
        return Rewards([later])(completions=["ab"]).totals.tolist()

    assert Rewards([later])(completions=["a"]).totals.tolist() == [1.0]
    # In a thread of its own: the browser of the report's tests keeps a loop running in the main one.
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(asyncio.run, in_a_notebook()).result() == [2.0]
    assert loops[0] is loops[1]  # so that a session that a function keeps works in the next call
    with pytest.raises(RewardError, match=r"Judge raised KeyError: 'grade' \(.*in __call__"):
        Rewards([Judge()])(completions=["a"])


def test_completions_of_messages_are_messages_as_in_trl():
    seen = []

    def trl(completions, **_):
        seen.extend(completions)
        return [float(len(completion[0]["content"])) for completion in completions]

    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "q"}]}]
    rows = [{"prompt": messages, "reference": "abc"}, {"prompt": messages, "reference": "de"}]
    result = Rewards([trl, *REWARDS]).of_texts(rows, [["abc", "abc"], ["de", "de"]])
    assert seen[0] == [{"role": "assistant", "content": "abc"}]
    np.testing.assert_allclose(result.totals, [10.0, 10.0, 9.0, 9.0])  # the built-in ones read both
    mixed = Rewards([lambda completions, **_: [float(isinstance(one, str)) for one in completions]])
    assert mixed.of_texts([{"prompt": "q"}, rows[0]], [["a"], ["b"]]).totals.tolist() == [1.0, 0.0]


def test_functions_log_beside_their_values_as_in_trl():
    def logging(completions, log_extra, log_metric, trainer_state, **_):
        log_extra("shouted", [text.upper() for text in completions])
        log_metric("share", trainer_state)
        log_metric("share", 0.5)
        return [0.0] * len(completions)

    rewards = Rewards([logging])
    assert rewards.columns == {}
    result = rewards.of_texts([{"prompt": "p"}], [["a", "b"]], trainer_state=1.0)
    assert result.extra == {"shouted": ["A", "B"]}
    assert result.metrics == {"share": 0.75}
    for wrong in (lambda log_extra, **_: log_extra("x", [1]), lambda log_metric, **_: log_metric("x", math.nan)):
        with pytest.raises(RewardError, match="raised ValueError: log_"):
            Rewards([wrong])(completions=["a", "b"])


def test_the_groups_of_a_rollout_are_scored_in_one_call():
    class Tokenizer:
        def batch_decode(self, rows, skip_special_tokens):
            return ["".join("abcd"[token] for token in row) for row in rows]

    seen, passed = [], {}

    def recorded(completions, prompts, completion_ids, reference, note, **columns):
        passed.update({name: columns.pop(name) for name in ("trainer_state", "log_extra", "log_metric")})
        seen.append((completions, prompts, completion_ids, reference, note, columns))
        return [0.5, None, 1.0, 0.0, 0.25]

    prompt = Prompt(torch.empty(0, 0), torch.empty(0, dtype=torch.bool))
    no_surprise, ended = torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool)
    first = Group(prompt, torch.tensor([[0, 1], [0, 0], [2, 3]]), torch.tensor([2, 1, 2]), no_surprise, ended)
    rows = [{"prompt": "p", "reference": "r", "note": "n"}, {"prompt": "q", "reference": "s", "more": 1}]
    rewards, result = Rewards(recorded).of(rows, [first, first.select([2, 0])], Tokenizer())
    (call,) = seen
    assert call == (
        ["ab", "a", "cd", "cd", "ab"],
        ["p", "p", "p", "q", "q"],
        [[0, 1], [0], [2, 3], [2, 3], [0, 1]],
        ["r", "r", "r", "s", "s"],
        ["n", "n", "n", None, None],
        {"more": [None, None, None, 1, 1], "completion_lengths": [2, 1, 2, 2, 2], "truncated": [False] * 5},
    )
    assert passed.keys() == {"trainer_state", "log_extra", "log_metric"}  # as TRL passes them
    assert [len(one) for one in rewards] == [3, 2]
    assert rewards[0].dtype == torch.float64
    np.testing.assert_array_equal(torch.cat(rewards).numpy(), [0.5, np.nan, 1.0, 0.0, 0.25])
    np.testing.assert_array_equal(result.totals, torch.cat(rewards).numpy())


def test_names_that_are_there_already_get_a_number():
    assert unique_names(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
    assert unique_names(["a", "a", "a (2)"]) == ["a", "a (3)", "a (2)"]


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
