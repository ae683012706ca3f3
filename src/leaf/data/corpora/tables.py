"""Read the publishers' JSON and TSV files, with errors that name the file."""

import csv
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from leaf.errors import DataError

csv.field_size_limit(2**24)


def json_list(file: Path, needed: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file that holds one JSON list, each with the keys needed.

    Raises:
        DataError: not JSON, not a list of objects, or an object without one of the keys.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(entries, list):
        raise DataError(f"{file} is a {type(entries).__name__}; it must be a list of objects.")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or any(key not in entry for key in needed):
            has = sorted(entry) if isinstance(entry, dict) else type(entry).__name__
            raise DataError(f"Entry {number} of {file} has {has}; it needs {', '.join(needed)}.")
        yield entry


def table(
    file: Path, needed: Sequence[str], *, delimiter: str = "\t", escape: str | None = None
) -> Iterator[dict[str, str]]:
    """Yield the rows of a delimited text file with a header, plain or gzipped; quotes have no meaning.

    After the character `escape` the next one is text, even a delimiter or `escape` itself.

    Raises:
        DataError: unreadable, or a header without one of the columns.
    """
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, delimiter=delimiter, escapechar=escape, quoting=csv.QUOTE_NONE)
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{file} has no column {', '.join(missing)}; it has {reader.fieldnames}.")
            for row in reader:
                yield {
                    key: value or "" for key, value in row.items() if key is not None and not isinstance(value, list)
                }
    except (OSError, UnicodeDecodeError, EOFError, csv.Error) as error:
        raise DataError(f"{file} cannot be read: {error}.") from error


def find(source: Path, name: str) -> Path:
    """Find the first file or folder of a name below a folder.

    Raises:
        DataError: there is none.
    """
    for found in sorted(source.rglob(name)):
        return found
    raise DataError(f"{source} has no {name}, at any depth. Copy it there.")
