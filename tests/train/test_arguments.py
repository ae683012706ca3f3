"""What a run's recipe says of what a script gave the trainer, and what becomes of such a recipe."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import peft
import pytest
import soundfile
import yaml
from typer.testing import CliRunner

from leaf import LeafTrainer
from leaf.commands.main import app
from leaf.config import LeafConfig, from_dict, load_recipe, to_dict
from leaf.data import load
from leaf.errors import ConfigError, RunError
from leaf.model.from_recipe import recipe_lora
from leaf.model.policy import Policy
from leaf.rewards.total import Rewards
from leaf.runs.checkpoints import Checkpoints
from leaf.runs.directory import RunDirectory
from leaf.runs.provenance import recorded_arguments
from tests.helpers import tiny


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
    values = {"max_steps": 2, "prompts_per_rollout": 2, "num_completions": 2, "max_new_tokens": 4, "lora_r": 2}
    values |= {"lora_dropout": 0.0, "eval_every": 0, "save_every": 1, "device": "cpu", "output_dir": str(path)}
    return LeafConfig(**(values | changes))


def trainer(path, *, credit=None, reward_funcs=("bleu", polite), lora=None, **changes):
    model, processor = tiny.tiny_model()
    given = (model, list(reward_funcs), recipe(path, **changes), tiny.rows(3), None, processor, lora)
    return LeafTrainer(*given, credit=credit, say=lambda line: None)


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A checkpoint, and a manifest beside it."""
    monkeypatch.chdir(tmp_path)
    model, processor = tiny.tiny_model()
    model.save_pretrained("model")
    processor.save_pretrained("model")
    lines = []
    for i, row in enumerate(tiny.rows(4)):
        soundfile.write(f"{i}.wav", row["audio"]["array"], row["audio"]["sampling_rate"])
        line = {"audio": f"{i}.wav", "split": "train" if i < 2 else "test"}
        lines.append(json.dumps(line | {key: row[key] for key in ("prompt", "reference")}))
    Path("data.jsonl").write_text("\n".join(lines))
    return Path("model")


def recorded(model="some/model", reward_funcs=None, credit=None, lora=None, *, from_recipe=False):
    return recorded_arguments(model, reward_funcs, credit, lora, from_recipe=from_recipe)


# -- what is recorded --------------------------------------------------------------------------------------------------
def test_what_can_be_named_is_and_objects_are_said_to_come_from_python():
    model, processor = tiny.tiny_model()
    named = "AudioFlamingo3ForConditionalGeneration (from Python)"
    assert recorded() == {"model": "some/model", "task": "rows (from Python)"}
    assert recorded(Path("demo"))["model"] == "./demo"  # a folder, not leaf's own
    assert recorded(model)["model"] == recorded(Policy.wrap(model, processor))["model"] == named
    model.config._name_or_path = "org/name"
    assert recorded(model)["model"] == "org/name (from Python)"
    assert recorded(from_recipe=True) == {}
    whole = recorded(reward_funcs=["bleu", polite], credit=mine, from_recipe=True)
    assert whole == {"rewards": ["bleu", "polite (from Python)"], "credit": "mine (from Python)"}
    assert recorded(reward_funcs=polite)["rewards"] == ["polite (from Python)"]
    assert recorded(reward_funcs=[partial(polite), Rule()])["rewards"] == ["polite (from Python)", "Rule (from Python)"]
    assert recorded(credit=Rule.__call__)["credit"] == "Rule.__call__ (from Python)"
    for rule, name in (
        ("grpo", "grpo"),
        (partial(mine, scale=2.0), "mine (from Python)"),
        (Rule(), "Rule (from Python)"),
    ):
        assert recorded(credit=rule)["credit"] == name


def test_lora_settings_are_those_of_the_adapter():
    plain = peft.LoraConfig(
        r=4, lora_alpha=6, lora_dropout=0.1, target_modules=["v_proj", "q_proj"], task_type="CAUSAL_LM"
    )
    fields = {"lora_r": 4, "lora_alpha": 6, "lora_dropout": 0.1}
    assert recorded(lora=plain, from_recipe=True) == fields | {"lora_layers": ["q_proj", "v_proj"]}
    assert recorded(lora=peft.LoraConfig(r=4))["lora_layers"] is None
    assert recorded(lora=peft.LoraConfig(r=4, target_modules="all-linear"))["lora_layers"] is None
    own = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=4))
    for found in (
        recorded(lora=peft.LoraConfig(r=4, target_modules=".*_proj")),
        recorded(lora=peft.LoraConfig(r=4, use_rslora=True)),
        recorded(own),
    ):
        assert (found["lora_r"], found["lora_layers"]) == (4, ["peft_config (from Python)"])
        with pytest.raises(ConfigError, match=r"lora_layers is .*Set lora_layers to what a recipe can hold"):
            recipe_lora(LeafConfig(lora_layers=found["lora_layers"]))


