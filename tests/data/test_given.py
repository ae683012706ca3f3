"""Rows from Python: every form of an audio column is heard, and texts pass the checks of manifests."""

import io
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import soundfile
import torch
from datasets import Audio, ClassLabel, Dataset, DatasetDict

from leaf.data.audio import load_audio
from leaf.data.fingerprint import rows_fingerprint
from leaf.data.given import rows_from
from leaf.data.recordings import audio_of
from leaf.data.rows import take
from leaf.errors import DataError
from tests.helpers.sound import tone

WAVE = tone(0.5)


class Decoder:
    """Stands for torchcodec's AudioDecoder, whose libraries are not everywhere: samples are (channels, samples)."""

    def get_all_samples(self):
        return SimpleNamespace(data=torch.from_numpy(WAVE).float()[None].repeat(2, 1), sample_rate=16000)


def encoded():
    file = io.BytesIO()
    soundfile.write(file, WAVE, 16000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def with_audio(cells):
    return {"prompt": ["Say"] * len(cells), "audio": cells, "reference": [f"r{i}" for i in range(len(cells))]}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(encoded())
    return str(path)


FORMS = {
    "path, decoded": lambda file: Dataset.from_dict(with_audio([file])).cast_column("audio", Audio()),
    "path, encoded": lambda file: Dataset.from_dict(with_audio([file])).cast_column("audio", Audio(decode=False)),
    "bytes, decoded": lambda file: Dataset.from_dict(with_audio([encoded()])).cast_column("audio", Audio()),
    "bytes, encoded": lambda file: Dataset.from_dict(with_audio([encoded()])).cast_column("audio", Audio(decode=False)),
    "rate": lambda file: Dataset.from_dict(with_audio([file])).cast_column("audio", Audio(sampling_rate=16000)),
    "array": lambda file: Dataset.from_dict(with_audio([{"array": WAVE.tolist(), "sampling_rate": 16000}])),
    "array, numpy": lambda file: FORMS["array"](file).with_format("numpy"),
    "array, torch": lambda file: FORMS["array"](file).with_format("torch"),
    "pandas format": lambda file: FORMS["bytes, decoded"](file).with_format("pandas"),
    "transform": lambda file: FORMS["path, encoded"](file).with_transform(lambda batch: batch),
    "list, decoder": lambda file: [{"prompt": "Say", "audio": Decoder(), "reference": "r0"}],
    "list, bytes": lambda file: [{"prompt": "Say", "audio": encoded(), "reference": "r0"}],
    "list, dict": lambda file: [{"prompt": "Say", "audio": {"bytes": encoded(), "path": None}, "reference": "r0"}],
    "tensor": lambda file: [
        {
            "prompt": "Say",
            "reference": "r0",
            "audio": {"array": torch.tensor(WAVE).requires_grad_(), "sampling_rate": 16000},
        }
    ],
    "table": lambda file: pa.table(with_audio([encoded()])),
    "frame": lambda file: pd.DataFrame(with_audio([file])),
    "message": lambda file: [
        {"prompt": [{"role": "user", "content": [{"type": "audio", "audio": Decoder()}]}], "reference": "r0"}
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_audio_is_heard(form, file):
    rows = rows_from(FORMS[form](file), "Training row")
    assert len(rows) == 1
    (row,) = take(rows, [0])
    assert row["reference"] == "r0"
    assert rows_fingerprint(rows)
    np.testing.assert_allclose(load_audio(audio_of(row)), WAVE, atol=1e-6)


def test_the_rate_that_an_audio_column_asks_for_is_kept(tmp_path):
    """At 8 kHz a tone of 6 kHz is not there, at whatever rate the model listens."""
    mixed = tone(0.5, hz=440.0) * 0.5 + tone(0.5, hz=6000.0) * 0.5
    soundfile.write(tmp_path / "a.wav", mixed, 16000, subtype="FLOAT")
    given = Dataset.from_dict(with_audio([str(tmp_path / "a.wav")])).cast_column("audio", Audio(sampling_rate=8000))
    (row,) = take(rows_from(given, "Training row"), [0])
    assert row["audio"]["sampling_rate"] == 8000
    spectrum = np.abs(np.fft.rfft(load_audio(audio_of(row))))
    assert spectrum[3000] < 0.02 * spectrum[220]  # bins of 2 Hz


def test_texts_are_checked_and_columns_named_as_in_manifests():
    given = Dataset.from_dict(
        {"Prompt": ["e\u0301", "b"], " Reference": [0, 1], "audio": ["a.wav", "b.wav"], "Level": [1, 2]}
    ).cast_column(" Reference", ClassLabel(names=["yes", "no"]))
    rows = rows_from(given, "Training row")
    assert rows.column_names == ["prompt", "reference", "audio", "Level"]
    assert rows["reference"] == ["yes", "no"]
    assert next(iter(rows)) == {"prompt": "é", "reference": "yes", "audio": "a.wav", "Level": 1}
    assert rows[-1]["reference"] == "no"
    (row,) = rows_from([{"prompt": "p", "audio": "a.wav", "Reference": ["x", "y"]}], "Training row")
    assert (row["reference"], row["references"]) == ("x", ["x", "y"])
    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "e\u0301"}]}]
    (row,) = rows_from([{"prompt": messages, "audio": "a.wav"}], "Training row")
    assert row["prompt"][0]["content"][1]["text"] == "é"


def test_a_language_has_no_outer_spaces():
    given = [{**ROW, "reference_language": language} for language in (" zh-CN ", "", None, "  ")]
    for make in (list, Dataset.from_list, pd.DataFrame):
        rows = rows_from(make(given), "Training row")
        assert [rows[i]["reference_language"] for i in range(4)] == ["zh-CN", None, None, None]
        assert [row["reference_language"] for row in rows] == ["zh-CN", None, None, None]


