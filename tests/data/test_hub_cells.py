"""`leaf data prepare hub`: texts as they are written, labels by their names, splits by a column, single files."""

import gc
import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value, load_dataset
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.data import load, splits_of
from leaf.data.corpora import CORPORA, Options, prepare
from leaf.errors import DataError
from tests.helpers.corpora import hub_of
from tests.helpers.sound import write


@pytest.fixture
def source(tmp_path):
    for i in range(8):
        write(tmp_path / f"source/{i}.wav", 0.1 + i / 100)
    return tmp_path / "source"


def prepared(source, target="target", **options):
    folder = source if source.is_dir() else source.parent
    to = folder.parent / target
    summary = prepare("hub", CORPORA["hub"], source, to, options=Options(**options), say=lambda line: None)
    return {split: load(str(to), split) for split in summary["splits"]}


def references(source, **options):
    rows = [row for its in prepared(source, **options).values() for row in its]
    return {int(Path(row["audio"][0]).stem): row["reference"] for row in rows}


WRITTEN = ["007", "7", "NA", "null", "7.0", "True", "1e3", "2020-01-01"]


@pytest.mark.parametrize(("suffix", "delimiter"), [("csv", ","), ("tsv", "\t")])
def test_cells_of_text_files_are_text(source, suffix, delimiter):
    lines = ["prompt,audio,Reference", *(f"p,{i}.wav,{text}" for i, text in enumerate(WRITTEN))]
    (source / f"rows.{suffix}").write_text("\n".join(lines).replace(",", delimiter))
    assert references(source) == dict(enumerate(WRITTEN))


def test_whole_numbers_are_their_digits_beside_an_empty_cell(source):
    table = pa.table(
        {"prompt": ["p"] * 3, "audio": [f"{i}.wav" for i in range(3)], "reference": pa.array([7, None, 12])}
    )
    pq.write_table(table, source / "rows.parquet")
    assert references(source) == {0: "7", 2: "12"}


def test_labels_are_their_names(source):
    features = Features(
        {"prompt": Value("string"), "audio": Value("string"), "reference": ClassLabel(names=["yes", "no"])}
    )
    rows = {"prompt": ["p"] * 3, "audio": [f"{i}.wav" for i in range(3)], "reference": [0, 1, -1]}
    Dataset.from_dict(rows, features=features).to_parquet(source / "rows.parquet")
    assert references(source) == {0: "yes", 1: "no"}


def test_the_part_of_a_translation_is_named(source):
    rows = [{"prompt": "p", "audio": f"{i}.wav", "translation": {"de": f"ja {i}", "en": "yes"}} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), source / "rows.parquet")
    assert references(source, columns={"reference": "translation.de"}) == {i: f"ja {i}" for i in range(3)}
    with pytest.raises(DataError, match=r"Row 1 of rows\.parquet has translation .*, and this is a dict with de, en"):
        prepared(source, "other", columns={"reference": "translation"})
    with pytest.raises(DataError, match=r"has no column translation\.fr; it has prompt, audio, translation"):
        prepared(source, "other", columns={"reference": "translation.fr"})


def test_several_references_are_kept(source):
    rows = [
        {"prompt": "p", "audio": "0.wav", "reference": ["a", "b"]},
        {"prompt": "p", "audio": "1.wav", "reference": ["c"]},
    ]
    (source / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    got = {row["reference"]: row["references"] for its in prepared(source).values() for row in its}
    assert got == {"a": ["a", "b"], "c": None}


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        ([1.5], "a number with a point"),
        ([float("nan"), 7.0], "a number with a point, or a gap"),
        ([True], "true or false"),
        ([b"x"], "bytes"),
        ([["a", ["b"]]], "a list"),
    ],
)
def test_what_is_no_text_is_refused_with_row_and_kind(source, cells, kind):
    rows = {"prompt": ["p"] * len(cells), "audio": [f"{i}.wav" for i in range(len(cells))]}
    if kind == "a list":
        (source / "rows.json").write_text(json.dumps([{"prompt": "p", "audio": "0.wav", "reference": cells[0]}]))
    else:
        pq.write_table(pa.table({**rows, "reference": cells}), source / "rows.parquet")
    with pytest.raises(DataError, match=rf"Row 1 of rows\.\w+ has reference.*; it must be text, and this is {kind}"):
        prepared(source)


