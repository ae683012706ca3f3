"""Rows from Python: lists, data sets of `datasets`, tables of pandas. They pass the checks that manifests pass."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np

from leaf.data.audio import load_audio
from leaf.data.cells import our_names, text_cell, with_language, with_references
from leaf.data.features import label_columns, with_label_names
from leaf.errors import DataError, shown
from leaf.text import composed

_TEXTS = ("prompt", "reference", "references", "reference_language", "text")
# A row's reference may come from either of these columns (leaf.data.cells), so they are read together.
_REFERENCES = ("reference", "references")

_ROWS_AT_ONCE = 10_000


def rows_from(given: Any, what: str) -> Any:
    """Take rows as a script gives them: a list of checked rows, or rows that are checked when they are read.

    Texts become texts (leaf.data.cells), columns get the names that leaf uses, labels their names. Audio stays as it is
    until it is heard; an audio column of `datasets` is not decoded by that library.

    Args:
        given: a list of mappings, a `datasets.Dataset`, a DataFrame of pandas, a table of pyarrow, another sequence of
            mappings, or None.
        what: the rows are, for messages: "Training row".

    Raises:
        DataError: they are something else, or a row's texts are none.
    """
    if given is None or isinstance(given, Rows | Listed):
        return given
    refusal = _refusal(given)
    if refusal is not None:
        raise DataError(f"The {_plural(what)} are {_called(given)}{refusal}")
    if hasattr(given, "to_pylist") and hasattr(given, "column_names"):
        our_names(given.column_names, f"The {_called(given).partition(' ')[2]} of the {_plural(what)}")
        given = given.to_pylist()
    if hasattr(given, "iloc") and hasattr(given, "to_dict"):
        our_names(given.columns, f"The DataFrame of the {_plural(what)}")
        # A gap in a table of pandas is NaN, or NA.
        given = _as_lists(given.astype(object).where(given.notna(), None).to_dict("records"))
    if isinstance(given, list | tuple):
        return Listed(_checked(row, i, what) for i, row in enumerate(given))
    return Rows(given, what)


def _as_lists(value: Any) -> Any:
    """Turn arrays of objects into lists, however deep: what pandas reads of a parquet file's lists. Samples stay."""
    if isinstance(value, Mapping):
        return {key: _as_lists(one) for key, one in value.items()}
    if isinstance(value, list) or (isinstance(value, np.ndarray) and value.dtype == object):
        return [_as_lists(one) for one in value]
    return value


def training_and_validation(train: Any, validation: Any) -> tuple[Any, Any]:
    """Take the rows of both sides; the same rows for both stay one object.

    Raises:
        DataError: see `rows_from`.
    """
    rows = rows_from(train, "Training row")
    return rows, rows if validation is train else rows_from(validation, "Validation row")


class Listed(list[dict[str, Any]]):
    """Rows that were checked."""


