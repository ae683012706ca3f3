"""Read files of rows, JSONL, JSON, CSV and TSV, with every cell as it is written; what cannot be read is named."""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from leaf.data.cells import our_names
from leaf.errors import DataError, shown

csv.field_size_limit(2**24)
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_NAMED = {",": "comma", "\t": "tab", ";": "semicolon", "|": "bar"}
READABLE = (".jsonl", ".json", *_DELIMITERS)
Numbered = list[tuple[int, str, dict[str, Any]]]  # number, Line or Entry, object
# A cell that ends like the name of a recording.
_RECORDING = re.compile(r"\.(wav|flac|mp3|ogg|opus|m4a|mp4|aac|aif|aiff|webm|wma|sph)\"?\s*$", re.IGNORECASE)


def read_table(path: Path, what: str = "file") -> list[dict[str, Any]]:
    """Read the rows of a file by its suffix, columns under the names that leaf uses.

    Every cell of CSV and TSV is text: 007, NA and null stay what they are. In CSV a cell may stand in quotation marks;
    in TSV a quotation mark is a character like any other.

    Args:
        path: a file of `READABLE`, in UTF-8. JSONL has an object on each line, JSON a list of objects or such lines.
        what: the file is, for messages.

    Raises:
        DataError: the file cannot be read; the message names the line.
    """
    text = _decoded(path, what)
    suffix = path.suffix.lower()
    if suffix in _DELIMITERS:
        return _delimited(text, path.name, _DELIMITERS[suffix])
    if suffix == ".json" and text.lstrip()[:1] == "[":
        records = _json(text, path.name)
    elif suffix in READABLE:
        records = _json_lines(text, path.name)
    else:
        raise DataError(f"The {what} {path} is no {', '.join(READABLE)} file. Save it as one of these.")
    return _renamed(records, path.name)


def _renamed(records: Numbered, name: str) -> list[dict[str, Any]]:
    """Put the columns of every object under the names that leaf uses."""
    headers: dict[tuple[str, ...], dict[str, str]] = {}  # most objects have the same keys
    rows = []
    for number, kind, record in records:
        keys = tuple(record)
        if keys not in headers:
            headers[keys] = our_names(keys, f"{kind} {number} of {name}")
        rows.append({ours: record[theirs] for theirs, ours in headers[keys].items()})
    return rows


