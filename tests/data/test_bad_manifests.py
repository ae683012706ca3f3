"""Manifests that are broken, that link and that are long."""

import json
import time

import pytest

from leaf.data import load
from leaf.errors import DataError
from tests.helpers.sound import write


def test_a_file_that_is_missing_in_the_last_row_is_found_on_reading(tmp_path):
    write(tmp_path / "a.wav", 0.5)
    rows = [{"prompt": "Say", "audio": "a.wav", "reference": str(i), "split": "train"} for i in range(2000)]
    rows[-1]["audio"] = "gone.wav"
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"Row 2000 of data\.jsonl names the audio file .*gone\.wav', which does not"):
        load(str(tmp_path / "data.jsonl"), "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"prompt": "a", "prompt": "b"}',
            "Line 1 of data.jsonl cannot be read as JSON: it has the key 'prompt' twice",
        ),
        (b'{"prompt": "a\\ud800", "audio": "a.wav", "reference": "x"}', "surrogates not allowed"),
        (b'{"prompt": "a", "audio": "a.wav", "reference": "x", "note": "\\ud800"}', "surrogates not allowed"),
        (b'{"prompt": "a", "audio": "a.wav", "reference": "x", "level": 99999999999999999999}', "kinds of values"),
        (b'{"prompt": "a", "audio": "a.wav", "level": ' + b"9" * 5000 + b"}", "Line 1 .* cannot be read"),
        (b'{"a":' * 20_000, "recursion depth exceeded"),
        ('{"prompt": "é"}'.encode("latin-1"), r"not UTF-8 \(byte 12 is 0xe9\)"),
        ('{"prompt": "a"}'.encode("utf-16"), r"not UTF-8 \(byte 0 is 0xff\)"),
        (b'{"prompt": "a", "audio": ".", "reference": "x"}', "which is a folder"),
        (b'{"prompt": "a", "audio": "loop.wav", "reference": "x"}', "which cannot be reached"),
        (b'{"prompt": "a", "audio": "a\\u0000.wav", "reference": "x"}', "cannot exist under such a name"),
    ],
)
def test_broken_manifests_are_named(tmp_path, content, message):
    write(tmp_path / "a.wav", 0.5)
    (tmp_path / "loop.wav").symlink_to(tmp_path / "loop.wav")
    (tmp_path / "data.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(str(tmp_path / "data.jsonl"), "train")
    assert len(str(caught.value)) < 1000


def test_links_are_followed_and_one_recording_has_one_name(tmp_path):
    (tmp_path / "real").mkdir()
    write(tmp_path / "real/a.wav", 0.5)
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "b.wav").symlink_to(tmp_path / "real/a.wav")
    names = ["real/a.wav", "linked/a.wav", "b.wav", "./real/../real/a.wav"]
    rows = [{"prompt": "Say", "audio": name, "reference": name, "split": "train"} for name in names]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    got = load(str(tmp_path / "data.jsonl"), "train")["audio"]
    assert got == [[str((tmp_path / "real/a.wav").resolve())]] * 4


def test_eighty_thousand_rows_are_read_in_seconds(tmp_path):
    """A tenth of them here: the time per row is what counts; benchmarks and docs have the whole."""
    write(tmp_path / "a.wav", 0.1)
    rows = [{"prompt": "Say", "audio": "a.wav", "reference": str(i), "split": "train"} for i in range(8000)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    began = time.process_time()
    assert len(load(str(tmp_path / "data.jsonl"), "train")) == 8000
    assert time.process_time() - began < 3.0