class Rows(Sequence[dict[str, Any]]):
    """Rows of a data set or another sequence, each checked when it is read; `rows["reference"]` is a column.

    Args:
        source: a `datasets.Dataset`, or a sequence of mappings.
        what: the rows are, for messages.

    Attributes:
        column_names: those of a data set, under the names that leaf uses; None of other sequences.
    """

    def __init__(self, source: Any, what: str):
        self.what = what
        self.names: dict[str, str] | None = None
        self.labels: dict[str, Any] = {}
        self.rates: dict[str, int] = {}  # audio column → the sampling rate that its data set asks for
        names = getattr(source, "column_names", None)
        if names is not None:
            self.names = our_names(names, f"The data set of the {_plural(what)}")
            self.labels = label_columns(source.features)
            source = self._undecoded(source)
        self.source = source
        self.column_names = None if self.names is None else list(self.names.values())
        if self.column_names is not None and "references" in self.column_names:  # its first is in `reference`
            self.column_names = list(dict.fromkeys([*self.column_names, "reference"]))
        if self.names is not None and source.format["type"] != "custom":
            for number, row in enumerate(self._read(_TEXTS)):
                _with_texts(row, _place(what, number))

    def _undecoded(self, source: Any) -> Any:
        """Have a data set give encoded audio; to decode it, `datasets` needs a package that leaf does without."""
        from datasets import Audio

        if source.format["type"] == "custom":  # the user's own function sees the rows first
            return source
        source = source.with_format(None)  # values of Python, not of pandas or torch
        for name, feature in source.features.items():
            if isinstance(feature, Audio):
                if feature.sampling_rate:
                    self.rates[name] = feature.sampling_rate
                if feature.decode:
                    source = source.cast_column(name, Audio(decode=False))
        return source

    def _read(self, wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield all rows with some of their columns; those that leaf does not ask for may be large."""
        assert self.names is not None
        columns = {theirs: ours for theirs, ours in self.names.items() if ours in wanted}
        if not columns:
            yield from [{}] * min(1, len(self.source))
            return
        rows = self.source.select_columns(list(columns)).with_format(None)
        for start in range(0, len(rows), _ROWS_AT_ONCE):  # row by row takes ten times as long
            some = rows[start : start + _ROWS_AT_ONCE]
            cells = [self._labelled(name, some[name]) for name in columns]
            for values in zip(*cells, strict=True):
                yield dict(zip(columns.values(), values, strict=True))

    def _labelled(self, name: str, cells: list[Any]) -> list[Any]:
        """Put the names of labels in the place of their numbers, in some cells of a column."""
        if name not in self.labels:
            return cells
        return [with_label_names({name: one}, self.labels)[name] for one in cells]

    def _column(self, name: str) -> list[Any]:
        """Read a column. Of a data set nothing else is read, so that a million rows take seconds."""
        names = self.names or {}
        wanted = _REFERENCES if name in _REFERENCES else (name,)
        theirs = [one for one, ours in names.items() if ours in wanted]
        if not theirs or self.source.format["type"] == "custom" or any(one in self.rates for one in theirs):
            return [row.get(name) for row in self]
        rows = enumerate(self._read(wanted))
        if name not in _TEXTS:
            return [row[name] for _, row in rows]
        return [_with_texts(row, _place(self.what, i), whole=False).get(name) for i, row in rows]

    def _renamed(self, row: Mapping[str, Any]) -> dict[str, Any]:
        named = with_label_names(row, self.labels)
        return named if self.names is None else {self.names.get(key, key): value for key, value in named.items()}

    def __len__(self) -> int:
        return len(self.source)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: str | slice) -> list[Any]: ...
    def __getitem__(self, index: int | str | slice) -> Any:
        if isinstance(index, str):
            return self._column(index)
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]  # -1 is the last one
        row = self.source[index]
        if not isinstance(row, Mapping):
            raise DataError(f"{self.what} {index}, counted from 0, is a {type(row).__name__}; give mappings.")
        row = dict(row)
        for name, rate in self.rates.items():
            row[name] = None if row[name] is None else _resampled(row[name], rate)
        return _checked(self._renamed(row), index, self.what)


def _resampled(audio: Any, rate: int) -> dict[str, Any]:
    """Decode audio to the sampling rate that its column states."""
    return {"array": load_audio(audio, sampling_rate=rate), "sampling_rate": rate}


def _checked(row: Any, number: int, what: str) -> dict[str, Any]:
    """Check the texts of a row, and put its columns under the names that leaf uses."""
    where = _place(what, number)
    if not isinstance(row, Mapping):
        raise DataError(f"{where} is {shown(row)}; give a mapping with prompt, audio and reference.")
    names = our_names(row, where)
    return _with_texts({ours: row[theirs] for theirs, ours in names.items()}, where)


def _place(what: str, number: int) -> str:
    """Name a row in a message."""
    return f"{what} {number}, counted from 0,"


def _with_texts(row: dict[str, Any], where: str, *, whole: bool = True) -> dict[str, Any]:
    """Check the texts of a row whose columns have leaf's names; one that is not whole may lack its prompt."""
    if whole and row.get("prompt") is None:
        raise DataError(f"{where} has no prompt; it has the columns {', '.join(map(str, row)) or 'none'}.")
    row = dict(row)
    if "prompt" in row:
        row["prompt"] = _prompt(row["prompt"], where)
    if "text" in row:
        row["text"] = text_cell(row["text"], "text", where)
    row = with_language(row, where)
    return with_references(row, where) if "reference" in row or "references" in row else row


def _prompt(prompt: Any, where: str) -> Any:
    """Compose the texts of a prompt: a text, or messages, whose form leaf.model.prompts checks."""
    if not isinstance(prompt, list | tuple):
        return text_cell(prompt, "prompt", where)
    return [_composed_texts(message, ("content", "text")) for message in prompt]


def _composed_texts(value: Any, keys: Sequence[str]) -> Any:
    """Compose the texts under some keys of a mapping, and of the mappings in lists under them."""
    if isinstance(value, Mapping):
        return {key: _composed_texts(one, keys) if key in keys else one for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_composed_texts(one, keys) for one in value]
    return composed(value) if isinstance(value, str) else value


# -- what cannot be taken ----------------------------------------------------------------------------------------------
def _refusal(given: Any) -> str | None:
    """Say why rows of this kind cannot be taken, and what to give instead; None if they can."""
    if isinstance(given, Mapping):
        splits = ", ".join(map(repr, given))[:200]
        if any(hasattr(one, "column_names") for one in given.values()):
            return f" with the splits {splits}; give one of them, as dataset[{next(iter(given))!r}]."
        return "; give a list of mappings, one for each row."
    if isinstance(given, str) or hasattr(given, "__fspath__"):
        return "; read them first: leaf.data.load(path, 'train')."
    if hasattr(given, "iloc") and hasattr(given, "to_dict"):
        return None
    if not hasattr(given, "__len__"):
        return (
            ", which has no length, and leaf draws rows in random order: give a list of its rows, as list(rows), or "
            "load the data set without streaming=True."
        )
    if isinstance(given, bytes | set) or not hasattr(given, "__getitem__") or hasattr(given, "collect_schema"):
        return "; give a list of mappings, a datasets.Dataset or a DataFrame of pandas."
    return None


def _called(given: Any) -> str:
    name = type(given).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _plural(what: str) -> str:
    return f"{what[0].lower()}{what[1:]}s"
