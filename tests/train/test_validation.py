"""What a validation measures: rewards beside metrics, either of which may choose the best adapter."""

import sys
from dataclasses import replace

import datasets
import numpy as np
import pytest

from leaf.bleu import bleu_scorer
from leaf.config import SftConfig
from leaf.data.rows import subset
from leaf.errors import ConfigError, DataError, RewardError
from leaf.evaluation.registry import less_is_better
from leaf.rewards.total import Rewards
from leaf.train.recipe import check_recipe, check_targets
from leaf.train.validation import plan_validation
from tests.helpers import tiny
from tests.helpers.training import length_reward, lines, recipe, trainer


def brief(completions, **columns):
    return [1 / (1 + len(text)) for text in completions]


def test_rewards_are_measured_on_held_out_rows(tmp_path):
    config = recipe(tmp_path, max_steps=1, reward_weights=[2.0, 1.0])
    one = trainer(config, reward_funcs=[brief, "chrf"])
    result = one.evaluate()
    texts, references = result.passes[0], [row["reference"] for row in result.rows]
    expected = Rewards([brief, "chrf"], weights=[2.0, 1.0])(completions=texts, reference=references)
    assert result.scores["reward"] == pytest.approx(expected.totals.mean())
    assert result.scores["rewards/brief/mean"] == pytest.approx(expected.parts["brief"].mean())
    assert result.scores["rewards/chrf/mean"] == pytest.approx(expected.parts["chrf"].mean())
    low, high = result.intervals["reward"]
    assert low <= result.scores["reward"] <= high
    assert result.signatures["reward"].startswith("reward|2*brief+1*chrf|leaf-speech:")
    run = one.train()
    first, last = lines(run.path, "validation.jsonl")
    assert {"bleu", "exact_match", "chrf", "reward", "rewards/brief/mean", "rewards/brief/mean/low"} <= first.keys()
    assert first["reward"] == pytest.approx(result.scores["reward"])
    assert (run.path / "best/adapter_model.safetensors").is_file()
    assert one.best == last["bleu"]


@pytest.mark.parametrize("named", ["reward", "brief", "rewards/brief/mean"])
def test_a_reward_chooses_the_best_adapter(tmp_path, monkeypatch, named):
    one = trainer(recipe(tmp_path, max_steps=3, eval_every=1, best_metric=named), reward_funcs=[brief])
    evaluate, values = one.evaluate, [0.9, 0.2, 0.4, 0.3]
    label = "reward" if named == "reward" else "rewards/brief/mean"

    def measured():
        result = evaluate()
        return replace(result, scores={**result.scores, label: values[one.done]})

    monkeypatch.setattr(one, "evaluate", measured)
    one.train()
    assert one.best == 0.4  # more is better, and the untrained model is never the best
    assert not less_is_better(label)


def test_what_best_metric_may_name(tmp_path):
    rows = tiny.rows(2)
    for written, said in (
        ("breif", "The metric 'breif' is unknown. Did you mean 'brief'"),
        ("rewards/bleu/means", "unknown"),
    ):
        with pytest.raises(ConfigError, match=said):
            trainer(recipe(tmp_path, best_metric=written), reward_funcs=[brief])
    check_recipe(recipe(tmp_path, rewards=["bleu", "wer"], best_metric="rewards/wer/mean"))
    with pytest.raises(ConfigError, match="cannot be imported"):
        check_recipe(recipe(tmp_path, best_metric="nowhere.py:brief"))
    for name in ("one", "other"):
        (tmp_path / f"{name}.py").write_text(
            "def brief(completions, **columns):\n    return [1.0 for _ in completions]\n"
        )
    two = recipe(tmp_path, rewards=[f"{tmp_path}/one.py:brief"], best_metric=f"{tmp_path}/other.py:brief")
    with pytest.raises(ConfigError, match="two reward functions with the one name rewards/brief/mean"):
        check_recipe(two)
    with pytest.raises(ConfigError, match="two reward functions with the one name rewards/brief/mean"):
        plan_validation(two, Rewards(two.rewards), rows, rows)
    plan = plan_validation(recipe(tmp_path, best_metric="bleu"), Rewards(["bleu", "wer"]), rows, rows)
    assert plan.best == "bleu"  # a name that both have is the metric
    assert plan.scoring.metrics == (
        *("bleu", "exact_match", "chrf", "reward", "rewards/bleu/mean", "rewards/wer/mean"),
    )


def test_rows_that_lack_what_a_measure_needs(tmp_path):
    def graded(completions, grade, **columns):
        return grade

    rows = [{key: value for key, value in row.items() if key != "reference"} for row in tiny.rows(2)]
    config = recipe(tmp_path, best_metric="reward")
    plan = plan_validation(config, Rewards([brief]), rows, rows)
    assert plan.scoring.metrics == ("reward", "rewards/brief/mean")  # no row has a reference to compare with
    with pytest.raises(ConfigError, match=r"no validation row has a reference.*best_metric=reward"):
        plan_validation(recipe(tmp_path), Rewards([brief]), rows, rows)
    with pytest.raises(DataError, match="graded takes 'grade' by name, and validation row 0"):
        plan_validation(config, Rewards([graded]), rows, rows)
    plan = plan_validation(recipe(tmp_path), Rewards([graded]), tiny.rows(2), rows)
    assert plan.scoring.metrics == ("bleu", "exact_match", "chrf")
    assert "rewards are not measured in validation. The reward function graded takes 'grade'" in plan.notes[-1]


