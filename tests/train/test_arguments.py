"""What a run records of what a script passed to the trainer, and what the commands make of such a run."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import yaml
from typer.testing import CliRunner

from leaf import LeafTrainer
from leaf.commands.main import app
from leaf.config import LeafConfig, from_dict, load_recipe, to_dict
from leaf.errors import ConfigError, RunError
from leaf.files import file_sha256
from leaf.model import demo
from leaf.model.policy import Policy
from leaf.runs.directory import RunDirectory
from leaf.runs.provenance import recorded_arguments, refuse_missing, refuse_resume
from tests.helpers import tiny
from tests.helpers.project import save, write_manifest


def polite(completions, **columns):
    return [len(text) / 20 for text in completions]


def mine(tree, rewards, *, surprisal=None, scale=1.0):
    return scale * (rewards - rewards.mean())[:, None] * (tree.node >= 0)


def other(tree, rewards, *, surprisal=None):
    return mine(tree, rewards)


class Rule:
    def __call__(self, tree, rewards, *, surprisal=None):
        return mine(tree, rewards)


def recipe(path, **changes):
    values: dict[str, Any] = {
        "max_steps": 2,
        "prompts_per_rollout": 2,
        "num_completions": 2,
        "max_new_tokens": 4,
        "lora_r": 2,
    }
    values |= {"lora_dropout": 0.0, "eval_every": 0, "save_every": 1, "device": "cpu", "output_dir": str(path)}
    return LeafConfig(**(values | changes))


def trainer(path, *, credit=None, reward_funcs=("bleu", polite), lora=None, **changes) -> Any:
    model, processor = tiny.tiny_model()
    given = (model, list(reward_funcs), recipe(path, **changes), tiny.rows(3), None, processor, lora)
    return LeafTrainer(*given, credit=credit, say=lambda line: None)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint, and a manifest beside it."""
    monkeypatch.chdir(tmp_path)
    model, processor = tiny.tiny_model()
    save(model, processor, "model")
    write_manifest(tmp_path / "data.jsonl", splits=("train", "test"), count=2)
    return Path("model")


def recorded(model: Any = "some/model", reward_funcs=None, credit=None, lora=None, *, from_recipe=False):
    return recorded_arguments(model, reward_funcs, credit, lora, from_recipe=from_recipe)


def test_the_embedded_model_goes_by_its_name_from_python_too(tmp_path, monkeypatch):
    model, processor = tiny.tiny_model()
    monkeypatch.setenv("LEAF_CACHE", str(tmp_path))
    save(model, processor, tmp_path / "demo-model")
    trained = [demo.SHIPPED / "projector.safetensors", demo.SHIPPED / "adapter/adapter_model.safetensors"]
    weights = {str(file.relative_to(demo.SHIPPED)): file_sha256(file) for file in trained}
    card = {"stage": "demo", "base": demo._base_card(), "weights": weights}  # as if it had been assembled
    (tmp_path / "demo-model" / demo._CARD).write_text(json.dumps(card))
    config = LeafConfig(output_dir=str(tmp_path / "run"), device="cpu", lora_r=2, max_new_tokens=4)
    trainer = LeafTrainer("demo", ["bleu"], config, tiny.rows(2))
    assert trainer.policy.base_name == "demo"
    assert trainer.given.recipe["model"] == "demo"


