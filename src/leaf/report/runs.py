"""Runs as the report shows them: their lines, what they have in common, and by what their methods differ."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leaf.config import RunConfig, to_dict
from leaf.errors import RunError
from leaf.runs.directory import RunDirectory

# Runs that differ in nothing else are seeds of one method.
_OF_A_SEED = ("seed", "output_dir", "track_with", "device")


@dataclass(frozen=True)
class ShownRun:
    """Hold what the report reads of a run.

    Attributes:
        directory: the run directory.
        recipe: its resolved recipe.
        name: the last part of its path, with the one before where two runs would have the same.
        method: what sets it apart from runs of other methods; the same for its other seeds.
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
        RunError: none was given, one is given twice, is no run directory or cannot be read, or none has a step yet.
    """
    if not paths:
        raise RunError("No run was given; name at least one run directory that leaf wrote.")
    resolved = [Path(path).resolve() for path in paths]
    if twice := [str(paths[i]) for i, path in enumerate(resolved) if path in resolved[:i]]:
        raise RunError(f"{twice[0]} was given twice; name every run once.")
    directories = [RunDirectory.open(path) for path in paths]
    recipes = [directory.config() for directory in directories]
    last = [path.name for path in resolved]
    names = ["/".join(path.parts[-2:]) if last.count(path.name) > 1 else path.name for path in resolved]
    names = [
        f"{name} ({names[: i + 1].count(name)})" if names.count(name) > 1 else name for i, name in enumerate(names)
    ]
    runs = [
        ShownRun(directory, recipe, name, method, list(directory.lines("metrics.jsonl")), validations)
        for directory, recipe, name, method in zip(directories, recipes, names, methods(recipes), strict=True)
        for validations in [list(directory.lines("validation.jsonl"))]
    ]
    if not any(run.steps for run in runs):
        raise RunError(f"{', '.join(names)}: no step was taken yet, so there is nothing to report.")
    return runs


def methods(recipes: Sequence[RunConfig]) -> list[str]:
    """Return for each recipe the settings in which it differs from the others, seeds aside: equal for equal recipes.

    A credit rule is named without its key; recipes that differ in nothing are named after their rule or stage.
    """
    settings = [{k: v for k, v in to_dict(recipe).items() if k not in _OF_A_SEED} for recipe in recipes]
    keys = list(dict.fromkeys(key for each in settings for key in each))
    differing = [key for key in keys if any(each.get(key) != settings[0].get(key) for each in settings)]
    texts = {key: told_apart([each.get(key) for each in settings]) for key in differing}
    named = []
    for number, each in enumerate(settings):
        parts = {key: texts[key][number] for key in differing if key in each}
        if not parts:
            key = "credit" if "credit" in each else "stage"
            parts = {key: told(each[key])}
        plain = [parts.pop(key) for key in ("stage", "credit") if key in parts]
        named.append(", ".join([*plain, *(f"{key} {value}" for key, value in parts.items())]))
    return named


def told_apart(values: Sequence[Any]) -> list[str]:
    """Return the values of a setting as texts that differ where they do: of paths as many last parts as that takes."""
    distinct = [value for i, value in enumerate(values) if value not in values[:i]]
    texts, before, parts = [told(value) for value in distinct], [], 1
    while len(set(texts)) < len(texts) and texts != before:
        parts += 1
        texts, before = [told(value, parts) for value in distinct], texts
    if len(set(texts)) < len(texts):  # of different kinds, as the list of two words and the text of both
        texts = [json.dumps(value, ensure_ascii=False) for value in distinct]
    return [texts[distinct.index(value)] for value in values]


def told(value: Any, parts: int = 1) -> str:
    """Return a setting as text; of a path its last parts alone."""
    if isinstance(value, dict):
        return " ".join(f"{key} {told(one, parts)}" for key, one in value.items()) or "none"
    if isinstance(value, list):
        return " ".join(told(one, parts) for one in value) or "none"
    return "/".join(Path(value).parts[-parts:]) or value if isinstance(value, str) else str(value)
