import json

import numpy as np
import pytest
import soundfile

from leaf.errors import DataError
from leaf.tasks import check_leakage, load


@pytest.fixture
def folder(tmp_path):
    for i in range(40):
        soundfile.write(tmp_path / f"{i}.wav", np.full(1600, 0.1), 16000)
    return tmp_path


def manifest(folder, rows, name="data.jsonl"):
    path = folder / name
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def test_a_manifest_gives_rows_with_absolute_paths_and_other_columns(folder):
    rows = [{"prompt": "Say", "audio": "1.wav", "reference": "one", "split": "train", "level": 3}]
    row = load(manifest(folder, rows), "train")[0]
    assert row["audio"] == [str(folder / "1.wav")]
    assert (row["prompt"], row["reference"], row["level"]) == ("Say", "one", 3)


def test_csv_tsv_and_column_names(folder):
    (folder / "a.csv").write_text("question,file,answer,split\nSay,1.wav,one,test\n")
    (folder / "a.tsv").write_text("question\tfile\tanswer\tsplit\nSay\t1.wav\tone\ttest\n")
    columns = {"prompt": "question", "audio": "file", "reference": "answer"}
    for name in ("a.csv", "a.tsv"):
        assert load(str(folder / name), "test", columns=columns)[0]["reference"] == "one"


def test_without_a_split_column_rows_go_by_recording(folder):
    rows = [{"prompt": f"Say {j}", "audio": f"{i}.wav", "reference": "x"} for i in range(40) for j in range(3)]
    path = manifest(folder, rows)
    splits = {split: load(path, split).to_list() for split in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == 120
    assert check_leakage(splits) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Say", "audio": "9999.wav", "reference": "x"}, "Row 1 of data.jsonl names the audio file"),
        ({"prompt": "Say", "audio": "1.wav", "reference": ""}, "has no reference"),
        ({"prompt": "Say", "audio": "1.wav"}, "has no reference"),
        ({"prompt": "Say", "audio": "1.wav", "reference": "x", "split": "dev"}, "split 'dev'"),
    ],
)
def test_bad_rows_are_named(folder, row, message):
    with pytest.raises(DataError, match=message):
        load(manifest(folder, [row]), "train")


def test_bad_files_are_named(folder):
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\nnot json\n')
    with pytest.raises(DataError, match=r"Line 2 of bad\.jsonl is not JSON"):
        load(str(folder / "bad.jsonl"), "train")
    (folder / "list.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="holds a list"):
        load(str(folder / "list.jsonl"), "train")
    with pytest.raises(DataError, match="cannot be read"):
        load(str(folder / "none.jsonl"), "train")
    with pytest.raises(DataError, match="only prompt, audio, reference and split"):
        load(manifest(folder, [{"prompt": "a"}]), "train", columns={"sound": "x"})
    with pytest.raises(DataError, match="no rows in split 'test'"):
        load(manifest(folder, [{"prompt": "a", "audio": "1.wav", "reference": "x", "split": "train"}]), "test")
