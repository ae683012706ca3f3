"""Open the tables of a folder, a file or a data set of the hub: their names, their columns and their rows, in order."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from leaf.data.cells import cell, column_of, our_names
from leaf.data.features import label_columns, with_label_names
from leaf.data.tables import READABLE, read_table
from leaf.errors import DataError
from leaf.text import fold_whitespace

_ROWS_AT_ONCE = 16  # audio may be in the rows
_BINARY = (".parquet", ".arrow")
ROW_FILES = (*READABLE, *_BINARY)  # suffixes of files with rows. Audio files beside them are what rows name.
_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # `datasets` writes them


@dataclass
class Table:
    """The rows of one file, or of one split on the hub.

    Attributes:
        name: of the split, or of the file without suffix.
        shown: what messages call it.
        read: gives the rows, from the first one at every call; of the columns named alone, or of all.
        features: what `datasets` says of the columns, where it says anything.
        uneven: whether rows may lack columns that others have, as the lines of JSONL may; they are all in memory.
    """

    name: str
    shown: str
    read: Callable[[str | None], Iterator[dict[str, Any]]]
    features: Mapping[str, Any] | None = None
    uneven: bool = False

    @cached_property
    def columns(self) -> dict[str, str]:
        """Map the columns to the names that leaf uses; where nothing lists them, the rows do."""
        with said(self.shown):
            rows = self.read(None) if self.uneven else islice(self.read(None), 1)
            return our_names(self.features or dict.fromkeys(name for row in rows for name in row), self.shown)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the rows under the names that leaf uses, labels by their names; a column that a row lacks is None.

        Raises:
            DataError: a row cannot be read.
        """
        labels = label_columns(self.features)
        names = self.columns
        lacking = dict.fromkeys(names.values() if self.uneven else ())
        with said(self.shown):
            for row in self.read(None):
                yield lacking | {names.get(key, key): value for key, value in with_label_names(row, labels).items()}

    def values(self, name: str) -> Iterator[Any]:
        """Yield the cells of one column, found as `leaf.data.cells.cell` finds it."""
        column = column_of(self.columns, name)
        labels = label_columns(self.features)
        with said(self.shown):
            for row in self.read(column):
                row = dict.fromkeys([column]) | row if self.uneven and column else row
                yield cell(with_label_names(row, labels), column or name)


def tables_of(source: Path, config: str | None) -> list[Table]:
    """List the tables of a folder, a file, or a data set of the hub with its configuration.

    Raises:
        DataError: there are none, or they cannot be read.
    """
    if not source.exists():
        _refuse_lost_path(source)
        return _of_hub(source, config)
    if config is not None:
        kind = "folder" if source.is_dir() else "file"
        raise DataError(f"--config goes with an id of the hub, and {source} is a {kind}; give one with its files only.")
    return [_of_file(path) for path in _files(source)]


def _refuse_lost_path(source: Path) -> None:
    """Refuse what can only be a path and is not there; an id of the hub is NAME or OWNER/NAME."""
    if (
        source.suffix.lower() in ROW_FILES
        or source.is_absolute()
        or len(source.parts) > 2
        or source.parts[:1] == ("..",)
    ):
        raise DataError(f"{source} does not exist. Give a folder, a file ({', '.join(ROW_FILES)}) or an id of the hub.")


def _files(source: Path) -> list[Path]:
    """Find the files of rows that a source is or has, in the order of their names.

    Raises:
        DataError: there are none, or several kinds.
    """
    if source.is_file():
        if source.suffix.lower() not in ROW_FILES:
            raise DataError(f"{source} is no file of rows. Give one of {', '.join(ROW_FILES)}, or a folder of them.")
        return [source]
    found = sorted(
        path
        for folder in (source, source / "data")
        for path in folder.glob("*")
        if path.suffix.lower() in ROW_FILES and path.name not in _NOT_ROWS
    )
    if not found:
        raise DataError(
            f"{source} has no file of rows ({', '.join(ROW_FILES)}), in itself or in data/. Put a table there whose "
            "rows name the audio files."
        )
    kinds = sorted({path.suffix.lower() for path in found})
    if len(kinds) > 1:
        raise DataError(
            f"{source} has rows as {' and '.join(kinds)}, and only one kind would be read. Keep one kind there."
        )
    return found


# -- files -------------------------------------------------------------------------------------------------------------
def _of_file(path: Path) -> Table:
    if path.suffix.lower() not in _BINARY:
        records: list[dict[str, Any]] = []  # read once, at first use

        def read(column: str | None) -> Iterator[dict[str, Any]]:
            if not records:
                records.extend(read_table(path))
            return iter(records)

        return Table(path.stem, path.name, read, uneven=True)
    read_arrow = _parquet if path.suffix.lower() == ".parquet" else _arrow
    with said(path.name):
        features = _features(pq.read_schema(path) if read_arrow is _parquet else _open_arrow(path).schema)
    return Table(path.stem, path.name, lambda column: read_arrow(path, column), features)


def _parquet(path: Path, column: str | None) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE, columns=None if column is None else [column]):
            yield from batch.to_pylist()


def _arrow(path: Path, column: str | None) -> Iterator[dict[str, Any]]:
    table = _open_arrow(path)
    for batch in table.to_batches(_ROWS_AT_ONCE):
        yield from batch.to_pylist()


def _open_arrow(path: Path) -> pa.Table:
    """Map a file of Arrow into memory; `datasets` writes streams, others files."""
    with pa.memory_map(str(path)) as stream:
        try:
            return pa.ipc.open_stream(stream).read_all()
        except pa.ArrowInvalid:
            stream.seek(0)
            return pa.ipc.open_file(stream).read_all()


def _features(schema: pa.Schema) -> Mapping[str, Any] | None:
    """Read what `datasets` wrote into a schema; other programs write nothing."""
    if b"huggingface" not in (schema.metadata or {}):
        return None
    from datasets import Features

    return Features.from_arrow_schema(schema)


# -- the hub -----------------------------------------------------------------------------------------------------------
def _of_hub(source: Path, config: str | None) -> list[Table]:
    from datasets import Features, Value, load_dataset

    with said(str(source)):
        splits: Any = load_dataset(str(source), config, streaming=True)
        features = {name: split.features for name, split in splits.items()}
        if any(getattr(split.info, "builder_name", None) == "csv" for split in splits.values()):
            # pandas would read 007 as 7, and NA as nothing. It leaves alone what it is told to be text.
            first = next(iter(next(iter(splits.values())).with_format("arrow").iter(batch_size=1)))
            texts = Features({name: Value("string") for name in first.column_names})
            splits = load_dataset(str(source), config, streaming=True, features=texts, keep_default_na=False)
    return [_of_split(str(name), split, features.get(name)) for name, split in splits.items()]


def _of_split(name: str, split: Any, features: Mapping[str, Any] | None) -> Table:
    def read(column: str | None) -> Iterator[dict[str, Any]]:
        chosen = split if column is None else split.select_columns([column])
        # As Arrow tables: rows as objects would pass through the library's own audio decoder, another package.
        for table in chosen.with_format("arrow").iter(batch_size=_ROWS_AT_ONCE):
            yield from table.to_pylist()

    return Table(name, f"split {name}", read, features)


@contextmanager
def said(what: str) -> Iterator[None]:
    """Say in one sentence what the reading of a table failed on.

    Raises:
        DataError: it failed.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # of whatever package reads the format
        reason = fold_whitespace(str(error))[:300].rstrip(". ")
        raise DataError(f"{what} cannot be read: {type(error).__name__}: {reason}.") from error
