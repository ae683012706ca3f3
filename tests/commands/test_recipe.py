"""`leaf recipe STAGE` writes a recipe to begin with, and recipes that come with leaf are found from any folder."""

import dataclasses
import re

import pytest
import yaml
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.commands.recipe import starting_recipe
from leaf.config import STAGES, from_dict, load_recipe
from leaf.errors import ConfigError
from leaf.shipped import find_recipe, shipped_recipes
from tests.pages.shown import ROOT

FILLED = {"model": "path/or/hub-id", "task": "my.jsonl"}


def filled(stage, every=False):
    text = starting_recipe(stage, every=every)
    for key, value in FILLED.items():
        text, count = re.subn(rf"^{key}:$", f"{key}: {value}", text, flags=re.M)
        assert count == 1
    return text


@pytest.mark.parametrize("stage", STAGES)
def test_a_starting_recipe_shows_the_defaults_and_sets_only_what_it_says(stage):
    for every in (False, True):
        text = filled(stage, every)
        assert max(map(len, text.splitlines())) <= 100
        given = from_dict(yaml.safe_load(text))
        # With every # removed the same values come out: what stands behind it is the default.
        uncommented = yaml.safe_load(re.sub(r"^#(\w+):", r"\1:", text, flags=re.M))
        assert from_dict(uncommented) == given
        fields = {one.name: one for one in dataclasses.fields(STAGES[stage])}
        wanted = {name for name, one in fields.items() if every or one.metadata["common"]} | {"stage"}
        assert wanted <= set(uncommented)
        assert len(uncommented) <= len(wanted) + (0 if every else 4)


def test_what_is_not_filled_in_is_asked_for(tmp_path):
    (tmp_path / "my.yaml").write_text(starting_recipe("rl"))
    with pytest.raises(ConfigError, match=r"model has no value; give text \(checkpoint directory, hub id"):
        load_recipe(tmp_path / "my.yaml")
    with pytest.raises(ConfigError, match=r"task has no value; give text \(task, or path of a manifest"):
        load_recipe(tmp_path / "my.yaml", ["model=demo"])


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_writes_the_recipe_and_nothing_else(stage):
    written = CliRunner().invoke(app, ["recipe", stage])
    assert written.output == starting_recipe(stage)
    assert CliRunner().invoke(app, ["recipe", stage, "--all"]).output == starting_recipe(stage, every=True)


def test_recipes_that_come_with_leaf_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(shipped_recipes()) > 15
    for name in shipped_recipes():
        assert find_recipe(name).samefile(ROOT / name)
    config = load_recipe("recipes/qa-leaf.yaml", ["recipes/published/small-gpu.yaml"])
    assert config.output_dir == "runs/qa-leaf-small-gpu"
    (tmp_path / "mine.yaml").write_text("extends: [recipes/qa.yaml, base.yaml]\n")
    (tmp_path / "base.yaml").write_text("seed: 7\n")
    mine = load_recipe("mine.yaml")
    assert (mine.learning_rate, mine.seed) == (4e-4, 7)


def test_a_users_own_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/qa.yaml").write_text("seed: 5\n")
    assert load_recipe("recipes/qa.yaml").seed == 5
    assert load_recipe("recipes/qa-leaf.yaml").seed == 0  # of leaf, which extends leaf's own qa.yaml


def test_a_recipe_that_does_not_exist_gets_a_hint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"Did you mean 'recipes/qa-leaf\.yaml'"):
        load_recipe("recipes/qa-leef.yaml")
    with pytest.raises(ConfigError, match=r"`leaf recipe rl > my\.yaml` writes one to begin with"):
        load_recipe("my.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_recipe("recipes/../../pyproject.yaml")
