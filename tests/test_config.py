from dataclasses import replace
from pathlib import Path

import pytest

from leaf.config import AlignConfig, LeafConfig, SftConfig, from_dict, load_recipe, to_dict
from leaf.errors import ConfigError


def write(path, text):
    path.write_text(text)
    return path


def test_defaults_are_the_published_protocol():
    config = LeafConfig()
    got = (config.num_completions, config.temperature, config.top_p, config.max_new_tokens, config.kl_coef, config.clip)
    assert got == (8, 1.0, 0.9, 200, 0.02, 0.2)
    assert (config.lora_r, config.lora_alpha, config.lora_dropout, config.learning_rate) == (64, 128, 0.05, 5e-6)
    assert (config.prompts_per_rollout, config.reduction, config.max_grad_norm) == (6, "completion_mean", 1.0)
    assert (config.eval_items, config.eval_temperature, config.eval_top_p) == (256, 0.9, 0.9)


def test_defaults_that_are_not_the_published_protocol_are_named():
    published = Path(__file__).parent.parent / "recipes/published"
    recipe = to_dict(load_recipe(published / "leaf.yaml", [str(published / "models/granite-3.3-2b.yaml")]))
    same_by_another_name = {"model", "output_dir", "lora_layers", "credit_options"}
    others = {key for key, value in to_dict(LeafConfig()).items() if value != recipe[key]} - same_by_another_name
    assert {"dtype", "completions_per_update"} < others
    assert [key for key in others if f"`{key}`" not in (LeafConfig.__doc__ or "")] == []


def test_extends_and_overrides(tmp_path):
    write(tmp_path / "base.yaml", "seed: 3\nlearning_rate: 1e-4\ncredit: grpo\n")
    recipe = write(tmp_path / "mine.yaml", "extends: base.yaml\ncredit: leaf\ncredit_options: {max_boundaries: 4}\n")
    config = load_recipe(recipe, ["num_completions=16", "rewards=[bleu, chrf]", "lora_dropout=0"])
    assert isinstance(config, LeafConfig)
    assert (config.seed, config.learning_rate, config.credit, config.num_completions) == (3, 1e-4, "leaf", 16)
    assert config.credit_options == {"max_boundaries": 4}
    assert config.rewards == ["bleu", "chrf"]
    assert config.lora_dropout == 0.0
    assert config.output_dir == "runs/mine"
    assert from_dict(to_dict(config)) == config


def test_the_stage_picks_the_dataclass():
    assert isinstance(from_dict({"stage": "sft"}), SftConfig)
    assert isinstance(from_dict({"stage": "align", "max_steps": 5}), AlignConfig)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 1}, "Did you mean 'learning_rate'"),
        ({"stage": "ppo"}, "allowed are rl, sft, align"),
        ({"seed": "three"}, "seed is 'three'; give a whole number"),
        ({"seed": True}, "seed is True; give a whole number"),
        ({"model": None}, "model has no value; give text"),
        ({"credit_options": "max_boundaries"}, "credit_options is 'max_boundaries'; give a mapping"),
        ({"top_p": 1.5}, "from 1e-06 to 1.0"),
        ({"num_completions": 1}, "from 2 to 65536"),
        ({"num_completions": 2.5}, "a whole number"),
        ({"learning_rate": float("nan")}, "at least 0.0"),
        ({"reduction": "sum"}, "completion_mean"),
        ({"rewards": "bleu, chrf"}, r"rewards is 'bleu, chrf'; write several values as a list, as \[first, second\]"),
        ({"rewards": {"bleu": 1}}, "give a list"),
        ({"reward_weights": True}, "give a list"),
        ({"rewards": [1]}, "rewards"),
        ({"columns": {"audio": 3}}, "columns.audio"),
    ],
)
def test_mistakes_are_one_clear_sentence(values, message):
    with pytest.raises(ConfigError, match=message) as error:
        from_dict(values)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LeafConfig(top_p=0.0), r"top_p is 0\.0; allowed is a number from 1e-06 to 1\.0"),
        (lambda: LeafConfig(temperature=0.0), r"temperature is 0\.0; allowed is a number at least 0\.001"),
        (lambda: LeafConfig(num_completions=1), "num_completions is 1; allowed is a number from 2 to 65536"),
        (
            lambda: LeafConfig(schedule="cosin"),  # type: ignore[arg-type]
            "schedule is 'cosin'; allowed are cosine, linear, constant",
        ),
        (lambda: SftConfig(batch_size=0), "batch_size is 0"),
        (lambda: AlignConfig(learning_rate=-1.0), r"learning_rate is -1\.0"),
        (lambda: replace(LeafConfig(), top_p=2.0), r"top_p is 2\.0"),
        (lambda: LeafConfig(stage="sft"), "stage is sft, and LeafConfig is of stage rl"),
    ],
)
def test_a_config_built_in_python_is_held_to_the_same_ranges(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_config_built_in_python_is_that_of_its_recipe():
    config = LeafConfig(rewards=("bleu", "chrf"), kl_coef=0, learning_rate="1e-4")  # type: ignore[arg-type]
    assert (config.rewards, config.kl_coef, config.learning_rate) == (["bleu", "chrf"], 0.0, 1e-4)
    assert from_dict(to_dict(config)) == config
    assert replace(config, seed=1).rewards == ["bleu", "chrf"]


def test_one_value_stands_for_a_list_of_one():
    config = LeafConfig(rewards="bleu", reward_weights=2, lora_layers="q_proj", plugins="mine.py")  # type: ignore[arg-type]
    assert (config.rewards, config.reward_weights, config.lora_layers) == (["bleu"], [2.0], ["q_proj"])
    assert config.plugins == ["mine.py"]


def test_unreadable_recipes_are_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="as YAML"):
        load_recipe(write(tmp_path / "bad.yaml", "a: [1"))
    with pytest.raises(ConfigError, match="holds a list"):
        load_recipe(write(tmp_path / "list.yaml", "- a"))
    with pytest.raises(ConfigError, match="extends itself"):
        load_recipe(write(tmp_path / "loop.yaml", "extends: loop.yaml"))
    with pytest.raises(ConfigError, match="key=value"):
        load_recipe(write(tmp_path / "ok.yaml", "seed: 1"), ["seed"])


def test_a_damaged_recipe_of_a_run_is_one_sentence(tmp_path):
    from leaf.errors import RunError
    from leaf.runs.directory import RunDirectory

    for content, said in (("a: [", "cannot be read"), ("- 1", "has no recipe"), (b"\xff\xfe\x00", "cannot be read")):
        (tmp_path / "recipe.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(RunError, match=said):
            RunDirectory.open(tmp_path).config()
