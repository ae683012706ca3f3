"""Rewards as metrics of an evaluation, and what `leaf evaluate` takes from its recipe."""

import json
import re

import pytest

from leaf.commands.evaluating import decoding_of, rows_of, scoring_of
from leaf.config import LeafConfig
from leaf.errors import ConfigError, DataError
from leaf.evaluation.compare import compare_files
from leaf.evaluation.evaluate import evaluate
from leaf.evaluation.predict import Decoding
from leaf.evaluation.predictions import read_meta, read_predictions
from leaf.evaluation.registry import Scoring
from leaf.evaluation.reward_metrics import kept_name, reward_metric, reward_metrics
from leaf.evaluation.systems import evaluate_systems
from leaf.model.policy import Policy
from leaf.report.evaluation import evaluation_section
from leaf.rewards.total import Rewards
from tests.helpers import tiny

OWN = '''
def brief(completions, level, words=1, **columns):
    """Reward few words; rows of level 2 are not scored."""
    return [None if one == 2 else words / (1 + len(text.split())) for text, one in zip(completions, level)]
'''


@pytest.fixture(scope="module")
def policy():
    return Policy.wrap(*tiny.tiny_model())


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(OWN)
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    return "my_rewards.py:brief"


def rows():
    return [{**row, "level": i} for i, row in enumerate(tiny.rows(4))]


def test_a_function_of_ones_own_is_a_metric_of_an_evaluation(policy, own, tmp_path):
    config = LeafConfig(model=str(tmp_path / "model"), rewards=["bleu", own], reward_weights=[1.0, 0.5])
    scoring = scoring_of(config, ["chrf", own, "reward", "rewards/bleu/mean"], lowercase=False, paths={})
    decoding = Decoding(max_new_tokens=6, seeds=(42, 43))
    how = {"split": "test", "decoding": decoding, "scoring": scoring, "say": lambda line: None}
    result = evaluate_systems(config, {"base": None}, lambda path: policy, rows(), tmp_path / "out", **how)["base"]
    label = "rewards/brief/mean"
    assert list(result.scores) == ["chrf", label, "reward", "rewards/bleu/mean"]
    by_hand = [[1 / (1 + len(text.split())) for i, text in enumerate(one) if i != 2] for one in result.passes]
    assert result.scores[label] == pytest.approx(sum(map(sum, by_hand)) / 6)
    assert result.intervals[label][0] <= result.scores[label] <= result.intervals[label][1]
    assert re.fullmatch(
        r"rewards/brief/mean\|file:my_rewards.py#\w{8}\|leaf-speech:.*", result.signatures[label].split("|decoding")[0]
    )
    # The file has the values: no function, model or row is needed again.
    file = tmp_path / "out/base.jsonl"
    (tmp_path / "my_rewards.py").unlink()
    for asked in (None, ["reward", own], ["rewards/brief/mean"]):
        table = compare_files([file], metrics=asked)
        assert f"{result.scores['rewards/brief/mean']:.4f}" in table
    items = read_predictions(file).scored(label, lowercase=True)[0].item_values()
    assert items[2] != items[2]  # not scored
    section = evaluation_section(predictions=[file], audio=False)
    assert section is not None
    shown = {one["name"]: one for one in section.data["sets"][0]["metrics"]}
    assert shown[label]["digits"] == 4
    assert shown[label]["items"][0][2] is None
    assert shown[label]["scores"][0][0] == pytest.approx(result.scores[label], abs=1e-4)
    with pytest.raises(DataError, match=r"base has no values of the reward rewards/wer/mean"):
        compare_files([file], metrics=["rewards/wer/mean"])
    assert str(tmp_path) not in json.dumps(read_meta(file))


def test_options_and_columns_of_a_function_are_checked_before_anything_is_decoded(policy, own, monkeypatch):
    how = Decoding(greedy=True, max_new_tokens=3)
    result = evaluate(policy, rows(), how, Scoring((f"{own}:words=2",)))
    (plain,) = evaluate(policy, rows(), how, Scoring((own,))).scores.values()
    assert result.scores["rewards/brief/mean"] == pytest.approx(2 * plain)
    assert "|words:2|" in result.signatures["rewards/brief/mean"]
    monkeypatch.setattr(policy, "embed", None)
    with pytest.raises(DataError, match="brief takes 'level' by name, and evaluated row 0"):
        evaluate(policy, tiny.rows(2), how, Scoring((own,)))
    for unknown in ("reward", "polite"):  # without a recipe's rewards there is no sum
        with pytest.raises(ConfigError, match=f"The metric '{unknown}' is unknown"):
            evaluate(policy, rows(), how, Scoring((unknown,)))
    built_in = reward_metric("rewards/bleu", None)
    assert built_in is not None
    assert built_in.label == "rewards/bleu/mean"