def test_messages_as_a_prompt_are_refused(source):
    row = {"prompt": [{"role": "user", "content": "Say"}], "audio": "0.wav", "reference": "x"}
    (source / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"Row 1 of rows\.jsonl has prompt .*a list\. Messages come from tasks of your"):
        prepared(source)


@pytest.mark.parametrize("name", ["split", "Split", " SPLIT"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_column_decides_the_split(source, name, suffix):
    sides = ["train", "Train", "dev", "test", "test", "valid", "train", "train"]
    rows = [{"prompt": "p", "audio": f"{i}.wav", "reference": f"r{i}", name: side} for i, side in enumerate(sides)]
    if suffix == "csv":
        (source / "rows.csv").write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))
    else:
        pq.write_table(pa.Table.from_pylist(rows), source / "rows.parquet")
    got = {split: sorted(rows["reference"]) for split, rows in prepared(source).items()}
    assert got == {"train": ["r0", "r1", "r6", "r7"], "validation": ["r2", "r5"], "test": ["r3", "r4"]}


def test_a_column_that_the_first_rows_lack_is_read_and_rows_without_it_are_refused(source):
    rows = [{"audio": f"{i}.wav", "reference": f"r{i}"} for i in range(4)]
    rows[0]["prompt"] = "p"
    for i, side in enumerate(["train", "test", "test"], start=1):
        rows[i] |= {"Split": side, "prompt": f"q{i}"}

    def write_rows(*chosen):
        (source / "rows.jsonl").write_text("\n".join(json.dumps(one) for one in chosen))

    write_rows(*rows)
    with pytest.raises(DataError, match=r"Row 1 of rows\.jsonl has no split\. Fill it, or leave"):
        prepared(source)
    write_rows(rows[0] | {"split": None}, *rows[1:2])
    with pytest.raises(DataError, match=r"Row 1 of rows\.jsonl has no split\. Fill it, or leave"):
        prepared(source, "null")
    write_rows(rows[0] | {"split": "train"}, *rows[1:])
    got = {split: sorted(its["reference"]) for split, its in prepared(source, "filled").items()}
    assert got == {"train": ["r0", "r1"], "test": ["r2", "r3"]}
    # Nor is the name of the column the prompt of a row that lacks it.
    write_rows({"audio": "0.wav", "reference": "r0"}, rows[1])
    got = prepared(source, "asked", columns={"prompt": "Prompt", "split": "none"})
    assert [row["prompt"] for its in got.values() for row in its] == ["q1"]


