"""Methods of the report: which runs are one method, what a method is called, and its colour."""

import pytest

from leaf.config import LeafConfig, SftConfig
from leaf.report.curves import curves_section
from leaf.report.runs import colours, differences, methods, read_runs
from tests.helpers.reported import made, panel


def named(*recipes):
    return methods(recipes, [f"run{number}" for number in range(len(recipes))])


def test_methods_are_what_recipes_differ_in_seeds_aside():
    def recipe(**settings):
        return LeafConfig(model="/home/me/models/tiny", task="t", **settings)

    one, two = recipe(credit="leaf", seed=1, output_dir="a"), recipe(credit="leaf", seed=2, output_dir="b")
    assert named(one, two) == ["leaf", "leaf"]
    assert named(one, recipe(credit="grpo")) == ["leaf", "grpo"]
    assert named(one, recipe(credit="leaf", learning_rate=1e-3)) == ["learning_rate 5e-06", "learning_rate 0.001"]
    assert named(one, recipe(credit="grpo", lora_r=8)) == ["leaf, lora_r 64", "grpo, lora_r 8"]


def test_methods_that_differ_in_much_have_the_names_of_their_runs():
    one = LeafConfig(model="/home/me/models/tiny", task="t")
    other = {"credit_options": {"sqrt_count": False}, "learning_rate": 1e-3}
    others = [LeafConfig(model="/home/me/models/tiny", task="t", seed=seed, **other) for seed in range(3)]
    assert named(one, *others) == ["run0", *["run1 and 2 more"] * 3]
    assert named(one, SftConfig(model="x/other", task="t")) == ["run0", "run1"]


@pytest.mark.parametrize(
    "free",
    [
        {"eval_every": 7, "save_every": 3, "record_every": 2, "keep_checkpoints": 9},
        {"track_with": "tensorboard", "tolerate": "skip", "device": "cpu", "token_budget": 99, "attention": "eager"},
        {"reward_options": {"judge": {"model": "j", "url": "http://b/v1", "concurrency": 2}}},
    ],
)
def test_what_teaches_a_run_nothing_makes_no_method(free):
    judged = {"reward_options": {"judge": {"model": "j", "url": "http://a/v1"}}}
    one, other = LeafConfig(**judged), LeafConfig(**{**judged, **free})  # type: ignore[arg-type]
    assert named(one, other) == ["leaf", "leaf"]
    assert set(differences([one, other])) == set(free)


def test_leaf_and_grpo_have_one_colour_each_on_every_page():
    assert colours(["leaf", "grpo"]) == [0, 1]
    assert colours(["grpo", "leaf"]) == [1, 0]
    assert colours(["grpo"]) == [1]
    assert colours(["tempo", "grpo", "mine"]) == [2, 1, 3]
    assert colours(["leaf", "leaf", "sft", "grpo", "grpo"]) == [0, 2, 3, 1, 4]


def test_methods_whose_paths_end_alike_are_not_one(tmp_path):
    def named_by(key, *values):
        return named(*(LeafConfig(**{"model": "m", "task": "t", key: value}) for value in values))

    assert named_by("model", "/home/me/warm-a/merged", "/home/me/warm-b/merged", "/home/me/warm-a/merged") == [
        "model warm-a/merged",
        "model warm-b/merged",
        "model warm-a/merged",
    ]
    assert named_by("task", "a/x/my.jsonl", "b/x/my.jsonl") == ["task a/x/my.jsonl", "task b/x/my.jsonl"]
    assert named_by("rewards", ["bleu", "a/my.py:polite"], ["bleu", "b/my.py:polite"]) == [
        "rewards bleu a/my.py:polite",
        "rewards bleu b/my.py:polite",
    ]
    assert named_by("train_split", "train", "small") == ["train_split train", "train_split small"]
    assert named_by("credit_options", {"a": "b c"}, {"a": ["b", "c"]}) == [
        'credit_options {"a": "b c"}',
        'credit_options {"a": ["b", "c"]}',
    ]
    paths = [made(tmp_path / name, model=f"runs/{name}/merged") for name in ("warm-a", "warm-b")]
    section = curves_section(read_runs(paths))
    assert section.data["methods"] == ["model warm-a/merged", "model warm-b/merged"]
    assert panel(section, "Reward")["bands"] == []
    assert ["model", "warm-b/merged"] in section.data["settings"]["warm-b"]