# -- text --------------------------------------------------------------------------------------------------------------
def _decoded(path: Path, what: str) -> str:
    """Read a file as UTF-8, with or without a byte-order mark, which spreadsheets put first."""
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise DataError(f"The {what} {path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"The {what} {path} is not UTF-8 (byte {error.start} is {data[error.start]:#04x}) in line {line}; it looks "
            f"like {_encoding(data)}. Save it as UTF-8."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"The {what} {path} has a NUL character in line {line}; it may be UTF-16, or no text. Save it as UTF-8."
        )
    return text


def _encoding(data: bytes) -> str:
    """Guess in which encoding a text is that is not UTF-8."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "UTF-16"
    if data[:4] == b"PAR1" or data[:2] in (b"PK", b"\x1f\x8b"):
        return "another kind of file under this name (parquet, zip or gzip)"
    if b"\0" in data[:1000]:
        return "UTF-16, or no text at all"
    return "Windows-1252 or Latin-1, or another encoding of one country"


# -- CSV and TSV -------------------------------------------------------------------------------------------------------
def _delimited(text: str, name: str, delimiter: str) -> list[dict[str, Any]]:
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)
    lines: list[tuple[int, list[str]]] = []
    begins = 1
    try:
        for cells in reader:
            if cells:  # an empty line is no row
                lines.append((begins, cells))
            begins = reader.line_num + 1
    except csv.Error as error:
        raise DataError(_unreadable(error, name, begins, reader.line_num)) from error
    if not lines:
        return []
    header = lines[0][1]
    _check_header(header, name, delimiter)
    names = our_names(header, f"The header of {name}")
    rows = []
    for number, (line, cells) in enumerate(lines[1:], start=1):
        if len(cells) != len(header):
            raise DataError(
                f"Row {number} of {name} has more or fewer cells than the header's {len(header)}: it has {len(cells)}, "
                f"in line {line}. {_quoting_advice(delimiter)}"
            )
        (_check_swallowed if delimiter == "," else _check_unquoted)(cells, line, name)
        rows.append(dict(zip(names.values(), cells, strict=True)))
    return rows


def _unreadable(error: csv.Error, name: str, begins: int, line: int) -> str:
    """Say which line a CSV reader failed in, and where the row begins that it failed on."""
    place = f"Line {line} of {name}" if line <= begins else f"Lines {begins} to {line} of {name}"
    if "unexpected end of data" in str(error):
        return (
            f"Line {begins} of {name} opens a quotation mark that nothing closes. Close it; write a quotation mark "
            'inside a quoted cell twice (""), or save the table as TSV or JSONL.'
        )
    return (
        f'{place} cannot be read: {error}. Write a quotation mark inside a quoted cell twice (""), or save the table '
        "as TSV or JSONL."
    )


def _check_header(header: list[str], name: str, delimiter: str) -> None:
    twice = [column for column, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(f"The header of {name} has {shown(twice[0])} more than once; rename one.")
    others = [other for other in _NAMED if other != delimiter and other in header[0]]
    if len(header) == 1 and others:
        raise DataError(
            f"The header of {name} is one column, {shown(header[0])}: its delimiter seems to be a {_NAMED[others[0]]}, "
            f"and that of {Path(name).suffix} is a {_NAMED[delimiter]}. Save it with that delimiter, or as JSONL."
        )


def _check_swallowed(cells: list[str], line: int, name: str) -> None:
    """Refuse a quoted cell of several lines that names a recording inside: it has swallowed the rows behind it."""
    for content in cells:
        _, *behind = content.split("\n")
        for part in behind if "," in content else ():
            if any(map(_RECORDING.search, part.split(","))):
                raise DataError(
                    f"The row that begins in line {line} of {name} has a cell of several lines which holds "
                    f"{shown(part[:80])}, another row: a quotation mark is opened and not closed. Close it, or save "
                    "the table as TSV or JSONL."
                )


def _check_unquoted(cells: list[str], line: int, name: str) -> None:
    """Refuse a cell that was written by the rules of CSV: it would keep the marks that were put around it."""
    for content in cells:
        inner = content[1:-1]
        if content[:1] == content[-1:] == '"' and '""' in inner and '"' not in inner.replace('""', ""):
            raise DataError(
                f"Line {line} of {name} has the cell {shown(content)}, quoted as in CSV; in TSV a quotation mark is a "
                "character like any other. Save the table as CSV, or without quoting."
            )


def _quoting_advice(delimiter: str) -> str:
    if delimiter == "\t":
        return "A cell of TSV holds no tab and no line break; save such a table as CSV or JSONL."
    return "Put quotes around cells with a delimiter in them."


# -- JSON --------------------------------------------------------------------------------------------------------------
def _json_lines(text: str, name: str) -> Numbered:
    records: Numbered = []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: a string may contain U+2028
        if line.strip():
            records.append(
                (number, "Line", _object_of(_parsed(line, f"Line {number} of {name}"), "Line", number, name))
            )
    return records


def _json(text: str, name: str) -> Numbered:
    entries = _parsed(text, f"The file {name}")
    return [
        (number, "Entry", _object_of(entry, "Entry", number, name)) for number, entry in enumerate(entries, start=1)
    ]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:  # RecursionError: lists in lists, a thousand deep
        raise DataError(f"{where} cannot be read as JSON: {error}.") from error


def _object_of(record: Any, kind: str, number: int, name: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"{kind} {number} of {name} is a {type(record).__name__}; it must be an object.")
    return record


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make the dictionary of a JSON object; json itself would keep the last of several values without a word."""
    counts = Counter(key for key, _ in pairs)
    if len(counts) < len(pairs):
        raise ValueError(f"it has the key {shown(counts.most_common(1)[0][0])} twice; leave one")
    return dict(pairs)
