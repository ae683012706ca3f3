"""The fingerprint of rows tells whether a resumed run has the rows that it began with."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from datasets import Dataset

from leaf.data import load
from leaf.data.fingerprint import rows_fingerprint

ROW = {"prompt": "p", "audio": "a.wav", "reference": "x", "offset": 0.0, "duration": 1.0, "reference_language": "ja"}


@pytest.mark.parametrize(
    "other", [{"offset": 1.0}, {"duration": 2.0}, {"reference_language": "zh"}, {"reference": "y"}]
)
def test_what_is_heard_and_how_it_is_scored_makes_other_rows(other):
    for make in (list, Dataset.from_list):
        assert rows_fingerprint(make([ROW])) == rows_fingerprint(make([{**ROW, "audio": "/moved/a.wav"}]))
        assert rows_fingerprint(make([ROW])) != rows_fingerprint(make([{**ROW, **other}]))


def test_a_manifest_in_another_folder_has_the_same_rows(tmp_path):
    first, moved = tmp_path / "first", tmp_path / "moved"
    first.mkdir()
    soundfile.write(first / "a.wav", np.full(16000, 0.1), 16000)
    rows = [{"prompt": "p", "audio": "a.wav", "reference": "x", "split": "train", "offset": 0.5}]
    (first / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    shutil.copytree(first, moved)
    here, there = (load(str(folder / "my.jsonl"), "train") for folder in (first, moved))
    assert here["utterance"] != there["utterance"]
    assert rows_fingerprint(here) == rows_fingerprint(there)
    assert rows_fingerprint(here.to_list()) == rows_fingerprint(there.to_list())
