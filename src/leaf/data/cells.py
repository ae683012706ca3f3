"""Cells of a table: which of a row's columns are leaf's, and their texts as texts, however a row came to leaf."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from leaf.errors import DataError, shown
from leaf.text import composed

# The columns that leaf itself reads (leaf.data.rows). A header may write them in another case or with spaces around.
OURS = (
    "prompt",
    "audio",
    "reference",
    "references",
    "split",
    "id",
    "utterance",
    "text",
    "seconds",
    "kind",
    "reference_language",
    "offset",
    "duration",
)


# -- names of columns --------------------------------------------------------------------------------------------------
def folded(name: object) -> str:
    """Reduce the name of a column or split to what is compared: composed, without outer spaces and case."""
    return composed(str(name)).strip().casefold()


def our_names(names: Iterable[str], where: str) -> dict[str, str]:
    """Map the names of columns as they are written to those that leaf uses: ` Split` to split, other names unspaced.

    Args:
        names: of one row or header.
        where: what has them, for messages.

    Raises:
        DataError: two of them are the same, or differ in case and outer spaces only; or one is no text.
    """
    first: dict[str, str] = {}
    for name in names:
        if not isinstance(name, str):
            raise DataError(f"{where} has the column {shown(name)}, a name that is no text. Rename it.")
        key = folded(name)
        if key in first:
            raise DataError(
                f"{where} has the columns {shown(first[key])} and {shown(name)}, which are the same without case and "
                "spaces. Rename one."
            )
        first[key] = name
    return {name: key if key in OURS else name.strip() for key, name in first.items()}


def column_of(record: Mapping[str, Any], name: str) -> str | None:
    """Find the column that a name means: as it is written, or else without case and outer spaces."""
    if name in record:
        return name
    wanted = folded(name)
    return next((column for column in record if folded(column) == wanted), None)


def cell(record: Mapping[str, Any], name: str) -> Any:
    """Read a cell by the name of its column, or by the way to it: `translation.de` is `de` in `translation`.

    Raises:
        KeyError: there is no such column.
    """
    column = column_of(record, name)
    if column is not None:
        return record[column]
    head, dot, rest = name.partition(".")
    column = column_of(record, head) if dot else None
    if column is None:
        raise KeyError(name)
    inner = record[column]
    if inner is None:
        return None
    if not isinstance(inner, Mapping):
        raise KeyError(name)
    return cell(inner, rest)


# -- texts -------------------------------------------------------------------------------------------------------------
def text_cell(value: Any, name: str, where: str) -> str | None:
    """Read a cell as text, composed; None where it is empty. A whole number is its digits.

    Args:
        value: of the cell.
        name: of the column.
        where: the row, for messages.

    Raises:
        DataError: the cell holds anything else.
    """
    if value is None:
        return None
    if isinstance(value, str):
        return composed(value)
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    raise DataError(
        f"{where} has {name} {shown(value)}; it must be text, and this is {_kind(value)}.{_advice(value, name)}"
    )


def with_language(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Read the language of a row's reference, where the row has one, without outer spaces; an empty one is None.

    Raises:
        DataError: it is no text.
    """
    value = row.get("reference_language")
    if value is None:
        return row
    if not isinstance(value, str):
        raise DataError(
            f"{where} has reference_language {shown(value)}; it must be text, such as zh-CN, and this is "
            f"{_kind(value)}."
        )
    return {**row, "reference_language": value.strip() or None}


def references_cell(value: Any, name: str, where: str) -> list[str]:
    """Read a cell of one text or a list of texts, all of them references; [] where it is empty.

    Raises:
        DataError: the cell, or an entry of its list, is no text, or an entry is empty.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        text = text_cell(value, name, where)
        return [] if text is None or not text.strip() else [text]
    texts = [text_cell(entry, f"{name}[{i}]", where) for i, entry in enumerate(value)]
    empty = next((i for i, text in enumerate(texts) if text is None or not text.strip()), None)
    if empty is not None:
        raise DataError(f"{where} has an empty text among its references ({name}[{empty}]). Fill it, or remove it.")
    return [text for text in texts if text is not None]


def with_references(row: dict[str, Any], where: str) -> dict[str, Any]:
    """Put a row's references in order: `reference` is a text, the first one, and `references` lists several.

    A list in `reference` is several references. Without `reference`, the first of `references` is it.

    Raises:
        DataError: they are no texts, or `references` lacks the reference.
    """
    given = references_cell(row.get("reference"), "reference", where)
    listed = row.get("references")
    if isinstance(listed, str):
        raise DataError(
            f"{where} has references {shown(listed)}; it must be a list of texts. A table has one text in a cell: "
            "write several references as a list in JSONL or parquet, or rename the column."
        )
    if listed is not None:
        more = references_cell(listed, "references", where)
        if given and more and given[0] not in more:
            raise DataError(f"{where} has a reference that is not among its references. Add it there, or leave it out.")
        given = [*given, *(text for text in more if text not in given)]
    row = {name: value for name, value in row.items() if name != "references"}
    if "reference" in row or given:
        empty = row.get("reference")  # "" stays "", which judges without references read
        row["reference"] = given[0] if given else "" if isinstance(empty, str) else None
    if len(given) > 1 or listed is not None:
        row["references"] = given or None
    return row


def _kind(value: Any) -> str:
    """Name the kind of a value, for somebody who looks at a table."""
    if isinstance(value, bool | np.bool_):
        return "true or false"
    if isinstance(value, float | np.floating):
        return "a number with a point, or a gap" if value != value else "a number with a point"
    if isinstance(value, bytes):
        return "bytes"
    if isinstance(value, Mapping):
        return "a dict" + (f" with {', '.join(map(str, value))[:80]}" if value else "")
    if isinstance(value, list | tuple | np.ndarray):
        return "a list"
    return f"a {type(value).__name__}"


def _advice(value: Any, name: str) -> str:
    if isinstance(value, Mapping) and value:
        return f" Name one part of it: {name}=COLUMN.{next(iter(value))} in `columns`."
    if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping) and "role" in value[0]:
        return " Messages come from tasks of your own and from Python; write one text here."
    if isinstance(value, float | np.floating | bool):
        return " Write it as text, as it should be read."
    return ""