def test_rows_without_references_can_be_scored_by_a_reward(policy, own):
    bare = [{key: value for key, value in row.items() if key != "reference"} for row in rows()]
    how = Decoding(greedy=True, max_new_tokens=3)
    assert list(evaluate(policy, bare, how, Scoring((own,))).scores) == ["rewards/brief/mean"]
    with pytest.raises(DataError, match="4 of 4 rows have no reference, so chrf cannot be computed"):
        evaluate(policy, bare, how, Scoring((own, "chrf")))


def test_a_name_that_a_metric_has_is_the_metric():
    rewards = Rewards(["bleu", "wer"])
    assert reward_metric("bleu", rewards) is None
    assert reward_metric("wer:normalise=basic", rewards) is None
    found = reward_metric("rewards/wer/mean", rewards)
    assert found is not None
    assert found.function == "wer"


def test_a_name_that_a_metric_has_stays_the_metric_where_a_reward_of_that_name_was_scored(policy, own, tmp_path):
    (tmp_path / "mine.py").write_text("def bleu(completions, **columns):\n    return [0.25 for _ in completions]\n")
    config = LeafConfig(model=str(tmp_path / "model"), rewards=["exact_match"])
    how = {"split": "test", "decoding": Decoding(greedy=True, max_new_tokens=3), "say": lambda line: None}

    def run(*metrics):
        scoring = scoring_of(config, metrics, lowercase=False, paths={})
        evaluate_systems(config, {"base": None}, lambda path: policy, rows(), tmp_path / "out", scoring=scoring, **how)
        table = compare_files([tmp_path / "out/base.jsonl"], metrics=metrics)
        return [line.split()[0] for line in table.split("\n\n")[0].splitlines()[2:]]

    assert run("exact_match", "rewards/exact_match/mean") == ["exact_match", "rewards/exact_match/mean"]
    assert run("mine.py:bleu") == ["rewards/bleu/mean"]
    assert run("bleu", "mine.py:bleu") == ["bleu", "rewards/bleu/mean"]
    assert run("bleu") == ["bleu"]


def test_two_reward_functions_of_one_name_are_not_taken_for_one(policy, own, tmp_path, monkeypatch):
    (tmp_path / "other.py").write_text("def brief(completions, **columns):\n    return [0.5 for _ in completions]\n")
    for one, other in (
        (own, "other.py:brief"),
        (f"{own}:words=1", f"{own}:words=99"),
        (own, f"{own}:words=2"),
        ("rewards/brief/mean", "other.py:brief"),
    ):
        with pytest.raises(ConfigError, match="two reward functions with the one name rewards/brief/mean"):
            evaluate(policy, rows(), Decoding(greedy=True), Scoring((one, other), rewards=Rewards([own])))
    found = reward_metrics([own, f"./{own}", "rewards/brief/mean"], Rewards([own]))
    assert {one.label for one in found.values() if one is not None} == {"rewards/brief/mean"}
    # A recipe's own two are told apart, and each is found again as it was given.
    both = Rewards([own, "other.py:brief"])
    result = evaluate(policy, rows(), Decoding(greedy=True), Scoring((own, "other.py:brief"), rewards=both))
    assert result.scores["rewards/brief (2)/mean"] == 0.5
    kept = {name: result.signatures[name] for name in result.scores}
    assert kept_name("other.py:brief", kept) == "rewards/brief (2)/mean"
    assert kept_name(own, kept) == "rewards/brief/mean"
    with pytest.raises(DataError, match=r"third.py:brief was asked for, and what was scored under its name"):
        kept_name("third.py:brief", kept)
    assert kept_name("third.py:long", kept) == "rewards/long/mean"


def signature_of(written, rewards):
    found = reward_metric(written, rewards)
    assert found is not None
    return found.signature