def test_a_reward_that_fails_in_validation(tmp_path):
    said = []

    def odd(completions, note=None, **columns):
        if note is None or None in note:
            raise ValueError("no note")
        return [float(len(text)) for text in completions]

    rows = [{**row, "note": "n"} for row in tiny.rows(3)]
    how = {"reward_funcs": [odd], "train_dataset": rows}
    one = trainer(recipe(tmp_path, max_steps=1, eval_every=1), **how)
    one.say = said.append
    run = one.train()
    assert "reward" not in lines(run.path, "validation.jsonl")[0]
    assert any("validation: The reward function odd raised ValueError: no note" in line for line in said)
    assert any("rewards/odd/mean is left out: it scored none of 2 predictions" in line for line in said)
    asked = trainer(recipe(tmp_path, output_dir=str(tmp_path / "b"), best_metric="reward"), **how)
    with pytest.raises(RewardError, match="no note"):
        asked.train()


def test_the_start_says_what_fits_neither_language_nor_length(tmp_path):
    rows = [{**row, "reference": "今天下午三点开会。"} for row in tiny.rows(3)]
    one = trainer(recipe(tmp_path), reward_funcs=["bleu"], train_dataset=rows, eval_dataset=rows)
    reward, metric = one.advice()
    assert reward.startswith("reward bleu: 3 of 3 references have no spaces")
    assert metric.startswith("bleu: 3 of 3 references have no spaces")
    rows = [{**row, "reference_language": "zh-CN"} for row in rows]
    one = trainer(recipe(tmp_path), reward_funcs=["bleu"], train_dataset=rows, eval_dataset=rows)
    assert one.advice() == []
    assert "|tok:zh|" in one.evaluate().signatures["bleu"]
    short = [{**row, "reference": "yes"} for row in tiny.rows(3)]
    one = trainer(recipe(tmp_path), train_dataset=short, eval_dataset=short)
    (line,) = one.advice()
    assert "3 of 3 references have fewer than 4 tokens" in line
    assert np.isfinite(one.evaluate().scores["bleu"])


def test_rows_in_several_languages_are_validated_without_a_bleu_that_nobody_asked_for(tmp_path):
    languages = ("zh", "de", "de")
    rows = [{**row, "reference_language": one} for row, one in zip(tiny.rows(3), languages, strict=True)]
    for best in ("chrf", "reward"):
        plan = plan_validation(recipe(tmp_path, best_metric=best), Rewards(["chrf"]), rows, rows)
        assert "bleu" not in plan.scoring.metrics
        assert {"chrf", "exact_match"} <= {*plan.scoring.metrics}
        (note,) = [line for line in plan.notes if line.startswith("bleu")]
        assert note.startswith("bleu is not measured in validation. The references are in languages whose tokenizers")
        check_targets(recipe(tmp_path, best_metric=best), rows, rows)
    for refused in (recipe(tmp_path, best_metric="bleu"), SftConfig()):
        with pytest.raises(ConfigError, match=r"best_metric is bleu, which .*zh for zh, 13a for de.*tokenize=char"):
            check_targets(refused, rows, rows)
    for allowed in (recipe(tmp_path, best_metric="bleu:tokenize=char"), SftConfig(best_metric="chrf")):
        check_targets(allowed, rows, rows)


def test_a_package_that_bleu_lacks_is_missed_before_a_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu.tokenizers.tokenizer_ja_mecab", None)  # as without the package
    bleu_scorer.cache_clear()
    rows = [{**row, "reference_language": "ja"} for row in tiny.rows(3)]
    for some in (rows, datasets.Dataset.from_list([{"prompt": "p", "reference": "r", "reference_language": "ja"}])):
        with pytest.raises(ConfigError, match=r'best_metric is bleu.*pip install "sacrebleu\[ja\]"'):
            check_targets(recipe(tmp_path, best_metric="bleu"), some, some)
        with pytest.raises(ConfigError, match=r'ja-mecab needs what is not here: pip install "sacrebleu\[ja\]"'):
            Rewards(["bleu"]).check_rows(some)
        Rewards(["bleu"], options={"bleu": {"tokenize": "char"}}).check_rows(some)
        plan = plan_validation(recipe(tmp_path, best_metric="chrf"), Rewards(["chrf"]), some, some)
        assert "bleu" not in plan.scoring.metrics
    with pytest.raises(DataError, match="reference_language is 5; give the name of a language"):
        Rewards(["bleu"]).check_rows([{**rows[0], "reference_language": 5}])


def test_a_validation_reward_sees_what_trl_gives(tmp_path):
    seen = []

    def curious(completions, completion_ids, trainer_state, prompts, log_metric, **columns):
        seen.append((len(completions), [len(ids) > 0 for ids in completion_ids], trainer_state.global_step))
        log_metric("x", 1.0)
        return length_reward(completions)

    trainer(recipe(tmp_path, max_steps=2, eval_every=2), reward_funcs=[curious]).train()
    assert [count for count, _, _ in seen] == [2, 8, 8, 2]
    assert [step for _, _, step in seen] == [0, 0, 1, 2]


def test_a_seed_draws_the_rows_of_a_validation(tmp_path):
    rows = [{**row, "number": i} for i, row in enumerate(tiny.rows(6))]
    seen = {}
    for seed in (None, 0, 1):
        asked = seen[seed] = []

        def watching(completions, number, asked=asked, **columns):
            asked.append(number)
            return [0.0 for _ in completions]

        made = trainer(
            recipe(tmp_path, eval_items_seed=seed), reward_funcs=[watching], train_dataset=rows, eval_dataset=rows
        )
        made.evaluate()
    assert {seed: asked[-1] for seed, asked in seen.items()} == {
        None: [0, 1],
        0: list(subset(6, 2, 0)),
        1: list(subset(6, 2, 1)),
    }
    assert len({tuple(asked[-1]) for asked in seen.values()}) == 3