def test_the_run_directory_tells_what_ran(tmp_path):
    one = trainer(tmp_path / "run", credit=mine, lora=peft.LoraConfig(r=3))
    one.start()
    written = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert from_dict(written) == one.args
    wanted = {
        "model": "AudioFlamingo3ForConditionalGeneration (from Python)",
        "task": "rows (from Python)",
        "rewards": ["bleu", "polite (from Python)"],
        "credit": "mine (from Python)",
        "lora_r": 3,
        "lora_alpha": 8,
    }
    assert {key: written[key] for key in wanted} == wanted


# -- what becomes of it ------------------------------------------------------------------------------------------------
def test_a_value_that_only_names_an_object_is_not_run():
    for run, key in (
        (lambda name: LeafTrainer("none", args=recipe("run", credit=name), train_dataset=tiny.rows(2)), "credit"),
        (lambda name: Rewards([name]), "rewards"),
        (lambda name: load(name, "train"), "task"),
    ):
        with pytest.raises(ConfigError, match=f"^{key} is 'bleu .from Python.': a script began that run with an"):
            run("bleu (from Python)")


def test_the_commands_take_what_they_can_and_say_what_they_cannot(checkpoint):
    config = recipe("run", max_steps=1)
    LeafTrainer(checkpoint, [polite], config, tiny.rows(3), say=lambda line: None).train()
    own = ("run/recipe.yaml", "task=data.jsonl")
    scored = CliRunner().invoke(app, ["evaluate", *own, "--adapter", "run/last", "--greedy", "--out", "scores"])
    assert scored.exit_code == 0, scored.output
    merged = CliRunner().invoke(app, ["merge", "run/recipe.yaml", "--adapter", "run/last", "--out", "merged"])
    assert merged.exit_code == 0, merged.output
    for command, key in (
        (["train", "run/recipe.yaml", "rewards=[bleu]", "--resume"], "task is 'rows"),
        (["train", *own, "train_split=test"], "rewards is 'polite"),
        (["merge", own[0], "model=x (from Python)", "--adapter", "run/last", "--out", "other"], "model is 'x"),
    ):
        with pytest.raises(ConfigError, match=key):
            CliRunner().invoke(app, command, catch_exceptions=False)


def test_commands_record_the_recipe_itself(checkpoint):
    values = to_dict(recipe("runs/cli", max_steps=0, model="model", task="data.jsonl"))
    Path("r.yaml").write_text(yaml.safe_dump(values))
    done = CliRunner().invoke(app, ["train", "r.yaml"])
    assert done.exit_code == 0, done.output
    assert yaml.safe_load(Path("runs/cli/recipe.yaml").read_text()) == to_dict(load_recipe("r.yaml")) == values


def test_a_resume_with_another_rule_or_none_is_refused(tmp_path):
    path = tmp_path / "run"
    one = trainer(path, credit=mine)
    one.start()
    one.run.release()
    for credit, now in ((None, "leaf"), (other, r"other \(from Python\)"), (Rule(), r"Rule \(from Python\)")):
        with pytest.raises(RunError, match=f"credit is '{now}', was 'mine .from Python.'. Put back what differs"):
            trainer(path, credit=credit).start(resume=True)
    with pytest.raises(RunError, match=r"with rewards: \['bleu', 'polite'\], now \['bleu'\]"):
        trainer(path, credit=mine, reward_funcs=["bleu"]).start(resume=True)
    with pytest.raises(RunError, match=r"lora_alpha is 8, was 128"):
        trainer(path, credit=mine, lora=peft.LoraConfig(r=2)).start(resume=True)
    trainer(path, credit=mine).train(resume_from_checkpoint=True)


def test_a_run_of_an_earlier_version_goes_on_and_tells_what_runs_from_then_on(tmp_path, monkeypatch):
    """Its recipe and checkpoints hold the recipe's own values for what came as arguments."""
    path = tmp_path / "run"
    one = trainer(path, credit=mine)
    before = replace(one.args, model="demo", task="asterisk_qa", rewards=["bleu"], credit="leaf")
    training = (one.trained, one.optimizer, one.schedule)
    facts = {"training rows": 3, "rewards": ["bleu", "polite"]}
    dumps = json.dumps
    with monkeypatch.context() as patch:
        patch.setattr(
            json, "dumps", lambda value, **how: dumps({k: v for k, v in value.items() if k != "given"}, **how)
        )
        extra = {"best": None, "token_budget": 512, "processes": 1, "skipped_in_a_row": 0, "streaks": {}}
        run = RunDirectory.begin(before)
        Checkpoints(run, before, *training, facts=facts).save(0, validation_due=False, **extra)
        run.release()
    (state,) = path.glob("checkpoints/*/state.json")
    assert "given" not in json.loads(state.read_text())
    with pytest.raises(RunError, match="seed is 1, was 0"):
        trainer(path, credit=mine, seed=1).start(resume=True)
    trainer(path, credit=mine).train(resume_from_checkpoint=True)
    assert yaml.safe_load((path / "recipe.yaml").read_text())["credit"] == "mine (from Python)"
    with pytest.raises(RunError, match="credit is 'leaf', was 'mine"):
        trainer(path).start(resume=True)
