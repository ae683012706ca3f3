import dataclasses
import json
import re
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file
from typer.testing import CliRunner

from leaf.commands import main as cli
from leaf.commands.doctor import examine
from leaf.commands.main import app
from leaf.commands.running import load_policy, make_trainer, run_recipe
from leaf.config import GROUPS, LeafConfig, load_recipe
from leaf.errors import ConfigError, LeafError, ModelError, RunError, RunInterrupted
from leaf.evaluation import model_metrics
from leaf.model.budget import AUTOMATIC_BUDGET
from leaf.model.policy import Policy
from leaf.runs.checkpoints import space_needed
from leaf.train.trainer import RLTrainer
from tests.helpers import tiny
from tests.helpers.project import save, write_manifest


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A tiny checkpoint, a manifest of wave files, and recipes for the three stages."""
    monkeypatch.chdir(tmp_path)
    model, processor = tiny.tiny_model()
    save(model, processor, "model")
    write_manifest(tmp_path / "data.jsonl")
    shared = {"model": "model", "task": "data.jsonl", "device": "cpu", "max_steps": 2, "eval_items": 2}
    lora = {"lora_r": 2, "lora_dropout": 0.0, "max_new_tokens": 5}
    rl = {**shared, **lora, "prompts_per_rollout": 2, "num_completions": 3}
    for name, values in {
        "rl": rl,
        "sft": {**shared, **lora, "stage": "sft", "batch_size": 2},
        "align": {**shared, "stage": "align", "batch_size": 2},
    }.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


def run(*arguments):
    result = CliRunner().invoke(app, list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_the_three_stages_and_an_evaluation(project):
    run("align", "align.yaml")
    assert (project / "runs/align/projector.safetensors").is_file()
    run("sft", "sft.yaml", "projector=runs/align/projector.safetensors")
    assert (project / "runs/sft/last/adapter_model.safetensors").is_file()
    shown = run("evaluate", "rl.yaml", "--adapter", "runs/sft/last", "--greedy", "--out", "scored")
    projector = project / "runs/sft/last/projector.safetensors"
    assert (
        "sft-last: with runs/sft/last/projector.safetensors, the projector that was trained with the adapter" in shown
    )
    made_with = json.loads((project / "scored/sft-last.meta.json").read_text())["made_with"]
    assert made_with["model"]["projector_sha256"] == model_metrics.file_sha256(projector)
    merged = load_policy(load_recipe("rl.yaml"), project / "runs/sft/last").projector.state_dict()
    assert all(torch.equal(merged[name], tensor) for name, tensor in load_file(projector).items())
    shown = run("merge", "rl.yaml", "--adapter", "runs/sft/last", "--out", "warm")
    assert "runs/sft/last/projector.safetensors merged in float32; serve it, or train on with `model=warm`" in shown
    card = json.loads((project / "warm/leaf_merged.json").read_text())
    assert card["projector_sha256"] == model_metrics.file_sha256(project / "runs/sft/last/projector.safetensors")
    assert "step 2/2" in run("train", "rl.yaml", "model=warm", "output_dir=runs/warm")
    with pytest.raises(ModelError, match="warm exists and is left as it is"):
        run("merge", "rl.yaml", "--adapter", "runs/sft/last", "--out", "warm")
    assert "step 2/2" in run("train", "rl.yaml", "credit=grpo", "seed=1")
    assert "credit: grpo" in (project / "runs/rl/recipe.yaml").read_text()
    shown = run("evaluate", "runs/rl/recipe.yaml", "--adapter", "runs/rl/last", "--passes", "2", "--out", "scored")
    assert "bleu" in shown
    assert "2 passes" in shown
    predictions = [json.loads(line) for line in (project / "scored/rl-last.jsonl").read_text().splitlines()]
    assert [row["seed"] for row in predictions] == [42] * 4 + [43] * 4


def test_an_adapter_caught_between_two_renames_is_found_by_the_commands(project):
    run("sft", "sft.yaml", "max_steps=1")
    adapter = project / "runs/sft/last"
    for command in (("evaluate", "rl.yaml", "--greedy"), ("merge", "rl.yaml")):
        adapter.rename(adapter.with_name("last.leaf-old"))
        run(*command, "--adapter", "runs/sft/last", "--out", command[0])
        assert not adapter.with_name("last.leaf-old").exists()


def test_resume_continues_a_finished_run_without_harm(project):
    run("train", "rl.yaml")
    before = (project / "runs/rl/metrics.jsonl").read_text()
    assert "resumed" in run("train", "runs/rl/recipe.yaml", "--resume")
    assert (project / "runs/rl/metrics.jsonl").read_text() == before


def test_resume_finds_the_run_of_a_recipe_from_another_folder(project, monkeypatch):
    (project / "recipes").mkdir()
    (project / "rl.yaml").rename(project / "recipes/rl.yaml")
    absolute = [f"model={project}/model", f"task={project}/data.jsonl"]
    run("train", "recipes/rl.yaml", *absolute)
    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    for recipe in ("../runs/rl/recipe.yaml", "../recipes/rl.yaml"):
        said = run("train", recipe, *absolute, "--resume")
        assert re.search(r"continuing the run in /\S+/runs/rl, not in runs/rl below this folder", said)
        assert re.search(r"resumed \S+runs/rl after step 2", said)
    assert not (project / "elsewhere/runs").exists()
    said = run("train", "../recipes/rl.yaml", *absolute, "output_dir=runs/new", "--resume")
    assert "runs/new has no run yet, so there is nothing to resume: training starts at step 0 there" in said


def test_demo_prints_the_table_and_keeps_the_predictions(project):
    shown = run("demo", "--recipe", "rl.yaml", "--items", "3", "--resume")  # as `make demo` does
    assert "nothing to resume: training starts at step 0" in shown
    assert "held-out test, greedy decoding" in shown
    assert "The run is in runs/rl" in shown
    assert len((project / "runs/rl/test_after.jsonl").read_text().splitlines()) == 3
    for name in ("before", "after"):
        made_with = json.loads((project / f"runs/rl/test_{name}.meta.json").read_text())["made_with"]
        assert (made_with["task"], made_with["split"]) == ("data.jsonl", "test")


def test_demo_takes_a_task_of_ones_own_without_utterances(project):
    """What is resampled is then a row; and a manifest's columns may have other names."""
    (project / "tasks_without.py").write_text(
        "from leaf.data import TASKS, Task, load\n"
        "def rows(split):\n"
        "    return load('data.jsonl', split).remove_columns('utterance').to_list()\n"
        "TASKS['without'] = Task('rows without utterances', 'CC0', ('train', 'validation', 'test'), rows)\n"
    )
    options = ("demo", "--recipe", "rl.yaml", "--items", "2", "max_steps=1", "eval_every=0")
    assert "held-out test" in run(*options, "task=without", "plugins=[tasks_without.py]", "output_dir=runs/without")
    (project / "own.jsonl").write_text((project / "data.jsonl").read_text().replace('"reference"', '"answer"'))
    assert "held-out test" in run(*options, "task=own.jsonl", "columns={reference: answer}", "output_dir=runs/own")


