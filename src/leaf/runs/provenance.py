"""Record what a script passed to the trainer in place of the recipe's values, and refuse to guess it later.

recipe.yaml of a run stays a recipe: what a recipe can hold replaces its values there. What it cannot hold (rows,
functions, a model object) is named in provenance.json beside it, by key of the recipe: {"task": "rows"}.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import peft
import torch

from leaf.config import LoraFields
from leaf.errors import ConfigError, RunError
from leaf.model.from_recipe import recipe_lora
from leaf.model.policy import Policy
from leaf.runs.directory import RunDirectory

# Of a peft.LoraConfig: notes about itself and its place, which change nothing that is trained; the layers are apart.
_NOTES = frozenset("task_type auto_mapping peft_version base_model_name_or_path revision inference_mode".split())


class Given(NamedTuple):
    """What a script passed in place of a recipe's values, by key: values a recipe can hold, and names of the others."""

    recipe: Mapping[str, Any] = {}
    script: Mapping[str, Any] = {}


def recorded_arguments(
    model: str | Path | torch.nn.Module,
    reward_funcs: Sequence[str | Callable[..., Any]] | Callable[..., Any] | None,
    credit: str | Callable[..., Any] | None,
    lora: peft.LoraConfig | None,
    *,
    from_recipe: bool,
) -> Given:
    """Sort a trainer's arguments into what the run's recipe can hold and what only the script has.

    With `from_recipe`, model and rows are the recipe's own.
    """
    recipe: dict[str, Any] = {}
    script: dict[str, Any] = {}
    if not from_recipe:
        script["task"] = "rows"
        if isinstance(model, str | Path):
            # A recipe's `base` and `demo` are leaf's own.
            recipe["model"] = f"./{model}" if isinstance(model, Path) and str(model) in ("base", "demo") else str(model)
        else:
            script["model"] = _model_name(model)
        lora = lora or _adapter(model)
    if reward_funcs:
        functions = [reward_funcs] if callable(reward_funcs) else list(reward_funcs)
        plain = all(isinstance(one, str) for one in functions)
        (recipe if plain else script)["rewards"] = [_name(one, "__name__") for one in functions]
    if credit is not None:
        (recipe if isinstance(credit, str) else script)["credit"] = _name(credit, "__qualname__")
    if lora is not None:
        fields = _lora(lora)
        recipe |= fields
        is_pattern = isinstance(lora.target_modules, str) and lora.target_modules != "all-linear"
        if is_pattern or _others(recipe_lora(LoraFields(**fields))) != _others(lora):
            script["lora_layers"] = ["peft_config"]
    return Given(recipe, script)


def refuse_resume(run: RunDirectory) -> None:
    """Refuse to resume a run from the command line that a script began with things of its own.

    Raises:
        RunError: it is one.
    """
    if script := run.script_values():
        raise RunError(
            f"The run in {run.path} was begun by a script that passed its own {_listed(script)} ({_noted(run)}). "
            "Continue it from that script, with `train(resume_from_checkpoint=True)`."
        )


def refuse_missing(recipe: Path, needed: Collection[str], set_there: Collection[str]) -> None:
    """Refuse a run's recipe.yaml for a command that needs what only the script had which began the run.

    Args:
        recipe: the recipe file that a command is given.
        needed: keys that the command uses.
        set_there: keys that are set on the command line.

    Raises:
        ConfigError: a needed key is not set.
    """
    run = RunDirectory(recipe.parent)
    script = run.script_values() if recipe.name == "recipe.yaml" else {}
    missing = [key for key in script if key in needed and key not in set_there]
    if missing:
        raise ConfigError(
            f"The run in {recipe.parent} was begun by a script that passed its own {_listed(missing)} "
            f"({_noted(run)}), which {recipe} does not hold. Set {', '.join(f'{key}=...' for key in missing)}, or "
            "continue the run from that script."
        )


def _noted(run: RunDirectory) -> str:
    """Name the file that says what the script passed; version 0.1 marked it in the recipe."""
    return "provenance.json" if (run.path / "provenance.json").is_file() else "marked in recipe.yaml"


def _listed(keys: Collection[str]) -> str:
    *most, last = keys
    return f"{', '.join(most)} and {last}" if most else last


def _model_name(model: torch.nn.Module) -> str:
    base = model.base if isinstance(model, Policy) else model
    return getattr(getattr(base, "config", None), "_name_or_path", "") or type(base).__name__


def _name(function: str | Callable[..., Any], attribute: str) -> str:
    if isinstance(function, str):
        return function
    inner = function.func if isinstance(function, partial) else function
    return getattr(inner if hasattr(inner, attribute) else type(inner), attribute)


def _adapter(model: Any) -> peft.LoraConfig | None:
    """Find the settings of the adapter that a policy brings."""
    wrapped = model.model if isinstance(model, Policy) else None
    found = wrapped.active_peft_config if isinstance(wrapped, peft.PeftModel) else None
    return found if isinstance(found, peft.LoraConfig) else None


def _lora(lora: peft.LoraConfig) -> dict[str, Any]:
    """Turn a peft configuration into a recipe's LoRA fields."""
    layers = lora.target_modules
    return {
        "lora_r": lora.r,
        "lora_alpha": lora.lora_alpha,
        "lora_dropout": lora.lora_dropout,
        # A text is a pattern, or "all-linear", which is what a recipe without layers means too (see `Policy.wrap`).
        "lora_layers": None if layers is None or isinstance(layers, str) else sorted(layers),
        "layers_to_transform": None,  # a script's own are noted as its adapter: peft takes them in more forms
    }


def _others(lora: peft.LoraConfig) -> dict[str, Any]:
    return {key: value for key, value in lora.to_dict().items() if key not in _NOTES | {"target_modules"}}
