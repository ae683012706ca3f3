"""Fields of a recipe: how one is declared, and how a value is checked against it."""

import json
import types
import typing
from contextlib import suppress
from dataclasses import field
from typing import Any, Literal

from leaf.errors import ConfigError, did_you_mean, shown

# What a resumed run may change. `free`: where, how often and how patiently it runs, which teaches it nothing else;
# what was done under `tolerate: stop` met no failure, so `skip` would have done the same. `bits`: the order in which
# numbers are added up, so only the last bits of the result. `grow`: how far it goes, or how much it accepts; None is
# without limit. `same`: nothing.
Resume = Literal["free", "bits", "grow", "same"]


def declare(
    group: str,
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    common: bool = False,
    resume: Resume = "same",
    free_options: tuple[str, ...] = (),
) -> Any:
    """Declare a field of a recipe.

    Args:
        group: heading under which `leaf recipe` lists it.
        default: its value where a recipe does not set it.
        help: one line on what it does.
        low, high: the closed range that a number may have.
        common: whether `leaf recipe` lists it without `--all`.
        resume: what a resumed run may change of it.
        free_options: of a mapping of mappings, the inner keys that are free on resume.
    """
    metadata = {"group": group, "help": help, "low": low, "high": high, "common": common, "resume": resume}
    metadata["free_options"] = free_options
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def checked(key: str, value: Any, hint: Any, metadata: Any) -> Any:
    """Check a value against the type and the range of its field, and convert it to that type."""
    if typing.get_origin(hint) is types.UnionType:  # a type, or None
        if value is None:
            return None
        hint = typing.get_args(hint)[0]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _plain(key, value)
    if origin is Literal and value not in inner:
        raise ConfigError(f"{key} is {shown(value)}; allowed are {', '.join(inner)}.{did_you_mean(value, inner)}")
    if origin is Literal:
        return value
    if origin is list and isinstance(value, list | tuple):
        return [checked(f"{key}[{i}]", item, inner[0], {}) for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {str(name): checked(f"{key}.{name}", item, inner[1], {}) for name, item in value.items()}
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):  # YAML reads 5e-6, without a dot, as text
            value = float(value)
    if origin is not None or not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        wanted = getattr(origin or hint, "__name__", str(hint))
        raise ConfigError(f"{key} is {shown(value)}, a {type(value).__name__}; allowed is a value of type {wanted}.")
    low, high = metadata.get("low"), metadata.get("high")
    if (low is not None and not value >= low) or (high is not None and not value <= high):  # NaN too
        allowed = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{key} is {shown(value)}; allowed is a number {allowed}.")
    return _plain(key, value)


def _plain(key: str, value: Any) -> Any:
    """Convert a value to what JSON and YAML both write and read back."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key} is {shown(value)}; allowed are finite numbers, text, lists and mappings.") from error