def test_a_column_is_what_its_rows_have_and_only_it_is_read(monkeypatch):
    given = Dataset.from_list(
        [
            {" Prompt": "e\u0301", "audio": "a.wav", "references": ["x", "y"], "id": 3, "level": 0, "Text": 7},
            {" Prompt": "q", "audio": "b.wav", "references": None, "id": 4, "level": 1, "Text": None},
        ]
    ).cast_column("level", ClassLabel(names=["easy", "hard"]))
    rows = rows_from(given, "Training row")
    names = ("prompt", "reference", "references", "text", "id", "level", "audio", "absent")
    by_row = {name: [row.get(name) for row in rows] for name in names}
    assert by_row["reference"] == ["x", None]
    assert by_row["level"] == ["easy", "hard"]
    assert rows["absent"] == [None, None]
    monkeypatch.setattr(rows, "source", rows.source.remove_columns("audio"))
    assert {name: rows[name] for name in names[:6]} == {name: by_row[name] for name in names[:6]}


def test_a_stream_becomes_a_list_without_the_decoder_of_another_library():
    stream = Dataset.from_dict(with_audio([encoded()])).cast_column("audio", Audio()).to_iterable_dataset()
    rows = rows_from(list(stream.cast_column("audio", Audio(decode=False)).take(1000)), "Training row")
    np.testing.assert_allclose(load_audio(audio_of(rows[0])), WAVE, atol=1e-6)


def test_a_data_set_with_several_references_has_the_column_of_the_first():
    given = Dataset.from_list([{"prompt": "p", "audio": "a.wav", "references": ["x", "y"]}])
    rows = rows_from(given, "Training row")
    assert "reference" in rows.column_names
    assert rows["reference"] == ["x"]


def test_lists_in_a_frame_from_parquet_are_lists(tmp_path):
    content = [{"type": "audio"}, {"type": "text", "text": "Who?"}]
    given = {"prompt": [{"role": "user", "content": content}], "audio": ["a.wav", "b.wav"], "reference": "x"}
    Dataset.from_list([given]).to_parquet(str(tmp_path / "rows.parquet"))
    (row,) = rows_from(pd.read_parquet(tmp_path / "rows.parquet"), "Training row")
    assert audio_of(row) == ["a.wav", "b.wav"]
    assert row["prompt"][0]["content"][1]["text"] == "Who?"
    (wave,) = rows_from(pd.DataFrame([{**given, "audio": {"array": WAVE, "sampling_rate": 16000}}]), "Training row")
    assert wave["audio"]["array"] is WAVE


def test_gaps_of_a_frame_are_empty_cells():
    frame = pd.DataFrame(
        {"prompt": ["p", "q"], "audio": ["a.wav", "b.wav"], "reference": ["NA", None], "level": [1, None]}
    )
    rows = rows_from(frame, "Training row")
    assert [row["reference"] for row in rows] == ["NA", None]
    assert rows[1]["level"] is None


ROW = {"prompt": "p", "audio": "a.wav", "reference": "x"}
STREAM = Dataset.from_list([ROW]).to_iterable_dataset()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (STREAM, "rows are an IterableDataset, which has no length, .* list.rows., or load .* without streaming=True"),
        ((row for row in [ROW]), "are a generator, which has no length"),
        (
            DatasetDict({"train": Dataset.from_list([ROW])}),
            r"a DatasetDict with the splits 'train'; .*dataset\['train'\]",
        ),
        (datasets.IterableDatasetDict({"test": STREAM}), r"with the splits 'test'; give one of them"),
        ({"validation": Dataset.from_list([ROW])}, r"a dict with the splits 'validation'; give one"),
        ({"prompt": ["p"]}, "a dict; give a list of mappings, one for each row"),
        ("my.jsonl", r"a str; read them first: leaf\.data\.load"),
        ({1, 2}, "a set; give a list of mappings, a datasets.Dataset or a DataFrame"),
        (["p"], "Training row 0, counted from 0, is 'p'; give a mapping"),
        ([ROW, {"audio": "a.wav"}], "Training row 1, counted from 0, has no prompt; it has the columns audio"),
        ([ROW, {**ROW, "reference": 1.5}], "Training row 1, .* has reference 1.5; it must be text, .* with a point"),
        (Dataset.from_list([{**ROW, "reference": {"de": "ja"}}]), "Training row 0, .*, and this is a dict with de"),
        (
            pd.DataFrame([["p", "a.wav", "x", "y"]], columns=["prompt", "audio", "reference", "reference"]),
            "The DataFrame of the training rows has the columns 'reference' and 'reference', which are the same",
        ),
        (pd.DataFrame([{**ROW, 5: "y"}]), "DataFrame of the training rows has the column 5, a name that is no text"),
        ([{**ROW, 5: "y"}], "Training row 0, counted from 0, has the column 5, a name that is no text. Rename it"),
        (pa.table([["p"], ["x"], ["y"]], names=["prompt", "reference", "reference"]), "Table .* has the columns 'ref"),
        ([{**ROW, "reference_language": 5}], "reference_language 5; it must be text, such as zh-CN, and this is a int"),
        (Dataset.from_list([{**ROW, "reference_language": ["ja"]}]), r"reference_language .*, and this is a list"),
        ([{**ROW, "Reference": "y"}], "has the columns 'reference' and 'Reference', which are the same"),
    ],
)
def test_what_cannot_be_taken_is_said_in_one_sentence(given, message):
    with pytest.raises(DataError, match=message):
        rows_from(given, "Training row")


def test_rows_are_checked_once_and_nothing_stays_nothing():
    rows = rows_from([ROW], "Training row")
    assert rows_from(rows, "Training row") is rows
    assert rows_from(None, "Validation row") is None