def test_an_interrupted_demo_goes_on_to_the_same_table(project, monkeypatch):
    """Scores before are those of the model without the adapter, which the resumed run has trained already."""
    options = ("demo", "--recipe", "rl.yaml", "--items", "3", "save_every=1", "rewards=[cer]", "learning_rate=0.1")
    whole = run(*options, "output_dir=runs/whole")
    update, calls = RLTrainer.update, []

    def killed(self, rollout):
        calls.append(rollout.step)
        if len(calls) == 2:
            raise RuntimeError("killed")
        return update(self, rollout)

    monkeypatch.setattr(RLTrainer, "update", killed)
    with pytest.raises(RuntimeError, match="killed"):
        run(*options, "output_dir=runs/cut")
    with pytest.raises(RunError, match=r"continue it with `--resume`"):
        run(*options, "output_dir=runs/cut")
    resumed = run(*options, "output_dir=runs/cut", "--resume")
    assert calls == [1, 2, 2]
    table = [line for line in whole.splitlines() if "│" in line]
    assert len(table) >= 3
    assert [line for line in resumed.splitlines() if "│" in line] == table
    before, after = (
        [json.loads(line)["prediction"] for line in (project / "runs/whole" / name).read_text().splitlines()]
        for name in ("test_before.jsonl", "test_after.jsonl")
    )
    assert before != after  # or the scores before could be those after
    for name in ("test_before.jsonl", "test_after.jsonl"):
        assert (project / "runs/cut" / name).read_text() == (project / "runs/whole" / name).read_text()
    again = run(*options, "output_dir=runs/cut", "--resume")
    last, once_more = (
        [re.sub(r"[\d.]+ minutes", "", line) for line in said.splitlines()[-9:-1]] for said in (resumed, again)
    )
    assert once_more == last
    assert calls == [1, 2, 2]  # a finished demo shows its table again


