"""What the README shows runs."""

import re
import shlex
from pathlib import Path

import torch

from leaf.commands.main import app
from leaf.config import load_recipe
from leaf.evaluation.evaluate import name_systems

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()


def test_the_first_example_runs_and_gives_one_advantage_per_token():
    block = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)[0]
    *body, last = block.strip().splitlines()
    names: dict = {}
    exec("\n".join(body), names)
    advantages = eval(last.split("#")[0], names)
    assert advantages.shape == names["tokens"].shape
    assert torch.isfinite(advantages).all()
    assert float(advantages.sum()) != 0.0


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
            if not recipe.startswith("runs/"):  # what a run has written; tests/test_cli.py goes on with one
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
