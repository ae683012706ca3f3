"""The fingerprint of rows tells whether a resumed run has the rows that it began with."""

import pytest
from datasets import Dataset

from leaf.data.fingerprint import rows_fingerprint

ROW = {"prompt": "p", "audio": "a.wav", "reference": "x", "offset": 0.0, "duration": 1.0, "reference_language": "ja"}


@pytest.mark.parametrize(
    "other", [{"offset": 1.0}, {"duration": 2.0}, {"reference_language": "zh"}, {"reference": "y"}]
)
def test_what_is_heard_and_how_it_is_scored_makes_other_rows(other):
    for make in (list, Dataset.from_list):
        assert rows_fingerprint(make([ROW])) == rows_fingerprint(make([{**ROW, "audio": "/moved/a.wav"}]))
        assert rows_fingerprint(make([ROW])) != rows_fingerprint(make([{**ROW, **other}]))