@pytest.mark.parametrize(
    ("recipe", "override", "subject", "found"),
    [
        ("rl", "track_with=wandb", "settings", "track_with is 'wandb', whose package is not installed"),
        ("sft", "track_with=tensorboard", "settings", "only stage rl has trackers"),
        ("rl", "best_metric=meteor", "settings", "WordNet"),
        ("rl", "rewards=[nosuch]", "rewards", "nosuch"),
        ("rl", "reward_weights=[1, 2]", "rewards", "came with weights"),
        ("rl", "credit=nosuch", "credit", "The credit rule 'nosuch' is unknown"),
        ("rl", "credit_options={nosuch: 1}", "credit", "nosuch"),
        ("rl", "attention=flash_attention_2", "model", "cannot be built without a further package: FlashAttention2"),
        ("sft", "lora_layers=[nosuch]", "model", "nosuch"),
    ],
)
def test_doctor_refuses_what_training_refuses(project, monkeypatch, recipe, override, subject, found):
    monkeypatch.setattr("leaf.train.schedule.get_available_trackers", list)  # no tracker's package
    monkeypatch.setenv("NLTK_DATA", str(project))
    monkeypatch.setattr("nltk.data.path", [])
    model_metrics._build_once.cache_clear()  # another test may have had METEOR
    config = load_recipe(f"{recipe}.yaml", [override])
    (finding,) = [finding for finding in examine(config) if finding.state == "fails"]
    assert finding.subject == subject
    assert found in finding.found
    with pytest.raises(LeafError) as refused:
        run_recipe(config)
    assert str(refused.value) == finding.found


def test_doctor_has_nothing_against_a_recipe_that_trains(project):
    for recipe in ("rl", "sft", "align"):
        assert {finding.state for finding in examine(load_recipe(f"{recipe}.yaml"))} == {"ok"}


@pytest.mark.parametrize(("missing", "fits"), [(0, True), (1, False)])
def test_doctor_and_the_trainer_ask_for_the_same_room_on_the_disk(project, monkeypatch, missing, fits):
    config = load_recipe("rl.yaml")
    assert isinstance(config, LeafConfig)
    trained = make_trainer(config).trained
    needed = space_needed(4 * sum(p.numel() for p in trained.values()), 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=needed - missing))
    (disk,) = [finding for finding in examine(load_recipe("rl.yaml")) if finding.subject == "disk"]
    assert disk.state == ("ok" if fits else "fails")
    if fits:
        run("train", "rl.yaml")
    else:
        with pytest.raises(RunError, match="for 2 checkpoints and its adapters"):
            run("train", "rl.yaml")