def test_the_signature_of_a_sum_has_what_reproduces_its_functions(own, tmp_path):
    ways = [
        Rewards(["wer"], options={"wer": {"normalise": "none"}}),
        Rewards(["wer"], options={"wer": {"normalise": "basic"}}),
        Rewards(["wer"]),
        Rewards([own]),
        Rewards([own], options={own: {"words": 2}}),
    ]
    signatures = [signature_of("reward", one) for one in ways]
    (tmp_path / "my_rewards.py").write_text(OWN + "# changed")
    signatures.append(signature_of("reward", Rewards([own])))
    assert len(set(signatures)) == len(ways) + 1
    assert signatures[1].startswith("reward|1*wer(normalise:basic,numbers:kept)|leaf-speech:")
    assert re.match(r"reward\|1\*brief\(words:2,file:my_rewards.py#\w{8}\)\|", signatures[4])
    assert "|numbers:kept|" in signature_of("rewards/exact_match/mean", ways[2])


def test_options_of_a_function_are_in_its_signature_whatever_they_are_called():
    ways = [{"max_length": 200, "cache": 40}, {"max_length": 200, "cache": 160}]
    signatures = [signature_of("reward", Rewards(["overlong"], options={"overlong": one})) for one in ways]
    assert [one.split("|")[1] for one in signatures] == [
        "1*overlong(max_length:200,cache:40)",
        "1*overlong(max_length:200,cache:160)",
    ]


@pytest.mark.parametrize("text", ["a" * 5000, "~nobody-of-this-name/file", "two\nlines", "null \0 byte"])
def test_a_text_among_the_options_need_not_be_the_name_of_a_file(own, text):
    assert f"text:{text}" in signature_of("reward", Rewards([own], options={own: {"text": text}}))


def test_signatures_of_a_judge_have_no_path_of_the_machine(tmp_path):
    (tmp_path / "ask.txt").write_text("{question} {answer}")
    options = {"url": "http://localhost:1/v1", "model": "m", "template": str(tmp_path / "ask.txt")}
    machine = {"cache": str(tmp_path / "c.sqlite"), "concurrency": 3, "retries": 1, "timeout_s": 9.0}

    def signatures(**more):
        rewards = Rewards(["judge"], options={"judge": options | more})
        return [signature_of(name, rewards) for name in ("reward", "rewards/judge/mean")]

    before = signatures(**machine)
    assert re.match(r"rewards/judge/mean\|model:m\|template:ask.txt#\w{8}\|leaf-speech:", before[1])
    assert signatures() == before
    (tmp_path / "ask.txt").write_text("{question}? {answer}")
    changed = signatures(**machine)
    assert all(one != other for one, other in zip(before, changed, strict=True))
    assert not any(str(tmp_path) in one for one in (*before, *changed))


# -- the recipe of an evaluation ---------------------------------------------------------------------------------------
def test_the_recipe_says_how_to_decode_and_the_command_line_overrules_it():
    config = LeafConfig(eval_greedy=True, eval_temperature=0.5, eval_top_p=0.8, max_new_tokens=7, eval_batch_size=3)
    assert decoding_of(config, greedy=None, passes=None).greedy
    sampled = decoding_of(config, greedy=False, passes=None)
    assert (sampled.greedy, sampled.seeds) == (False, (42, 43, 44, 45, 46))
    assert (sampled.temperature, sampled.top_p, sampled.max_new_tokens, sampled.batch_size) == (0.5, 0.8, 7, 3)
    assert decoding_of(config, greedy=None, passes=2).seeds == (42, 43)
    assert not decoding_of(config, greedy=None, passes=2).greedy
    assert not decoding_of(LeafConfig(), greedy=None, passes=None).greedy
    assert decoding_of(LeafConfig(), greedy=True, passes=None).greedy
    with pytest.raises(ConfigError, match="--greedy is one pass, and --passes is 3"):
        decoding_of(config, greedy=True, passes=3)


def test_how_many_rows_are_evaluated_is_said_where_the_recipe_names_another_number():
    said = []
    config = LeafConfig(task="asterisk_qa", eval_items=3)
    whole = rows_of(config, "validation", None, set(), said.append)
    assert len(whole) > 3
    assert said == [
        f"all {len(whole)} rows of validation are evaluated; the recipe's eval_items 3 is for validation in training "
        "(--items 3 takes as many)"
    ]
    assert len(rows_of(config, "validation", 2, {"eval_items"}, said.append)) == 2
    assert len(rows_of(config, "validation", None, {"eval_items"}, said.append)) == 3
    assert len(said) == 1
