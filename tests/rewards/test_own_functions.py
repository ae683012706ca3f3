"""Reward functions of one's own: how they are named, what they are given, and every form of what they return."""

import asyncio
import math
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from leaf.errors import ConfigError, DataError, RewardError
from leaf.model.policy import Prompt
from leaf.model.sampling import Group
from leaf.rewards.functions import REWARDS
from leaf.rewards.total import Rewards


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


def test_columns_of_names_that_are_taken_are_refused():
    row = {"prompt": "a", "reference": "b"}
    for name in ("completions", "prompts", "completion_ids", "trainer_state", "log_extra", "log_metric", "self"):
        with pytest.raises(DataError, match=f"has a column '{name}', .* Rename the column"):
            Rewards(["bleu"]).check_rows([row, {**row, name: "c"}])


def test_one_function_stands_for_a_list_of_it():
    def one(completions, **columns):
        return [1.0] * len(completions)

    assert Rewards(one)(completions=["a"]).totals.tolist() == [1.0]


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