# -- what is recorded --------------------------------------------------------------------------------------------------
def test_a_recipe_holds_what_it_can_and_the_rest_is_named():
    model, processor = tiny.tiny_model()
    named = "AudioFlamingo3ForConditionalGeneration"
    assert recorded() == ({"model": "some/model"}, {"task": "rows"})
    assert recorded(Path("demo")).recipe["model"] == "./demo"  # a folder, not leaf's own
    assert recorded(model).script["model"] == recorded(Policy.wrap(model, processor)).script["model"] == named
    model.config._name_or_path = "org/name"
    assert recorded(model) == ({}, {"task": "rows", "model": "org/name"})
    assert recorded(from_recipe=True) == ({}, {})
    whole = recorded(reward_funcs=["bleu", polite], credit=mine, from_recipe=True)
    assert whole == ({}, {"rewards": ["bleu", "polite"], "credit": "mine"})
    assert recorded(reward_funcs=["chrf"], credit="grpo", from_recipe=True) == (
        {"rewards": ["chrf"], "credit": "grpo"},
        {},
    )
    assert recorded(reward_funcs=polite).script["rewards"] == ["polite"]
    assert recorded(reward_funcs=[partial(polite), Rule()]).script["rewards"] == ["polite", "Rule"]
    assert recorded(credit=Rule.__call__).script["credit"] == "Rule.__call__"
    for rule, name in ((partial(mine, scale=2.0), "mine"), (Rule(), "Rule")):
        assert recorded(credit=rule).script["credit"] == name


def test_lora_settings_are_those_of_the_adapter():
    plain = peft.LoraConfig(
        r=4, lora_alpha=6, lora_dropout=0.1, target_modules=["v_proj", "q_proj"], task_type="CAUSAL_LM"
    )
    fields = {"lora_r": 4, "lora_alpha": 6, "lora_dropout": 0.1, "layers_to_transform": None}
    assert recorded(lora=plain, from_recipe=True) == (fields | {"lora_layers": ["q_proj", "v_proj"]}, {})
    for whole in (peft.LoraConfig(r=4), peft.LoraConfig(r=4, target_modules="all-linear")):
        found = recorded(lora=whole, from_recipe=True)
        assert (found.recipe["lora_layers"], found.script) == (None, {})
    own = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=4))
    for found in (
        recorded(lora=peft.LoraConfig(r=4, target_modules=".*_proj")),
        recorded(lora=peft.LoraConfig(r=4, use_rslora=True)),
        recorded(lora=peft.LoraConfig(r=4, layers_to_transform=1)),
        recorded(own),
    ):
        assert (found.recipe["lora_r"], found.script["lora_layers"]) == (4, ["peft_config"])


def test_the_run_directory_tells_what_ran(tmp_path):
    one = trainer(tmp_path / "run", credit=mine, lora=peft.LoraConfig(r=3))
    one.start()
    written = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert from_dict(written) == one.args
    assert {key: written[key] for key in ("lora_r", "lora_alpha", "task", "credit")} == {
        "lora_r": 3,
        "lora_alpha": 8,
        "task": "asterisk_qa",
        "credit": "leaf",
    }
    passed = {
        "model": "AudioFlamingo3ForConditionalGeneration",
        "task": "rows",
        "rewards": ["bleu", "polite"],
        "credit": "mine",
    }
    assert json.loads((tmp_path / "run/provenance.json").read_text()) == passed
    run = RunDirectory.open(tmp_path / "run")
    assert (run.config(), run.script_values()) == (one.args, passed)
    shown = run.what_ran()
    assert isinstance(shown, LeafConfig)
    assert (shown.task, shown.rewards, shown.credit, shown.lora_r) == (
        "rows (from Python)",
        ["bleu (from Python)", "polite (from Python)"],
        "mine (from Python)",
        3,
    )


