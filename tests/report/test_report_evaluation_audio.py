"""Recordings in the evaluation section: which items get theirs, and what is said of those that are gone."""

import json

import pytest
from datasets import Dataset

from leaf.data import TASKS
from leaf.evaluation.predictions import Predictions
from tests.helpers.evaluations import AFTER, REFERENCES, drawn, html, write


@pytest.fixture
def plugged(run):
    """The run with a task that its plugin defines."""
    plugin = run.parent / "my_tasks.py"
    plugin.write_text(
        "import json\nfrom pathlib import Path\nfrom leaf.data import TASKS, Task\n"
        "def rows(split):\n"
        f"    folder = Path({str(run.parent.parent)!r})\n"
        "    lines = [json.loads(line) for line in (folder / 'rows.jsonl').read_text().splitlines()]\n"
        "    return [{**line, 'audio': str(folder / line['audio'])} for line in lines]\n"
        "TASKS['dictation'] = Task('d', 'CC0', ('test',), rows)\n"
    )
    (run / "recipe.yaml").write_text(f"stage: rl\ntask: dictation\nplugins: [{plugin}]\n")
    yield run
    TASKS.pop("dictation", None)


def test_the_most_telling_items_get_their_recordings_first(run):
    (whole,) = drawn([run]).data["sets"]
    assert [item["clip"] for item in whole["items"]] == [2, 1, 3, 0]  # row3 improved most, row1 worsened
    assert whole["lost"] == {"full": 0, "missing": 0, "unreadable": 0}
    assert whole["bytes"] == sum(len(clip["src"]) for clip in whole["clips"])
    half = whole["bytes"] // 2 + 2000
    (cut,) = drawn([run], audio_bytes=half).data["sets"]
    assert [item["clip"] for item in cut["items"]] == [None, 1, None, 0]
    assert (cut["lost"]["full"], cut["bytes"] <= half) == (2, True)


def test_every_set_has_its_share_of_the_recordings(run, tmp_path):
    other = tmp_path / "other" / "test_after.jsonl"
    write(other, [AFTER], lowercase=True)
    (whole,) = drawn([run]).data["sets"]
    sets = drawn([run], [other], audio_bytes=whole["bytes"] + 2000).data["sets"]
    assert [len(one["clips"]) for one in sets] == [2, 2]


def test_a_task_that_comes_with_leaf_needs_no_run(tmp_path):
    rows = TASKS["asterisk_qa"].rows("test")[:1]
    items = [{key: rows[0][key] for key in ("id", "prompt", "reference")}]
    made = Predictions("bare", items, [["?"]], [None], [[None]])
    decoding = {"greedy": True, "temperature": 0.9, "top_p": 0.9}
    made.meta = {"predictions": 1, "made_with": {"decoding": decoding, "task": "asterisk_qa", "split": "test"}}
    made.write(tmp_path / "bare.jsonl")
    (data,) = drawn(predictions=[tmp_path]).data["sets"]
    assert data["clips"][0]["seconds"] == pytest.approx(rows[0]["seconds"], abs=0.02)
    assert data["title"] == "asterisk_qa test: 1 item"


def test_recordings_of_a_task_that_a_plugin_defines(plugged):
    said = []
    data = drawn([plugged], say=said.append).data["sets"][0]
    assert (data["lost"], len(data["clips"]), said) == ({"full": 0, "missing": 0, "unreadable": 0}, 4, [])
    TASKS.pop("dictation")
    (plugged / "recipe.yaml").write_text("stage: rl\ntask: dictation\nplugins: [nowhere.py]\n")
    assert drawn([plugged], say=said.append).data["sets"][0]["lost"]["missing"] == 4
    (line,) = said
    assert "the report has no recordings of dictation: The plugin 'nowhere.py' cannot be imported" in line


def test_recordings_that_are_gone_are_counted_and_said(run, tmp_path, opened):
    (tmp_path / "0.wav").write_bytes(b"RIFF of nothing")
    said = []
    data = drawn([run], say=said.append).data
    assert data["sets"][0]["lost"] == {"full": 0, "missing": 0, "unreadable": 1}
    assert "row0" in said[0]
    (tmp_path / "1.wav").unlink()
    section = drawn([run], say=said.append)
    assert section.data["sets"][0]["lost"] == {"full": 0, "missing": 4, "unreadable": 0}
    assert "does not exist" in said[1]
    assert str(tmp_path) not in json.dumps(section.data)
    tab = opened(html(section))
    assert tab.locator(".heard").text_content().startswith("No item can be heard. No recording was found for 4 items")
    assert tab.locator(".silent").count() == 4


def test_a_row_without_a_recording_is_counted_and_said(run, monkeypatch):
    rows = [{"id": f"row{i}", "prompt": f"question {i}", "reference": REFERENCES[i], "audio": None} for i in range(4)]
    file = run.parent.parent / "1.wav"
    rows[1]["audio"] = str(file)
    monkeypatch.setattr("leaf.data.load", lambda *given, **options: Dataset.from_list(rows))
    said = []
    (data,) = drawn([run], say=said.append).data["sets"]
    assert data["lost"] == {"full": 0, "missing": 0, "unreadable": 3}
    assert [item["clip"] for item in data["items"]] == [None, 0, None, None]
    assert "carries 0 recordings" in said[0]
    assert len(said) == 1
