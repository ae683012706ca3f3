"""What is wrong with a recipe is said before a model is assembled, looked up or loaded, by every command."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from leaf.commands import doctor
from leaf.commands.doctor import examine
from leaf.commands.main import app
from leaf.config import load_recipe
from leaf.errors import LeafError, ModelError
from tests.helpers import tiny

STAGES = {"rl": ("train",), "sft": ("train", "sft"), "align": ("train", "align")}
# Overrides that are wrong in every stage, and what is said.
ALWAYS = [
    ("device=cdua", "device is 'cdua'"),
    ("device=cuda:99", "device is 'cuda:99'"),
    ("learning_rat=1", "Did you mean 'learning_rate'"),
    ("dtype=float23", "Did you mean 'float32'"),
    ("plugins=[nosuch.py]", "The plugin 'nosuch.py' cannot be imported"),
    ("projector=nosuch.safetensors", "The projector nosuch.safetensors does not exist"),
]
WITH_ROWS = [
    ("task=asterisk_q", "Did you mean 'asterisk_qa'"),
    ("task=nosuch.jsonl", "nosuch.jsonl"),
    ("columns={reference: answr}", "has no reference"),
]
LORA = [
    ("lora_layers=[q_prj]", "has no linear layer 'q_prj'; it has .* Did you mean 'q_proj'"),
    ("lora_layers=[]", "lora_layers is empty"),
    ("layers_to_transform=[]", r"layers_to_transform is \[\]; name the decoder's layers by their numbers from 0"),
    ("layers_to_transform=[3,-1]", r"layers_to_transform is \[3, -1\]; name"),
    ("best_metric=blue", "The metric 'blue' is unknown.* Did you mean 'bleu'"),
]
ROLLOUTS = [
    ("credit=leaff", "The credit rule 'leaff' is unknown.* Did you mean 'leaf'"),
    ("credit_options={max_boundary: 2}", "option max_boundary. Did you mean 'max_boundaries'"),
    ("credit_options={std_floor: 2}", "does not take the option std_floor. It is an option of grpo"),
    ("credit_options={max_boundaries: two}", "max_boundaries of the credit rule leaf is 'two'.* a whole number"),
    ("credit_options=5", "credit_options is 5; give a mapping"),
    ("rewards=[blue]", "The reward function 'blue' is unknown.* Did you mean 'bleu'"),
    ("rewards=[nosuch.py:mine]", "cannot be imported"),
    ("reward_weights=[1, 2]", "came with weights"),
    ("reward_options={chrf: {}}", "none of the rewards"),
    ("reward_options={judge: 5}", "reward_options.judge is 5; give a mapping"),
    ("track_with=tensorbord", "track_with is 'tensorbord'.* Did you mean 'tensorboard'"),
]
TRAINING = [
    ("train_split=trian", "trian"),
    ("eval_split=validaton", "validaton"),
    ("output_dir=taken", "The run directory taken exists already"),
]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A manifest and a recipe for each stage, on the embedded model, where every way to a model raises."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", np.full(8000, 0.1), 16000)
    row = {"prompt": "Say", "audio": "a.wav"}
    (tmp_path / "data.jsonl").write_text(
        "\n".join(json.dumps(row | {"split": split, "reference": split}) for split in ("train", "validation", "test"))
    )
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/file").touch()
    for stage in STAGES:
        (tmp_path / f"{stage}.yaml").write_text(f"stage: {stage}\nmodel: demo\ntask: data.jsonl\ndevice: cpu\n")

    def touched(*arguments, **options):
        raise AssertionError("a model was touched")

    monkeypatch.setattr("leaf.model.demo.build_base_model", touched)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", touched)
    return tmp_path


def refused(message, *arguments):
    with pytest.raises(LeafError, match=message) as error:
        CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert "\n" not in str(error.value)


def test_without_a_mistake_the_model_is_what_comes_next(project):
    for stage, commands in STAGES.items():
        for command in commands:
            with pytest.raises(AssertionError, match="a model was touched"):
                CliRunner().invoke(app, [command, f"{stage}.yaml"], catch_exceptions=False)
    for command in (["evaluate", "rl.yaml", "--with-base"], ["demo", "--recipe", "rl.yaml"]):
        with pytest.raises(AssertionError, match="a model was touched"):
            CliRunner().invoke(app, command, catch_exceptions=False)


@pytest.mark.parametrize(("override", "message"), [*ALWAYS, *WITH_ROWS, *LORA, *ROLLOUTS, *TRAINING])
def test_rl(project, override, message):
    refused(message, "train", "rl.yaml", override)
    refused(message, "demo", "--recipe", "rl.yaml", override)
    if (override, message) not in TRAINING:
        refused(message, "evaluate", "rl.yaml", "--with-base", override)


@pytest.mark.parametrize(("override", "message"), [*ALWAYS, *LORA, *ROLLOUTS])
def test_merge(project, override, message):
    (project / "adapter").mkdir()
    refused(message, "merge", "rl.yaml", override, "--adapter", "adapter", "--out", "merged")


@pytest.mark.parametrize(("override", "message"), [*ALWAYS, *WITH_ROWS, *LORA, *TRAINING])
def test_sft(project, override, message):
    for command in STAGES["sft"]:
        refused(message, command, "sft.yaml", override)


@pytest.mark.parametrize(("override", "message"), [*ALWAYS, *WITH_ROWS, *TRAINING])
def test_align(project, override, message):
    for command in STAGES["align"]:
        refused(message, command, "align.yaml", override)


@pytest.mark.parametrize(("override", "message"), [one for one in [*LORA, *ROLLOUTS] if "give a mapping" not in one[1]])
def test_doctor_finds_the_same(project, monkeypatch, override, message):
    def absent(*arguments, **options):
        raise ModelError("There is no model here.")

    monkeypatch.setattr("leaf.commands.doctor.describe_model", absent)
    found = [finding.found for finding in examine(load_recipe("rl.yaml", [override])) if finding.state == "fails"]
    assert any(re.search(message, text) for text in found)


def test_what_belongs_to_one_command(project, monkeypatch):
    refused("Did you mean 'asterisk_fr'", "sft", "sft.yaml", "extra_tasks=[asterisk_f]")
    rows = [{**json.loads(line), "level": 1} for line in (project / "data.jsonl").read_text().splitlines()]
    (project / "numbers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (project / "words.jsonl").write_text("".join(json.dumps({**row, "level": "easy"}) + "\n" for row in rows))
    kinds = r"different kinds in the column level: Value\('int64'\) and Value\('string'\)"
    refused(kinds, "sft", "sft.yaml", "task=numbers.jsonl", "extra_tasks=[words.jsonl]")
    refused("only stage rl has trackers|trackers go with stage rl", "sft", "sft.yaml", "track_with=tensorboard")
    refused("tset", "evaluate", "rl.yaml", "--with-base", "--split", "tset")
    refused("blue", "evaluate", "rl.yaml", "--with-base", "--metrics", "blue")
    refused("nosuch", "evaluate", "rl.yaml", "--adapter", "nosuch")
    distinct = ("rollout=distinct", "credit=unordered_set", "top_p=1")
    refused("`leaf forks` samples independent completions", "forks", "rl.yaml", *distinct)
    refused("nosuch", "merge", "rl.yaml", "--adapter", "nosuch", "--out", "merged")
    (project / "adapter").mkdir()
    (project / "adapter/adapter_model.safetensors").touch()
    (project / "adapter/adapter_config.json").write_text("{}")
    refused("taken exists and is left as it is", "merge", "rl.yaml", "--adapter", "adapter", "--out", "taken")
    monkeypatch.setenv("WORLD_SIZE", "9")
    refused("prompts_per_rollout is 6 for 9 processes", "train", "rl.yaml")
    refused("one process and was launched with 9", "sft", "sft.yaml")


def test_rows_without_references_go_with_what_reads_none(project):
    rows = [{"prompt": f"Say {split}", "audio": "a.wav", "split": split} for split in ("train", "validation")]
    (project / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (project / "own.py").write_text(
        "def short(completions, **columns):\n    return [-len(text) for text in completions]\n"
    )
    own = "rewards=[own.py:short]"
    refused("The reward function bleu takes 'reference' by name", "train", "rl.yaml")
    refused("The validation metric bleu compares answers with `reference`, .* eval_every=0", "train", "rl.yaml", own)
    refused("Stage sft imitates `reference`, and the rows have only the columns", "train", "sft.yaml")
    refused("Stage align learns to write `reference`", "train", "align.yaml", "eval_every=0")
    with pytest.raises(AssertionError, match="a model was touched"):
        CliRunner().invoke(app, ["train", "rl.yaml", own, "eval_every=0"], catch_exceptions=False)


def test_doctor_says_what_rows_lack_and_where_validation_is_training(project):
    rows = [{"prompt": f"Say {split}", "audio": "a.wav", "split": split} for split in ("train", "validation")]
    (project / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = load_recipe("rl.yaml", ["train_split=validation"])
    found = {one.subject: one for one in doctor._data(config, None, None)}
    assert "The reward function bleu takes 'reference' by name" in found["columns"].found
    assert "train_split and eval_split are both validation" in found["validation"].found


def test_languages_that_bleu_cannot_score_together_are_refused_first(project):
    row = {"prompt": "Say", "audio": "a.wav"}
    splits = [("train", "de"), ("validation", "de"), ("validation", "zh")]
    rows = [{**row, "split": split, "reference": f"{split} {one}", "reference_language": one} for split, one in splits]
    (project / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for command in ("rl", "sft"):
        refused("best_metric is bleu, which cannot be measured in validation", "train", f"{command}.yaml")
        with pytest.raises(AssertionError, match="a model was touched"):
            CliRunner().invoke(app, ["train", f"{command}.yaml", "best_metric=chrf"], catch_exceptions=False)
        found = {one.subject: one for one in doctor._data(load_recipe(f"{command}.yaml"), None, None)}
        assert "best_metric is bleu, which cannot be measured in validation" in found["columns"].found


def test_doctor_assembles_no_model(project, monkeypatch, tmp_path):
    """It makes configuration and processor from the parts; with settings that fail, too."""
    tiny_config, tiny_processor = tiny.tiny_model()[0].config, tiny.tiny_model()[1]
    monkeypatch.setenv("LEAF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("leaf.model.demo._described", lambda *parts: (tiny_config, tiny_processor))
    for name in ("package_file", "_whisper"):
        monkeypatch.setattr(
            f"leaf.model.demo.{name}", lambda *arguments: SimpleNamespace(parent="", name="", config=None)
        )
    for name in ("AutoConfig", "AutoTokenizer"):
        monkeypatch.setattr(f"leaf.model.demo.{name}.from_pretrained", lambda *arguments, **options: None)
    for override in ("seed=0", "credit=leaff"):
        (model,) = [found for found in examine(load_recipe("rl.yaml", [override])) if found.subject == "model"]
        assert model.state == "ok"
        assert f"The first run assembles it: 0.69 GB in {tmp_path}/cache/demo-model" in model.found
    assert not (tmp_path / "cache").exists()
