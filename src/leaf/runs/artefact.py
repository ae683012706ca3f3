"""Find the adapter that a command means, of a run or in a folder, and the recipe that it was trained by."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import yaml

from leaf.config import RunConfig, load_recipe, overridden_keys
from leaf.errors import ConfigError
from leaf.files import read_json
from leaf.runs.directory import RunDirectory, bring_back
from leaf.runs.lost import lost_adapter
from leaf.runs.provenance import refuse_missing
from leaf.runs.pushing import adapter_folder


class Artefact(NamedTuple):
    """An adapter's folder, and the recipe that says on what and how it was trained."""

    folder: Path
    config: RunConfig


def find_artefact(source: Path, overrides: list[str] | None = None, *, which: str | None = None) -> Artefact:
    """Find an adapter and its recipe.

    Args:
        source: a run directory, or a folder with an adapter. The recipe is that of the run around it; elsewhere one is
            made of the base model that the adapter names.
        overrides: key=value laid over the recipe, such as model=FOLDER.
        which: best or last, of a run; default best where there is one.

    Raises:
        ConfigError: there is no adapter, or its model is not known.
        RunError: the adapter is damaged, or another name is given.
    """
    run = next((RunDirectory(place) for place in (source, source.parent) if RunDirectory(place).holds_run()), None)
    folder = source
    if run is not None and run.path == source:
        folder = adapter_folder(run, which)
    elif which is not None:
        raise ConfigError(f"--adapter is {which!r}, which names an adapter of a run, and {source} is no run directory.")
    bring_back(folder)
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{folder} has no adapter (adapter_config.json). Give a run directory, or a folder with an adapter, such "
            "as best or last of a run."
        )
    if lost := lost_adapter(folder):
        raise ConfigError(f"{source} has no adapter to export: {lost}. Name another one (best, last), or a copy.")
    if run is not None:
        recipe = run.path / "recipe.yaml"
        refuse_missing(recipe, ("model",), overridden_keys(overrides))
        return Artefact(folder, load_recipe(recipe, overrides))
    return Artefact(folder, _of_base(folder, overrides))


def _of_base(folder: Path, overrides: list[str] | None) -> RunConfig:
    """Make a recipe for an adapter that is in no run: the base model that it names, and what the command line sets."""
    base = (read_json(folder / "adapter_config.json") or {}).get("base_model_name_or_path")
    if not base and "model" not in overridden_keys(overrides):
        raise ConfigError(f"{folder} does not say on which model it was trained. Set model=..., a folder or hub id.")
    with tempfile.TemporaryDirectory() as place:
        recipe = Path(place) / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({"model": base} if base else {}), encoding="utf-8")
        return load_recipe(recipe, overrides)
