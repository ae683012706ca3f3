"""Recipes that cannot be meant are refused in one sentence."""

import pytest

from leaf.config import LeafConfig, load_recipe
from leaf.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "the key 'seed' stands there twice .* line 2"),
        ("credit_options: {max_boundaries: 1, max_boundaries: 2}", "the key 'max_boundaries' stands there twice"),
        ("seed: &a [*a]", "unfold to more than 10000 values, or without end"),
        ("seed: " + "[" * 5000, "nested too deeply"),
        ("seed: " + "9" * 5000, "a value is not of its type"),
        ("model: 2024-13-45", "month must be in 1..12"),
        ("seed: 4294967296", "from 0 to 4294967295"),
        ("learning_rate: .inf", "finite numbers"),
        ("learning_rate: .nan", "at least 0.0"),
        ("stage: [rl]", "The stage .* is unknown"),
        ("extends: 5", "extends in a.yaml is 5; give the name of a recipe"),
        ('task: "a\\0b"', "NUL and half characters"),
        ("credit_options: {when: 2024-01-01}", "allowed are numbers, text, lists and mappings"),
        ("credit_options: {1: 2}", "names are text"),
        ("reward_timeout: 0", "reward_timeout is 0.0; allowed is a number from 0.001"),
        ("on_reward_error: ignore", "allowed are stop, skip"),
        ("max_skipped_steps: -1", "at least 0"),
        ("learning_rat: 1", "Did you mean 'learning_rate'"),
    ],
)
def test_recipes_that_cannot_be_meant(tmp_path, text, message):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_recipe(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


def test_anchors_and_merged_keys_are_fine(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "rewards: &r [bleu]\nextra_tasks: *r\nstage: sft\nlora_r: 4\n".replace("rewards", "plugins")
    )
    assert load_recipe(tmp_path / "a.yaml").plugins == ["bleu"]
    (tmp_path / "b.yaml").write_text("credit_options:\n  <<: {max_boundaries: 1, min_prefix: 2}\n  max_boundaries: 3\n")
    config = load_recipe(tmp_path / "b.yaml")
    assert isinstance(config, LeafConfig)
    assert config.credit_options == {"max_boundaries": 3, "min_prefix": 2}
