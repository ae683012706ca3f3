"""Fields of a recipe: how one is declared, and how a value is checked against it."""

import json
import os
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
# What a value must be, in the words of a message.
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list, as [first, second]",
    dict: "a mapping, as {name: value}",
}


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
    path: bool = False,
) -> Any:
    """Declare a field of a recipe.

    Args:
        group: heading under which `leaf recipe` lists it.
        default: its value where a recipe does not set it.
        help: one line on what it does.
        low, high: the closed range that a number may have.
        common: whether `leaf recipe` lists it without `--all`.
        resume: what a resumed run may change of it.
        free_options: of a mapping, or of the mappings in one, the keys that are free on resume.
        path: whether it is, or may be, a path (or a list of paths), in which a leading `~` is the user's home.
    """
    metadata = {"group": group, "help": help, "low": low, "high": high, "common": common, "resume": resume}
    metadata |= {"free_options": free_options, "path": path}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def inner_without(value: dict[str, Any], free: tuple[str, ...]) -> dict[str, Any]:
    """Leave the free options out of a field that is a mapping, and out of the mappings in it."""
    return {
        name: {k: v for k, v in one.items() if k not in free} if isinstance(one, dict) else one
        for name, one in value.items()
        if name not in free
    }


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
    if origin is list:
        value = _as_list(key, value, inner[0])
    if origin is list and isinstance(value, list | tuple):
        path = {"path": metadata.get("path")}
        return [checked(f"{key}[{i}]", item, inner[0], path) for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {str(name): checked(f"{key}.{name}", item, inner[1], {}) for name, item in value.items()}
    if hint is float and isinstance(value, int | str) and not isinstance(value, bool):
        with suppress(ValueError):  # YAML reads 5e-6, without a dot, as text
            value = float(value)
    if origin is not None or not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        came = "has no value" if value is None else f"is {shown(value)}"
        what = f" ({metadata['help']})" if value is None and "help" in metadata else ""
        raise ConfigError(f"{key} {came}; give {_WORDS.get(origin or hint, str(hint))}{what}.")
    low, high = metadata.get("low"), metadata.get("high")
    if (low is not None and not value >= low) or (high is not None and not value <= high):  # NaN too
        allowed = f"at least {low}" if high is None else f"from {low} to {high}"
        raise ConfigError(f"{key} is {shown(value)}; allowed is a number {allowed}.")
    return _plain(key, os.path.expanduser(str(value)) if metadata.get("path") else value)


def _as_list(key: str, value: Any, inner: Any) -> Any:
    """Take a single value as a list of one; text with commas is refused, since it may mean several."""
    if isinstance(value, str) and "," in value:
        raise ConfigError(f"{key} is {shown(value)}; write several values as a list, as [first, second].")
    single = (str,) if inner is str else (int, float) if inner is float else ()
    return [value] if isinstance(value, single) and not isinstance(value, bool) else value


def _plain(key: str, value: Any) -> Any:
    """Convert a value to what JSON and YAML both write and read back."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key} is {shown(value)}; allowed are finite numbers, text, lists and mappings.") from error
