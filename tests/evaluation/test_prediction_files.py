"""Prediction files: what they keep of their items, and what cannot be read."""

import json

import numpy as np
import pytest

from leaf.errors import DataError
from leaf.evaluation.predictions import Predictions, kept_items, prediction_files, read_meta, read_predictions


def test_items_keep_no_path_and_every_id_once():
    messages = [
        {"role": "user", "content": [{"type": "audio", "audio": "/home/me/a.wav"}, {"type": "text", "text": "?"}]}
    ]
    rows = [
        {"id": "a", "prompt": messages, "audio": "/home/me/a.wav", "reference": "x", "utterance": "/home/me/a.wav"},
        {"id": "a", "prompt": "?", "audio": "b.wav", "reference": "y"},
        {"prompt": "?", "audio": "b.wav", "reference": "y", "text": None},
    ]
    items = kept_items(rows)
    assert [item["id"] for item in items] == ["a", "a#2", "2"]
    assert "/home" not in json.dumps(items)
    assert items[0]["prompt"] == "?"
    assert items[0]["utterance"].startswith("a.wav#")


def test_rows_without_references_are_read_again(tmp_path):
    rows = [
        {"id": "a", "prompt": "?", "audio": "a.wav"},
        {"id": "b", "prompt": "?", "audio": "b.wav", "reference": None},
    ]
    made = Predictions("s", kept_items(rows), [["x", "y"]], [None], meta={"predictions": 1})
    made.write(tmp_path / "s.jsonl")
    assert read_predictions(tmp_path / "s.jsonl").references == ["", ""]
    # As earlier versions wrote them.
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    without = [{key: value for key, value in line.items() if key != "reference"} for line in lines]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in without))
    assert read_predictions(tmp_path / "s.jsonl").references == ["", ""]
    (tmp_path / "s.meta.json").unlink()  # another program's
    with pytest.raises(DataError, match=r"Line 1 of .* has reference None"):
        read_predictions(tmp_path / "s.jsonl")


def test_rows_of_one_recording_are_one_recording():
    row = {"prompt": "?", "reference": "x"}
    rows = [
        {**row, "audio": "/home/me/long.wav"},
        {**row, "audio": "/home/me/long.wav", "offset": 2.0, "duration": 1.5},
        {**row, "audio": {"path": "/home/me/long.wav"}},
        {**row, "audio": "/home/you/long.wav"},
        {**row, "audio": "/home/me/long.wav", "utterance": "of its own"},
        {**row, "id": "without"},
    ]
    groups = Predictions("", kept_items(rows)).groups
    assert len(set(groups[:3])) == 1
    assert len(set(groups)) == 4
    assert groups[4:] == ["of its own", "without"]
    assert "/home" not in json.dumps(kept_items(rows))
    # Samples have no name, so they are known by what they are.
    waves = [np.zeros(160), np.zeros(160), np.ones(160)]
    heard = Predictions("", kept_items([{**row, "audio": {"array": w, "sampling_rate": 16000}} for w in waves])).groups
    assert heard[0] == heard[1] != heard[2]


def test_files_that_cannot_be_read(tmp_path):
    def read(*lines):
        (tmp_path / "x.jsonl").write_text("\n".join(lines))
        return read_predictions(tmp_path / "x.jsonl")

    def row(number, name, **more):
        return json.dumps({"id": name, "pass": number, "prediction": "p", "reference": "r", **more})

    foreign = read('{"id": "1", "prediction": "p", "reference": "r"}')
    assert (foreign.system, foreign.passes, foreign.groups) == ("x", [["p"]], ["1"])
    with pytest.raises(DataError, match=r"Line 1 of .* is not a JSON object"):
        read("{")
    with pytest.raises(DataError, match=r"Line 1 of .* has prediction None"):
        read('{"id": "1", "reference": "r"}')
    with pytest.raises(DataError, match=r"Line 2 of .* has reference_language 5; give the name of a language"):
        read(row(0, "1", reference_language="de"), row(0, "2", reference_language=5))
    assert read("\ufeff" + row(0, "1"), row(0, "2")).passes == [["p", "p"]]
    with pytest.raises(DataError, match="'1' twice in pass 0"):
        read(row(0, "1"), row(0, "1"))
    with pytest.raises(DataError, match="other items than its first pass, such as '2'"):
        read(row(0, "1"), row(1, "1"), row(1, "2"))
    with pytest.raises(DataError, match=r"Pass 1 of .* another reference than its first pass for 1 items, such as '2'"):
        read(row(0, "1"), row(0, "2"), row(1, "1"), row(1, "2", reference="other"))
    with pytest.raises(DataError, match="has no predictions"):
        read()
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="has no prediction files"):
        prediction_files([tmp_path])
    # Rows of another order in the second pass are put in the first one's.
    swapped = read(row(0, "1"), row(0, "2"), row(1, "2", prediction="b"), row(1, "1", prediction="a"))
    assert swapped.passes[1] == ["a", "b"]


def test_meta_data_that_leaf_did_not_write_are_refused(tmp_path):
    for text, message in (
        ('{"made_with": 3}', "has made_with: 3, which leaf does not write"),
        ('{"metrics": []}', r"has metrics: \[\], which leaf does not write"),
        ("[1]", "cannot be read as a JSON object"),
        ("[" * 100_000, "cannot be read as a JSON object"),
    ):
        (tmp_path / "a.meta.json").write_text(text)
        with pytest.raises(DataError, match=rf"a\.meta\.json {message}"):
            read_meta(tmp_path / "a.jsonl")
