"""What `datasets` says of the columns of a data set: which hold labels, whose names are their texts."""

from collections.abc import Mapping
from typing import Any


def label_columns(features: Mapping[str, Any] | None) -> dict[str, Any]:
    """Find the columns that hold labels, alone, in lists or in dicts, with what `datasets` says of them."""
    return {name: feature for name, feature in (features or {}).items() if _has_labels(feature)}


def with_label_names(row: Mapping[str, Any], labels: Mapping[str, Any]) -> dict[str, Any]:
    """Put the names of labels in the place of their numbers; `labels` is what `label_columns` found."""
    return {name: _named(value, labels[name]) if name in labels else value for name, value in row.items()}


def _is_label(feature: Any) -> bool:
    return isinstance(getattr(feature, "names", None), list)


def _inner(feature: Any) -> Any:
    """Find what a list is of: `datasets` writes a list as an object or, in older sets, as a list of one."""
    if isinstance(feature, list):
        return feature[0] if feature else None
    return getattr(feature, "feature", None)


def _has_labels(feature: Any) -> bool:
    if isinstance(feature, Mapping):
        return any(map(_has_labels, feature.values()))
    inner = _inner(feature)
    return _is_label(feature) or (inner is not None and _has_labels(inner))


def _named(value: Any, feature: Any) -> Any:
    if value is None:
        return None
    if _is_label(feature):
        return _name(value, feature.names)
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        return {name: _named(one, feature.get(name)) for name, one in value.items()}
    inner = _inner(feature)
    if inner is not None and isinstance(value, list):
        return [_named(one, inner) for one in value]
    return value


def _name(value: Any, names: list[str]) -> Any:
    """Read a label: its number, or in a text file the digits of it or the name. -1 is none, as in test splits."""
    if value in names:
        return value
    try:
        number = int(value)
    except (TypeError, ValueError):
        return value
    return None if number == -1 else names[number] if 0 <= number < len(names) else value
