"""Overlong shaping, and what reward functions are told of a completion's length, in training and in evaluation."""

import pytest
import torch

from leaf.errors import ConfigError, DataError, RewardError
from leaf.evaluation.evaluate import score_predictions
from leaf.evaluation.predict import Decoding
from leaf.evaluation.predictions import Predictions, Said, kept_items, read_predictions
from leaf.evaluation.registry import Scoring
from leaf.model.policy import Prompt
from leaf.model.sampling import Group
from leaf.rewards.overlong import overlong_reward
from leaf.rewards.total import Rewards

ROWS = [{"id": "a", "prompt": "p", "reference": "one two"}, {"id": "b", "prompt": "q", "reference": "three"}]


def test_the_punishment_by_hand():
    # L_max = 20 and L_cache = 5: free up to 15, then a fifth for every further token.
    reward = overlong_reward(max_length=20, cache=5)
    lengths = [0, 1, 15, 16, 17, 19, 20, 21, 400]
    assert reward(lengths, completion_lengths=lengths) == [0, 0, 0, -0.2, -0.4, -0.8, -1, -1, -1]
    assert reward([""] * 2, completion_lengths=[3, 16], truncated=[True, False]) == [-1, -0.2]


@pytest.mark.parametrize("length", [1, 12000, 16384, 16385, 18000, 20480, 20481])
def test_the_punishment_is_equation_13_of_the_paper(length):
    longest, cache = 20480, 4096
    if length <= longest - cache:
        want = 0.0
    elif length <= longest:
        want = ((longest - cache) - length) / cache
    else:
        want = -1.0
    assert overlong_reward(longest, cache)([""], completion_lengths=[length]) == [pytest.approx(want)]


def test_trl_gives_token_ids_alone():
    assert overlong_reward(4, 2)(completions=["", ""], completion_ids=[[1, 2, 3], [1]], prompts=["", ""]) == [-0.5, 0]
    with pytest.raises(RewardError, match="needs the length of every completion"):
        overlong_reward(4, 2)([""], completion_lengths=[None])


@pytest.mark.parametrize(
    "options", [{"max_length": 10, "cache": 0}, {"max_length": 5, "cache": 6}, {"max_length": 2.5, "cache": 1}]
)
def test_lengths_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError, match="cache from 1 to max_length"):
        Rewards(["overlong"], options={"overlong": options})


def test_missing_and_unknown_options_say_how_they_are_written():
    wanted = r"reward_options: \{overlong: \{max_length: 200, cache: 40\}\}"
    with pytest.raises(ConfigError, match=f"needs the options max_length and cache, .* {wanted}"):
        Rewards(["overlong"])
    with pytest.raises(ConfigError, match=f"needs the options cache, .* {wanted}"):
        Rewards(["overlong"], options={"overlong": {"max_length": 5}})
    with pytest.raises(ConfigError, match=f"needs the options cache, .* {wanted}"):
        Rewards(["overlong"], options={"overlong": {"max_length": 5, "cash": 1}})


class Words:
    """Decode token 7 as a word."""

    def batch_decode(self, rows, **options):
        return [" ".join("one" if token == 7 else "" for token in row).strip() for row in rows]


def groups():
    tokens = torch.tensor([[7, 7, 7, 7], [7, 0, 0, 0]])
    zeros = torch.zeros(2, 4)
    prompt = Prompt(torch.zeros(1, 2), torch.zeros(1, dtype=torch.bool))
    return [Group(prompt, tokens, torch.tensor([4, 1]), zeros, torch.tensor([True, False]))]


def test_a_recipe_adds_it_to_other_rewards_with_a_weight():
    rewards = Rewards(
        ["exact_match", "overlong"], weights=[1.0, 0.5], options={"overlong": {"max_length": 4, "cache": 2}}
    )
    row = {"prompt": "p", "reference": "one"}
    rewards.check_rows([row])
    (total,), result = rewards.of([row], groups(), Words())
    assert result.parts["overlong"].tolist() == [-1.0, 0.0]
    assert total.tolist() == [-0.5, 1.0]


def test_functions_of_ones_own_are_told_lengths_and_what_was_cut():
    seen = {}

    def own(completions, truncated, completion_ids, completion_lengths):
        seen.update(truncated=truncated, ids=completion_ids, lengths=completion_lengths)
        return [0.0 if cut else 1.0 for cut in truncated]

    rewards = Rewards([own])
    rewards.check_rows([{"prompt": "p"}])  # they are no columns of the data
    (total,), _ = rewards.of([{"prompt": "p"}], groups(), Words())
    assert total.tolist() == [0.0, 1.0]
    assert seen == {"truncated": [True, False], "ids": [[7, 7, 7, 7], [7]], "lengths": [4, 1]}
    with pytest.raises(DataError, match="a column 'truncated', a name that reward functions get from leaf"):
        rewards.check_rows([{"prompt": "p", "truncated": 1}])


def predictions(*passes):
    made = Predictions("s", kept_items(ROWS), meta={"made_with": {"decoding": Decoding().as_meta()}})
    made.add([42, 43][: len(passes)], passes)
    return made


def test_evaluation_tells_rewards_the_lengths_that_a_file_keeps(tmp_path):
    said = predictions([Said("one two", False, 3), Said("four", True, 8)])
    said.write(tmp_path / "s.jsonl")
    options = {"overlong": {"max_length": 4, "cache": 2}}
    scoring = Scoring(("reward",), rewards=Rewards(["overlong"], options=options))
    assert score_predictions(read_predictions(tmp_path / "s.jsonl"), ROWS, scoring).scores == {"reward": -0.75}
    unknown = predictions([Said("one two"), Said("four")])
    with pytest.raises(RewardError, match="decode them again, or leave overlong out"):
        score_predictions(unknown, ROWS, scoring)


def test_lengths_are_metrics_that_read_no_reference():
    two = predictions([Said("one two", False, 3), Said("four", True, 8)], [Said("", False, 1), Said("a b c", False, 4)])
    rows = [{key: value for key, value in row.items() if key != "reference"} for row in ROWS]
    result = score_predictions(two, rows, Scoring(("words", "tokens", "truncated"), intervals=True))
    assert result.scores == {"words": 1.5, "tokens": 4.0, "truncated": 0.25}
    assert result.spreads["truncated"] == (0.0, 0.5)
    assert result.values()["truncated"] == result.truncated == 0.25  # one unit, that of validation.jsonl
    assert result.length_mean == 4.0
    assert result.signatures["words"].startswith("words|mean of a prediction|split at white space|decoding:sampled")
    low, high = result.intervals["tokens"]
    assert low == 2.0
    assert high == 6.0
    with pytest.raises(DataError, match="s does not say tokens of every prediction"):
        score_predictions(predictions([Said("one"), Said("two")]), ROWS, Scoring(("tokens",)))
