"""Runs as the report shows them: their lines, their names, and how their methods differ."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaf.config import RunConfig, to_dict
from leaf.errors import RunError
from leaf.fields import inner_without
from leaf.runs.directory import RunDirectory
from leaf.text import unique_names

LONGEST = 40  # characters of a method's name that says its settings; it is to be read in a key and a table
OWN_COLOUR = {"leaf": 0, "grpo": 1}  # credit rule → its number in the palette of assets/plots.js


@dataclass(frozen=True)
class ShownRun:
    """What the report reads of a run.

    Attributes:
        directory: the run directory.
        recipe: its resolved recipe.
        name: the last part of its path, or as many as tell it apart from other runs.
        method: the name of all runs whose settings are the same but for the seed.
        steps: the lines of metrics.jsonl.
        validations: the lines of validation.jsonl.
    """

    directory: RunDirectory
    recipe: RunConfig
    name: str
    method: str
    steps: list[dict[str, Any]]
    validations: list[dict[str, Any]]


def read_runs(paths: Sequence[str | Path]) -> list[ShownRun]:
    """Read run directories of any stage.

    Raises:
        RunError: no run is given, one is given twice or cannot be read, or none has taken a step yet.
    """
    if not paths:
        raise RunError("No run was given. Name at least one run directory that leaf wrote.")
    resolved = [Path(path).resolve() for path in paths]
    if twice := [str(paths[i]) for i, path in enumerate(resolved) if path in resolved[:i]]:
        raise RunError(f"{twice[0]} was given twice. Name every run once.")
    directories = [RunDirectory.open(path) for path in paths]
    recipes = [directory.what_ran() for directory in directories]
    names = unique_names([path.name for path in resolved], resolved)
    runs = [
        ShownRun(directory, recipe, name, method, list(directory.lines("metrics.jsonl")), validations)
        for directory, recipe, name, method in zip(directories, recipes, names, methods(recipes, names), strict=True)
        for validations in [list(directory.lines("validation.jsonl"))]
    ]
    if not any(run.steps for run in runs):
        raise RunError(f"{', '.join(names)}: no step was taken yet, so there is nothing to report. Train first.")
    return runs


def stage_seconds(steps: Sequence[dict[str, Any]]) -> tuple[float, dict[str, float]]:
    """Compute the mean seconds of a step, and those of each of its stages; `other` is what no stage accounts for.

    Args:
        steps: lines of metrics.jsonl. Those without seconds are left out; without any there are no stages.
    """
    timed = [row for row in steps if "seconds/step" in row]
    if not timed:
        return 0.0, {}
    whole = sum(row["seconds/step"] for row in timed) / len(timed)
    columns = dict.fromkeys(key for row in timed for key in row if key.startswith("seconds/") and key != "seconds/step")
    means = {key.removeprefix("seconds/"): sum(row.get(key, 0.0) for row in timed) / len(timed) for key in columns}
    return whole, means | {"other": max(whole - sum(means.values()), 0.0)}


# -- how runs differ ---------------------------------------------------------------------------------------------------
def methods(recipes: Sequence[RunConfig], names: Sequence[str]) -> list[str]:
    """Name the method of each run; runs that learn by equal settings, seeds aside, are runs of one method.

    Methods are named by the settings in which they differ, a credit rule without its key. If that would be long, they
    are named after their runs. Recipes that differ in nothing are named after their rule or stage.
    """
    settings = [_taught_by(recipe) for recipe in recipes]
    keys = list(dict.fromkeys(key for each in settings for key in each))
    differing = [key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)]
    texts = {key: told_apart([each.get(key) for each in settings]) for key in differing}
    named = []
    for number, each in enumerate(settings):
        parts = {key: texts[key][number] for key in differing if key in each}
        if not parts:
            key = "credit" if "credit" in each else "stage"
            parts = {key: told(each[key])}
        without_key = [parts.pop(key) for key in ("stage", "credit") if key in parts]
        named.append(", ".join([*without_key, *(f"{key} {value}" for key, value in parts.items())]))
    if all(len(name) <= LONGEST for name in named):
        return named
    of_method = [[name for name, other in zip(names, settings, strict=True) if other == each] for each in settings]
    return [its[0] if len(its) == 1 else f"{its[0]} and {len(its) - 1} more" for its in of_method]


def _taught_by(recipe: RunConfig) -> dict[str, Any]:
    """Take the settings of a recipe on which it depends what is learned: those that a resumed run may not change."""
    fields = {one.name: one.metadata for one in dataclasses.fields(recipe)}
    settings = {key: value for key, value in to_dict(recipe).items() if fields[key]["resume"] not in ("free", "bits")}
    for key, value in settings.items():
        if free := fields[key]["free_options"]:
            settings[key] = inner_without(value, free)
    settings.pop("seed")
    return settings


def differences(recipes: Sequence[RunConfig]) -> list[str]:
    """List the keys in which recipes differ, without the seed and the run directory, which the runs' table shows."""
    every = [to_dict(recipe) for recipe in recipes]
    keys = dict.fromkeys(key for each in every for key in each if key not in ("seed", "output_dir"))
    return [key for key in keys if any(each.get(key) != every[0].get(key) for each in every)]


def rules_of(runs: Sequence[ShownRun]) -> dict[str, str]:
    """Map the name of each method to its credit rule, or to its stage where it has none."""
    return {run.method: getattr(run.recipe, "credit", run.recipe.stage) for run in runs}


def colours(rules: Sequence[str]) -> list[int]:
    """Choose the colour of each method by its credit rule: LEAF and GRPO have the same one on every page.

    Args:
        rules: the credit rule of each method, or its stage.

    Returns:
        Per method its number in the palette. The first method of a rule in `OWN_COLOUR` has that rule's colour.
    """
    chosen: list[int] = []
    for number, rule in enumerate(rules):
        own = OWN_COLOUR.get(rule) if rule not in rules[:number] else None
        free = len(OWN_COLOUR) + sum(one >= len(OWN_COLOUR) for one in chosen)
        chosen.append(free if own is None else own)
    return chosen


def told_apart(values: Sequence[Any]) -> list[str]:
    """Write the values of a setting as different texts where they differ: paths with as many last parts as it takes."""
    distinct = [value for i, value in enumerate(values) if value not in values[:i]]
    texts, before, parts = [told(value) for value in distinct], [], 1
    while len(set(texts)) < len(texts) and texts != before:
        parts += 1
        texts, before = [told(value, parts) for value in distinct], texts
    if len(set(texts)) < len(texts):  # of different types: a list of two words, and one text of both
        texts = [json.dumps(value, ensure_ascii=False) for value in distinct]
    return [texts[distinct.index(value)] for value in values]


def told(value: Any, parts: int = 1) -> str:
    """Write a setting as text; of a path only its last parts."""
    if isinstance(value, dict):
        return " ".join(f"{key} {told(one, parts)}" for key, one in value.items()) or "none"
    if isinstance(value, list):
        return " ".join(told(one, parts) for one in value) or "none"
    return "/".join(Path(value).parts[-parts:]) or value if isinstance(value, str) else str(value)