@pytest.mark.parametrize("test", [(1.0, 10.0), (10.0, 5.0)])
def test_stretches_of_one_file_on_both_sides_stop_a_preparation(source, test):
    write(source / "long.wav", 16.0)
    for name, (offset, duration) in {"train": (0.0, 10.0), "test": test}.items():
        row = {"audio": "long.wav", "offset": offset, "duration": duration, "reference": name, "prompt": "p"}
        (source / f"{name}.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=r"1 uses of audio are on both sides of a split, first .*long\.wav#"):
        prepared(source)


def test_a_column_of_plain_bytes_is_audio(source):
    data = [(source / f"{i}.wav").read_bytes() for i in range(2)]
    pq.write_table(
        pa.table({"prompt": ["p"] * 3, "audio": [*data, b""], "reference": ["a", "b", "c"]}), source / "r.parquet"
    )
    got = [row for its in prepared(source).values() for row in its]
    assert sorted((row["reference"], row["seconds"]) for row in got) == [("a", 0.1), ("b", 0.11)]


def put(source, name, sides, column="split"):
    rows = [{"prompt": "p", "audio": f"{i}.wav", "reference": f"r{i}", column: side} for i, side in sides.items()]
    (source / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_values_of_a_split_column_are_mapped_or_refused(source):
    put(source, "rows", {0: "fold1", 1: "fold2", 2: "bad"}, column="fold")
    columns = {"split": "Fold"}
    with pytest.raises(DataError, match=r"Row 1 of rows\.jsonl has Fold 'fold1'; known are .*`--split fold1=train`"):
        prepared(source, columns=columns)
    maps = {"Fold1": "train", "fold2": "test", "bad": "none"}
    got = {split: rows["reference"] for split, rows in prepared(source, "to", columns=columns, splits=maps).items()}
    assert got == {"train": ["r0"], "test": ["r1"]}
    with pytest.raises(DataError, match=r"maps to trian\. Did you mean 'train'"):
        prepared(source, "more", columns=columns, splits={"fold1": "trian"})
    with pytest.raises(DataError, match=r"--columns maps split to part, and rows\.jsonl has no such column"):
        prepared(source, "more", columns={"split": "part"})


def test_a_split_column_that_contradicts_the_names_of_files_is_refused(source):
    put(source, "train", {0: "train", 1: "test"})
    put(source, "test", {2: "test"})
    with pytest.raises(DataError, match=r"Row 2 of train\.jsonl has split 'test', and it is in a table for train"):
        prepared(source)
    got = prepared(source, "by name", columns={"split": "none"})
    assert got["test"]["reference"] == ["r2"]
    put(source, "test", {2: "test"}, column="other")
    with pytest.raises(DataError, match=r"train\.jsonl has a column split and other tables have none"):
        prepared(source, "more")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl", "json", "arrow"])
def test_a_single_file_is_a_source(source, suffix):
    rows = [{"prompt": "p", "audio": f"{i}.wav", "reference": f"r{i}"} for i in range(4)]
    file = source / f"x.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif suffix == "arrow":
        Dataset.from_list(rows).save_to_disk(str(source.parent / "saved"))
        file.write_bytes(next((source.parent / "saved").glob("*.arrow")).read_bytes())
    elif suffix == "csv":
        file.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]))
    else:
        file.write_text("\n".join(map(json.dumps, rows)) if suffix == "jsonl" else json.dumps(rows))
    (source / "other.parquet").write_bytes(b"not read")
    arguments = ["data", "prepare", "hub", "--from", str(file), "--to", str(source.parent / "to")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.exception
    rows = [row for split in ("train", "validation", "test") for row in _rows(source.parent / "to", split)]
    assert sorted(row["reference"] for row in rows) == ["r0", "r1", "r2", "r3"]
    assert Path(rows[0]["audio"][0]).parent == source


def _rows(folder, split):
    return load(str(folder), split).to_list() if (folder / f"{split}.arrow").exists() else []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.parquet", b"PAR1 and no more", r"x\.parquet cannot be read: ArrowInvalid"),
        ("x.arrow", b"no arrow", r"x\.arrow cannot be read: Arrow"),
        ("x.jsonl", b'{"prompt": "p"}\n{"prompt"', r"Line 2 of x\.jsonl cannot be read as JSON"),
        (
            "x.csv",
            "prompt,reference\na,b\nc,é\n".encode("latin-1"),
            r"not UTF-8 .* in line 3; it looks like Windows-1252",
        ),
        ("x.csv", b"prompt;audio;reference\np;0.wav;x\n", "delimiter seems to be a semicolon"),
        ("x.csv", b"", r"x\.csv has no rows"),
        ("x.parquet", None, r"x\.parquet does not exist"),
        ("x.xlsx", b"x", r"x\.xlsx is no file of rows\. Give one of \.jsonl"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_sentence(source, name, content, message):
    if content is not None:
        (source / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        prepared(source / name) if content is not None else prepare(
            "hub", CORPORA["hub"], source / name, source.parent / "to", say=lambda line: None
        )
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_files_of_one_row_are_joined(source):
    (source / "x.jsonl").write_text(json.dumps({"prompt": "p", "audio": ["0.wav", "1.wav"], "reference": "x"}))
    ((row,),) = prepared(source).values()
    assert [Path(name).name for name in row["audio"]] == ["0.wav", "1.wav"]
    assert row["seconds"] == pytest.approx(0.1 + 0.11 + 0.06)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pandas' file is open until it is read
def test_tables_of_the_hub_are_read_as_text(source, monkeypatch):
    """A data set of CSV files passes through pandas, which is told to leave the cells alone."""
    lines = ["prompt,audio,reference", *(f"p,{i}.wav,{text}" for i, text in enumerate(WRITTEN))]
    (source / "rows.csv").write_text("\n".join(lines))

    def of_the_hub(name, config, **options):
        return load_dataset("csv", data_files={"train": str(source / "rows.csv")}, **options)

    monkeypatch.setattr("datasets.load_dataset", of_the_hub)
    hub_of(monkeypatch, "datasets/somebody/speech", source)
    to = source.parent / "to"
    summary = prepare("hub", CORPORA["hub"], Path("somebody/speech"), to, say=lambda line: None)
    gc.collect()
    rows = [row for split in summary["splits"] for row in load(str(to), split)]
    assert {int(row["id"].split("-")[1]): row["reference"] for row in rows} == dict(enumerate(WRITTEN))


def test_arrays_inside_a_table(source):
    cells = [{"array": (0.5 * np.sin(np.arange(1600) / 5)).tolist(), "sampling_rate": 16000}]
    rows = {"prompt": ["p"], "reference": ["x"], "audio": cells}
    pq.write_table(pa.table(rows), source / "x.parquet")
    ((row,),) = prepared(source).values()
    assert row["seconds"] == pytest.approx(0.1)


def test_a_data_set_without_references_is_prepared_where_that_is_asked_for(source):
    (source / "x.csv").write_text("prompt,audio,split,lang\np,0.wav,train,ja\nq,1.wav,train,ja\n")
    with pytest.raises(DataError, match=r"has no column reference; .*reference=none is for rewards that read none"):
        prepared(source)
    columns = {"reference": "none", "reference_language": "lang"}
    rows = prepared(source, "free", columns=columns)["train"]
    assert "reference" not in rows.column_names
    assert rows["reference_language"] == ["ja", "ja"]


def test_the_language_of_a_reference_is_text_without_outer_spaces(source):
    row = {"prompt": "p", "audio": "0.wav", "reference": "x", "split": "train", "reference_language": " ja "}
    (source / "rows.jsonl").write_text(json.dumps(row))
    assert prepared(source)["train"]["reference_language"] == ["ja"]
    (source / "rows.jsonl").write_text(json.dumps(row | {"reference_language": ["ja"]}))
    with pytest.raises(DataError, match=r"Row 1 of rows\.jsonl has reference_language .*must be text.*a list"):
        prepared(source, "list")


def test_files_are_found_in_the_other_unicode_form(source):
    """macOS decomposes names, and its archives keep them so; a table from elsewhere has them composed."""
    (source / unicodedata.normalize("NFD", "für")).mkdir()
    write(source / unicodedata.normalize("NFD", "für/ガ.wav"), 0.2)
    name = unicodedata.normalize("NFC", "für/ガ.wav")
    (source / "x.csv").write_text(f"prompt,audio,reference\np,{name},x\n")
    ((row,),) = prepared(source).values()
    assert row["seconds"] == pytest.approx(0.2)
    (manifested,) = [row for split in splits_of(str(source / "x.csv")) for row in load(str(source / "x.csv"), split)]
    assert manifested["audio"] == row["audio"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": 7}, r"has audio 7; audio is the path of a file"),
        ({"audio": {"file": "0.wav"}}, r"has audio \{'file': '0\.wav'\}; audio is the path of a file"),
        ({"split": " "}, r"has no split\. Fill it"),
        ({"split": ["train"]}, r"has split \['train'\]; it must be text, and this is a list"),
        ({"audio": {"array": [0.1], "sampling_rate": "x"}}, r"Refused: \{'audio unusable': 1\}"),
    ],
)
def test_cells_of_another_kind_are_refused_with_their_row(source, row, message):
    (source / "x.jsonl").write_text(json.dumps({"prompt": "p", "audio": "0.wav", "reference": "r"} | row))
    with pytest.raises(DataError, match=message):
        prepared(source)