def test_doctor_looks_at_the_lengths_that_all_rows_state_and_at_the_test_split(project, monkeypatch):
    monkeypatch.setattr("leaf.commands.doctor._LOOKED_AT", 2)
    soundfile.write("long.wav", np.full(16000 * 3, 0.1), 16000)
    rows = [json.loads(line) for line in (project / "data.jsonl").read_text().splitlines()]
    rows += [{**rows[i], "audio": "long.wav", "split": s, "seconds": 3.0} for i, s in enumerate(("train", "test"))]
    (project / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def found(*overrides, recipe="rl.yaml"):
        said = examine(load_recipe(recipe, list(overrides)))
        return {one.subject: one for one in said if one.subject.startswith("data")}

    said = found()
    assert {subject: one.state for subject, one in said.items()} == {
        "data, train": "fails",
        "data, validation": "ok",
        "data, test": "unsure",
    }
    assert said["data, train"].found.endswith("last 0.5 to 0.8 s; too long: 1, up to 3.0 s")
    assert "with --max-seconds 2, or leave rows out; tolerate: skip passes over them." in said["data, train"].advice
    assert found("tolerate=skip")["data, train"].state == "unsure"
    assert list(found(recipe="sft.yaml")) == ["data, train", "data, validation"]
    rows[3]["seconds"] = 700.0  # milliseconds, or another file
    (project / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    wrong = found()[f"data, {rows[3].get('split')}"]
    assert wrong.state == "fails"
    assert "the row states 700 (seconds)" in wrong.found
    assert wrong.found.startswith("Row '4': The audio lasts 0.")
    skipped = found("tolerate=skip")[f"data, {rows[3].get('split')}"]
    assert skipped.state == "unsure"
    assert "cannot be used: 1, such as: Row '4': The audio lasts 0." in skipped.found
    rows[3]["seconds"] = None
    (project / "data.jsonl").write_text("\n".join(json.dumps(row) for row in rows if row["split"] != "test"))
    assert found()["data, test"].state == "unsure"
    assert "its --split names another" in found()["data, test"].advice


def test_the_token_budget_of_stage_sft_follows_from_the_memory_too(project):
    assert load_policy(load_recipe("sft.yaml")).token_budget <= AUTOMATIC_BUDGET["cpu"]
    assert load_policy(load_recipe("sft.yaml", ["token_budget=3000"])).token_budget == 3000


def test_stages_that_were_finished_resume_without_harm(project):
    for stage, log in (("align", "metrics.jsonl"), ("sft", "metrics.jsonl")):
        run(stage, f"{stage}.yaml")
        before = (project / "runs" / stage / log).read_text()
        assert "resumed" in run(stage, f"{stage}.yaml", "--resume")
        assert (project / "runs" / stage / log).read_text() == before


def test_saved_adapters_call_the_base_as_the_recipe_does(project, monkeypatch):
    """The demo's is assembled in a folder of this machine; its adapters say `demo`."""
    for module in ("leaf.model.demo", "leaf.train.making"):
        monkeypatch.setattr(f"{module}.resolve_model", lambda name, **options: str(project / "model"))
    run("train", "rl.yaml", "model=demo", "max_steps=1")
    run("sft", "sft.yaml", "model=base", "max_steps=1")
    for folder, name in (("rl", "demo"), ("sft", "base")):
        config = json.loads((project / "runs" / folder / "last/adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == name
        for file in (project / "runs" / folder).rglob("*.json*"):
            assert str(project) not in file.read_text(), file
    policy = Policy.load("model", adapter="runs/rl/last")
    policy.save_adapter("again")  # without a name of its own, as it was loaded
    assert json.loads((project / "again/adapter_config.json").read_text())["base_model_name_or_path"] == "demo"


def test_help_and_import_leaf_load_neither_torch_nor_transformers():
    """They answer at once; what is slow is imported by the command or the name that needs it."""
    help_text = "import sys; sys.argv[1:] = ['--help']; from leaf.commands.main import app; app(standalone_mode=False)"
    for what in ("import leaf, leaf.config", help_text):
        code = f"import sys\n{what}\nslow = {{'torch', 'transformers', 'datasets', 'numpy', 'peft'}} & {{*sys.modules}}"
        ran = subprocess.run([sys.executable, "-c", f"{code}\nprint('loaded:', slow)"], capture_output=True, text=True)
        assert "loaded: set()" in ran.stdout, ran.stdout + ran.stderr


def test_the_first_line_comes_before_anything_slow_is_loaded(project):
    (project / "runs/rl").mkdir(parents=True)
    (project / "runs/rl/recipe.yaml").write_text((project / "rl.yaml").read_text())
    commands = [
        ["train", "rl.yaml"],
        ["train", "runs/rl/recipe.yaml", "--resume"],
        ["sft", "sft.yaml"],
        ["align", "align.yaml"],
        ["demo", "--recipe", "rl.yaml"],
        ["evaluate", "runs/rl/recipe.yaml", "--with-base"],
        ["merge", "runs/rl/recipe.yaml", "--adapter", "a", "--out", "b"],
        ["doctor", "runs/rl/recipe.yaml"],
        ["report", "runs/rl"],
    ]
    code = f"""
import sys
from leaf.commands import main, running

class Said(Exception): pass

def say(line):
    print("said:", line, "after:", {{"torch", "transformers", "datasets", "numpy", "peft"}} & {{*sys.modules}})
    raise Said

main.say = running.say = say
for arguments in {commands!r}:
    try:
        main.app(arguments, standalone_mode=False)
    except Said:
        continue
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = ran.stdout.splitlines()
    assert len(lines) == len(commands), ran.stdout
    assert all(line.startswith("said: ") and line.endswith("after: set()") for line in lines), ran.stdout


def test_data_and_recipe_listings():
    assert "asterisk_qa" in run("data")
    assert "asterisk_fr, test: " in run("data", "show", "asterisk_fr", "--split", "test", "--rows", "1")


def test_recipe_lists_what_most_people_set_and_with_all_every_key():
    keys = [field.name for field in dataclasses.fields(LeafConfig) if field.name != "stage"]
    short, long = run("recipe"), run("recipe", "--all")
    assert 8 <= sum(f"  {key} " in short for key in keys) <= 16
    assert all(f"  {key} " in long for key in keys)
    assert [group for group in GROUPS if f"\n{group} " in long] == list(GROUPS)
    assert "recipes/published/tasks/librisqa.yaml" in short
    assert "recipes/accelerate" not in short


def test_mistakes_of_stage_and_name(project):
    for arguments, stage, command in (
        (("sft", "rl.yaml"), "sft", "leaf train rl.yaml"),
        (("align", "sft.yaml"), "align", "leaf sft sft.yaml"),
        (("evaluate", "align.yaml", "--with-base"), "rl", "leaf align align.yaml"),
    ):
        with pytest.raises(ConfigError, match=f"takes one of stage {stage}. Train with it by `{command}`"):
            run(*arguments)
    with pytest.raises(ConfigError, match="Did you mean 'max_steps'"):
        run("train", "rl.yaml", "max_step=3")
    with pytest.raises(ConfigError, match="allowed are base and demo"):
        run("demo-model", "--stage", "final")
    with pytest.raises(ConfigError, match="allowed are rl, sft, align"):
        run("recipe", "ppo")


def test_sft_is_refused_under_a_launcher(project, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process and was launched with 2"):
        run_recipe(load_recipe("sft.yaml"))
    assert not (project / "runs").exists()


@pytest.mark.parametrize(("kind", "code"), [(LeafError, 2), (RunInterrupted, 75)])
def test_main_turns_an_error_into_one_line_and_its_exit_code(monkeypatch, capsys, kind, code):
    def fail(arguments):
        raise kind("What came, what is allowed, what to do.")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    assert capsys.readouterr().err == "leaf: What came, what is allowed, what to do.\n"
