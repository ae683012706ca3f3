"""What the README shows runs."""

import re
import shlex
import tomllib
from pathlib import Path

from leaf.commands.main import app
from leaf.config import load_recipe
from leaf.evaluation.systems import name_systems
from tests.pages.shown import ROOT, code_blocks

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_the_python_example_trains(project):
    small = {"max_steps": 1, "num_completions": 2, "max_new_tokens": 3, "prompts_per_rollout": 2, "device": "cpu"}
    (code,) = code_blocks(README, "python")
    shortened = code.replace("LeafConfig(", "LeafConfig(**small, ")
    assert shortened != code
    exec(shortened, {"small": small})
    assert Path("runs/words/last/adapter_model.safetensors").is_file()


def test_commands_name_existing_subcommands_recipes_and_keys():
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {group.name for group in app.registered_groups}
    commands = re.findall(r"^    leaf (.*)$", TEXT, flags=re.M)
    assert commands
    for command in commands:
        name, *arguments = shlex.split(command, comments=True)
        assert name in known
        overrides = [word for word in arguments if "=" in word]
        for recipe in (word for word in arguments if word.endswith(".yaml")):
            if not recipe.startswith("runs/"):  # a run has written it; tests/pages/test_shown.py runs such commands
                load_recipe(ROOT / recipe, overrides)


def test_the_environment_is_activated_before_the_first_command():
    for page in ("README.md", "docs/quickstart.md"):
        lines = re.findall(r"^    (make|leaf|\. \.venv/bin/activate)", (ROOT / page).read_text(), flags=re.M)
        assert lines.index(". .venv/bin/activate") < lines.index("leaf"), page


def test_make_demo_goes_on_where_it_was_interrupted():
    recipe = (ROOT / "Makefile").read_text().partition("\ndemo:")[2].splitlines()[1]
    assert recipe.endswith("/leaf demo --resume")


def test_the_files_that_are_compared_are_those_that_an_evaluation_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/mine/best").mkdir(parents=True)
    Path("runs/mine/best/adapter_config.json").touch()
    trained, compared = (re.search(rf"^    leaf {name} (.*)$", TEXT, flags=re.M) for name in ("train", "compare"))
    assert trained
    assert compared
    model = re.search(r"model=(\S+)", trained[1])
    assert model
    names = name_systems(model[1], ["runs/mine/best"], with_base=True)
    assert re.findall(r"\S+\.jsonl", compared[1]) == [f"scores/{name}.jsonl" for name in names]


def test_every_shipped_recipe_resolves():
    for recipe in sorted((ROOT / "recipes").glob("*.yaml")):
        assert load_recipe(recipe).output_dir == f"runs/{recipe.stem}"


def test_version_is_the_same_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / "CITATION.cff").read_text(), flags=re.M)
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert newest
    assert newest[1] == version
