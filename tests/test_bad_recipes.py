"""Recipes that cannot be meant are refused in one sentence."""

import os

import pytest

from leaf.config import LeafConfig, load_recipe, to_dict
from leaf.errors import ConfigError, RunError
from leaf.runs.directory import RunDirectory
from leaf.train.recipe import check_recipe


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


@pytest.mark.parametrize("source", ["/dev/zero", "folder", "fifo", "large.yaml"])
def test_what_is_no_file_of_a_recipe_is_refused_before_it_is_read_to_its_end(tmp_path, source):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2**20 + 1))
    (tmp_path / "a.yaml").write_text(f"extends: {source}\n")
    (tmp_path / "recipe.yaml").symlink_to(tmp_path / source)
    for refused in (lambda: load_recipe(tmp_path / "a.yaml"), RunDirectory(tmp_path).config):
        with pytest.raises((ConfigError, RunError), match=r"not a regular file|larger than 1 MiB"):
            refused()


def test_a_few_aliases_do_not_stand_for_more_than_fits_into_memory(tmp_path):
    bomb = ["a0: &a0 [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]"]
    bomb += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    for text in ("\n".join(bomb), "seed: &a [*a]", "seed: " + "[" * 100_000):
        (tmp_path / "a.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"aliases stand for over|nested too deeply"):
            load_recipe(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("credit_options: &a {max_boundaries: 2}\nreward_options: {bleu: *a}\n")
    assert to_dict(load_recipe(tmp_path / "a.yaml"))["reward_options"] == {"bleu": {"max_boundaries": 2}}


@pytest.mark.parametrize("key", ["num_completions", "prompts_per_rollout", "max_new_tokens", "lora_r"])
def test_sizes_beyond_any_memory_are_refused_at_once(tmp_path, key):
    (tmp_path / "a.yaml").write_text("seed: 1\n")
    with pytest.raises(ConfigError, match=f"{key} is 1000000000; allowed is a number from"):
        load_recipe(tmp_path / "a.yaml", [f"{key}=1000000000"])
    large = LeafConfig(prompts_per_rollout=2**16, num_completions=2**16, max_new_tokens=2**20, device="cpu")
    with pytest.raises(ConfigError, match=r"takes \d+ GB for its tokens alone, and \d+ GB are free\. Lower"):
        check_recipe(large)


def test_a_seed_for_rows_that_are_not_drawn_is_refused():
    with pytest.raises(ConfigError, match="eval_items_seed is 3 without eval_items, so all rows validate"):
        check_recipe(LeafConfig(eval_items=None, eval_items_seed=3, device="cpu"))
