"""Recipes that cannot be meant are refused in one sentence."""

import pytest

from leaf.config import LeafConfig, load_recipe
from leaf.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", "the key 'seed' is there twice .* line 2"),
        ("credit_options: {max_boundaries: 1, max_boundaries: 2}", "the key 'max_boundaries' is there twice"),
        ("model: 2024-13-45", "month must be in 1..12"),
        ("seed: 4294967296", "from 0 to 4294967295"),
        ("learning_rate: .inf", "finite numbers"),
        ("learning_rate: .nan", "at least 0.0"),
        ("stage: [rl]", "The stage .* is unknown"),
        ("extends: 5", "extends in a.yaml is 5; give the name of a recipe"),
        ("credit_options: {when: 2024-01-01}", "allowed are finite numbers, text, lists and mappings"),
        ("reward_options: {judge: 5}", "reward_options.judge is 5; give a mapping"),
        ("tolerate: ignore", "allowed are stop, skip"),
        ("on_reward_error: skip", "The key 'on_reward_error' is unknown .* It is `tolerate` now"),
        ("on_bad_audio: skip", "The key 'on_bad_audio' is unknown .* It is `tolerate` now"),
        ("reward_timeout: 5", "A judge has `timeout_s` in `reward_options`"),
        ("max_skipped_steps: 1", "It is gone: leave it out"),
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