# -- what becomes of it ------------------------------------------------------------------------------------------------
def test_the_commands_take_what_they_can_and_say_what_they_cannot(checkpoint):
    config = recipe("run", max_steps=1)
    LeafTrainer(checkpoint, [polite], config, tiny.rows(3), say=lambda line: None).train()
    own = ("run/recipe.yaml", "task=data.jsonl")
    scored = CliRunner().invoke(app, ["evaluate", *own, "--adapter", "run/last", "--greedy", "--out", "scores"])
    assert scored.exit_code == 0, scored.output
    merged = CliRunner().invoke(app, ["merge", "run/recipe.yaml", "--adapter", "run/last", "--out", "merged"])
    assert merged.exit_code == 0, merged.output
    Path("own.yaml").write_text("task: data.jsonl\nrewards: [chrf]\ntrain_split: test\noutput_dir: other\n")
    trained = CliRunner().invoke(app, ["train", "run/recipe.yaml", "own.yaml"])
    assert trained.exit_code == 0, trained.output
    for command, error, said in (
        (["train", own[0], "--resume"], RunError, "run was begun by a script that passed its own task and rewards"),
        (["train", own[0], own[1], "--resume"], RunError, "Continue it from that script"),
        (["train", *own, "train_split=test"], ConfigError, r"passed its own rewards .*Set rewards=\.\.\., or continue"),
        (["evaluate", own[0], "--adapter", "run/last"], ConfigError, r"passed its own task .*Set task=\.\.\."),
        (["doctor", own[0]], ConfigError, r"Set task=\.\.\., rewards=\.\.\.,"),
    ):
        with pytest.raises(error, match=said):
            CliRunner().invoke(app, command, catch_exceptions=False)


def test_commands_record_the_recipe_itself(checkpoint):
    values = to_dict(recipe("runs/cli", max_steps=0, model="model", task="data.jsonl"))
    Path("r.yaml").write_text(yaml.safe_dump(values))
    done = CliRunner().invoke(app, ["train", "r.yaml"])
    assert done.exit_code == 0, done.output
    assert yaml.safe_load(Path("runs/cli/recipe.yaml").read_text()) == to_dict(load_recipe("r.yaml")) == values
    assert not Path("runs/cli/provenance.json").exists()


def test_a_resume_with_another_rule_or_none_is_refused(tmp_path):
    path = tmp_path / "run"
    one = trainer(path, credit=mine)
    one.start()
    one.run.release()
    for credit, now in ((None, "'leaf'"), (other, r"'other' \(from Python\)"), (Rule(), r"'Rule' \(from Python\)")):
        with pytest.raises(RunError, match=rf"credit is {now}, was 'mine' \(from Python\)\. Put back what differs"):
            trainer(path, credit=credit).start(resume=True)
    with pytest.raises(RunError, match=r"with rewards: \['bleu', 'polite'\], now \['bleu'\]"):
        trainer(path, credit=mine, reward_funcs=["bleu"]).start(resume=True)
    with pytest.raises(RunError, match=r"lora_alpha is 8, was 128"):
        trainer(path, credit=mine, lora=peft.LoraConfig(r=2)).start(resume=True)
    trainer(path, credit=mine).train(resume_from_checkpoint=True)


def test_what_version_0_1_marked_in_its_recipe_is_named_beside_it(tmp_path):
    """The marks are of a script's rows, of a model object, of rewards, a rule and an adapter."""
    marks = {"task": "rows", "model": "org/name", "rewards": ["bleu", "polite"], "credit": "mine"}
    written = {
        "stage": "rl",
        "seed": 3,
        "task": "rows (from Python)",
        "model": "org/name (from Python)",
        "rewards": ["bleu", "polite (from Python)"],
        "credit": "mine (from Python)",
        "on_bad_audio": "skip",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(written))
    (tmp_path / "versions.json").write_text("{}")
    run = RunDirectory.open(tmp_path)
    # A recipe without output_dir, as this one is, gets the place named after it when it is read to be run.
    assert run.config() == replace(load_recipe(tmp_path / "recipe.yaml"), output_dir=None)
    config = run.config()
    assert isinstance(config, LeafConfig)
    assert (config.seed, config.credit, config.tolerate) == (3, "leaf", "skip")
    assert run.script_values() == marks
    for refuse, error in (
        (lambda: refuse_resume(run), RunError),
        (lambda: refuse_missing(tmp_path / "recipe.yaml", ["task"], []), ConfigError),
    ):
        with pytest.raises(error, match=r"passed its own .*task.* \(marked in recipe\.yaml\)"):
            refuse()
