"""Recordings in the tree explorer: they are found again and played, and a silent group says why."""

import json

import numpy as np
import pytest
import soundfile
from datasets import Dataset

from leaf.config import LeafConfig, to_dict
from leaf.data import load
from leaf.errors import AudioError
from leaf.report.audio import Recordings
from leaf.report.page import page
from tests.helpers.explorer import drawn
from tests.helpers.recorded import worked, write_run
from tests.helpers.waits import until


def spoken_run(tmp_path, *, length=1, **recipe):
    """Write a run of three groups: the rows of two are in a manifest beside their recordings, the third row is gone."""
    seconds = np.arange(16000 * length) / 16000
    rows = []
    for name, pitch in (("a", 220), ("b", 440)):
        soundfile.write(tmp_path / f"{name}.wav", 0.3 * np.sin(2 * np.pi * pitch * seconds), 16000)
        rows.append({"id": name, "audio": f"{name}.wav", "prompt": "Say", "reference": name, "split": "train"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = [worked(id=name, prompt="Say", reference=name, audio=[f"{name}.wav"]) for name in ("a", "b", "gone")]
    return write_run(tmp_path / "run", records, **{"task": str(tmp_path / "rows.jsonl"), **recipe})


def test_recordings_are_found_again_played_and_missing_ones_named(tmp_path, opened):
    run = spoken_run(tmp_path, length=15)
    section = drawn([run])
    groups = section.data["runs"][0]["groups"]
    assert [group["clip"] for group in groups] == [0, 1, None]
    assert groups[2]["silence"].endswith("rows.jsonl no longer has this row.")
    assert section.data["clips"][0]["seconds"] == 15.0  # long enough not to be over before it is looked at
    tab = opened(page("a run", [section]))
    assert tab.locator("#trees .files").text_content() == "a.wav"
    tab.keyboard.press("a")
    until(tab, "document.querySelector('#trees audio').currentTime > 0.05")
    assert 14.9 < tab.evaluate("document.querySelector('#trees audio').duration") < 15.2
    tab.keyboard.press("2")  # a switch of the rule does not cut the sound off
    assert not tab.evaluate("document.querySelector('#trees audio').paused")
    tab.keyboard.press("n")
    tab.keyboard.press("n")
    assert "no longer has this row" in tab.locator("#trees .silence").text_content()


def test_a_group_says_why_it_is_silent(tmp_path):
    run = spoken_run(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"no sound")
    section = drawn([run])
    groups = section.data["runs"][0]["groups"]
    assert "a.wav" in groups[0]["silence"]
    assert groups[1]["clip"] == 0
    assert "small" in drawn([run], audio_bytes=100).data["runs"][0]["groups"][1]["silence"]
    (tmp_path / "a.wav").unlink()
    for group in drawn([run]).data["runs"][0]["groups"]:
        assert group["clip"] is None
        assert "the rows of rows.jsonl cannot be read" in group["silence"]
        assert "names the audio file 'a.wav', which does not exist" in group["silence"]
        # A report is passed on: it says nothing of the machine it was written on.
        assert str(tmp_path) not in json.dumps(group) + json.dumps(section.data)
    silent = drawn([run], audio=False).data["runs"][0]["groups"][0]
    assert silent["silence"] == "This report was written without recordings."


def test_a_row_without_a_recording_silences_its_own_groups_alone(tmp_path, monkeypatch):
    run = spoken_run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    rows = [row | {"audio": file} for row, file in zip(rows, (None, str(tmp_path / "b.wav")), strict=True)]
    monkeypatch.setattr("leaf.data.load", lambda *given, **options: Dataset.from_list(rows))
    with pytest.raises(AudioError, match="'a' carries 0 recordings"):
        Recordings("task").find({"id": "a"}, "train")
    groups = drawn([run]).data["runs"][0]["groups"]
    assert [group["clip"] for group in groups] == [None, 0, None]
    assert "'a' carries 0 recordings" in groups[0]["silence"]
    assert "no longer has this row" in groups[2]["silence"]


def test_runs_of_one_task_read_its_rows_once(tmp_path, monkeypatch):
    run = spoken_run(tmp_path)
    again = write_run(tmp_path / "again", list(run.lines("groups.jsonl")), task=run.config().task)
    read = []
    monkeypatch.setattr("leaf.data.load", lambda *given, **options: read.append(given) or load(*given, **options))
    runs = drawn([run, again]).data["runs"]
    assert [[group["clip"] for group in one["groups"]] for one in runs] == [[0, 1, None]] * 2
    assert len(read) == 1


def test_plugins_of_a_run_are_run_only_for_a_task_of_their_own(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text("raise RuntimeError('was run')")
    run = spoken_run(tmp_path, plugins=[str(plugin)], credit="mine")
    assert drawn([run]).data["runs"][0]["groups"][0]["clip"] == 0
    values = to_dict(LeafConfig(task="my_task", plugins=[str(plugin)]))
    (run.path / "recipe.yaml").write_text(json.dumps(values))
    assert "was run" in drawn([run]).data["runs"][0]["groups"][0]["silence"]
    assert "was run" not in json.dumps(drawn([run], audio=False).data)
