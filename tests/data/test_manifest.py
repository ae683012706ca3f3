import json

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.data import load, splits_of
from leaf.data.audio import load_audio
from leaf.data.leaks import check_leakage
from leaf.data.recordings import audio_of, row_seconds
from leaf.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for i in range(40):
        soundfile.write(tmp_path / f"{i}.wav", np.full(1600, 0.1 + i / 1000), 16000)
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


def test_names_of_rows_are_kept_and_an_id_of_0_is_one(folder):
    rows = [{"prompt": f"Say {i}", "audio": "1.wav", "reference": "x", "split": "train", "id": i} for i in range(3)]
    assert load(manifest(folder, rows), "train")["id"] == ["0", "1", "2"]
    for row in rows:
        del row["id"]
    assert load(manifest(folder, rows), "train")["id"] == ["1", "2", "3"]


def test_a_split_without_rows_says_what_helps(folder):
    rows = [{"prompt": "Say", "audio": "1.wav", "reference": "x", "split": "train"}]
    with pytest.raises(DataError, match=r"no rows in split 'validation'; it has 1 in train\. .*eval_every=0"):
        load(manifest(folder, rows), "validation")


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


def test_without_a_split_column_rows_of_one_utterance_stay_together(folder):
    rows = [{"prompt": "Say", "audio": f"{i}.wav", "reference": "x", "utterance": f"call {i % 20}"} for i in range(40)]
    path = manifest(folder, rows)
    splits = {split: load(path, split).to_list() for split in ("train", "validation", "test")}
    calls = [{row["utterance"] for row in its} for its in splits.values()]
    assert sum(map(len, splits.values())) == 40
    assert sum(map(len, calls)) == 20
    assert check_leakage(splits) == []


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Say", "audio": "9999.wav", "reference": "x"}, "Row 1 of data.jsonl names the audio file"),
        ({"prompt": "Say", "audio": "1.wav", "reference": ""}, "has no reference"),
        ({"prompt": "Say", "audio": "1.wav", "reference": None}, "has no reference"),
        ({"prompt": "Say", "audio": "1.wav", "reference": "x", "split": "dev"}, "split 'dev'"),
        ({"prompt": "Say", "audio": "1.wav", "reference": "x", "split": None}, "split None"),
        ({"prompt": " ", "audio": "1.wav", "reference": "x"}, "has no prompt"),
        ({"prompt": "Say", "audio": [], "reference": "x"}, "has no audio"),
        ({"prompt": "Say", "audio": ["1.wav", "gone.wav"], "reference": "x"}, "gone.wav', which does not exist"),
        ({"prompt": "Say", "audio": 7, "reference": "x"}, "must be a path or a list of paths"),
        ({"prompt": "Say", "audio": "1.wav", "reference": 5.0}, "reference 5.0; it must be text"),
    ],
)
def test_bad_rows_are_named(folder, row, message):
    with pytest.raises(DataError, match=message):
        load(manifest(folder, [row]), "train")


def test_rows_given_twice_are_named(folder):
    row = {"prompt": "Say", "audio": "1.wav", "reference": "x"}
    with pytest.raises(DataError, match=r"Row 3 of data\.jsonl repeats row 1"):
        load(manifest(folder, [row, {**row, "reference": "y"}, row]), "train")
    assert (
        len(load(manifest(folder, [row | {"split": "test"}, row | {"split": "test", "reference": "y"}]), "test")) == 2
    )


def test_rows_that_share_one_of_several_files_go_together(folder):
    pairs = [{"prompt": "Say", "audio": [f"{i}.wav", f"{i + 1}.wav"], "reference": "x"} for i in range(0, 39)]
    path = manifest(folder, pairs)
    assert len(load(path, "train")) == 39
    for split in ("validation", "test"):
        with pytest.raises(DataError, match="it has 39 in train"):
            load(path, split)


def test_the_split_follows_the_path_from_the_manifest_on_every_machine(folder):
    """Recordings of one name in many folders are many recordings; ./a and a are one."""
    rows = []
    for i in range(200):
        (folder / f"d{i}").mkdir()
        soundfile.write(folder / f"d{i}/speech.wav", np.full(1600, 0.1 + i / 1000), 16000)
        rows += [{"prompt": "Say", "audio": f"{dot}d{i}/speech.wav", "reference": f"{dot}x"} for dot in ("", "./")]
    path = manifest(folder, rows)
    splits = {split: load(path, split).to_list() for split in ("train", "validation", "test")}
    assert {name: len(items) for name, items in splits.items()} == {"train": 362, "validation": 18, "test": 20}
    assert check_leakage(splits) == []


def test_tables_from_spreadsheets(folder):
    text = 'prompt,audio,reference,split\r\n"Say\nit, please",1.wav,"one ""two""",test\r\n'
    (folder / "a.CSV").write_bytes(b"\xef\xbb\xbf" + text.encode())
    row = load(str(folder / "a.CSV"), "test")[0]
    assert (row["prompt"], row["reference"]) == ("Say\nit, please", 'one "two"')
    (folder / "b.jsonl").write_text('{"prompt": "a\u2028b", "audio": "1.wav", "reference": "x", "split": "test"}\n')
    assert load(str(folder / "b.jsonl"), "test")[0]["prompt"] == "a\u2028b"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,audio,reference\nSay,1.wav\n", "Row 1 of a.csv has more or fewer cells than the header's 3"),
        ("prompt,audio,reference\nSay,1.wav,a,b\n", "more or fewer cells"),
        ("prompt,audio,prompt\nSay,1.wav,a\n", "has 'prompt' more than once"),
        ('prompt,audio,reference\nSay,1.wav,"a"b\n', "Line 2 of a.csv cannot be read"),
        ("audio,reference\n1.wav,x\n", "has no prompt; it has the columns 'audio', 'reference'"),
        ("", "no rows at all"),
    ],
)
def test_bad_tables_are_named(folder, text, message):
    (folder / "a.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        load(str(folder / "a.csv"), "train")


def test_columns_of_mixed_kinds_are_refused_and_late_ones_kept(folder):
    row = {"prompt": "Say", "audio": "1.wav", "reference": "x", "split": "test"}
    with pytest.raises(DataError, match="mixes kinds of values"):
        load(manifest(folder, [row | {"level": 1}, row | {"level": "two", "reference": "y"}]), "test")
    assert load(manifest(folder, [row, row | {"reference": "y", "level": 2}]), "test")["level"] == [None, 2]


def test_bad_files_are_named(folder):
    (folder / "bad.jsonl").write_text('{"prompt": "a"}\nnot json\n')
    with pytest.raises(DataError, match=r"Line 2 of bad\.jsonl cannot be read as JSON"):
        load(str(folder / "bad.jsonl"), "train")
    (folder / "list.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match="is a list"):
        load(str(folder / "list.jsonl"), "train")
    with pytest.raises(DataError, match="cannot be read"):
        load(str(folder / "none.jsonl"), "train")
    with pytest.raises(DataError, match="Only prompt, audio, reference, split, offset, duration can be mapped"):
        load(manifest(folder, [{"prompt": "a"}]), "train", columns={"sound": "x"})
    with pytest.raises(DataError, match="no rows in split 'test'"):
        load(manifest(folder, [{"prompt": "a", "audio": "1.wav", "reference": "x", "split": "train"}]), "test")


def test_a_manifest_is_checked_in_the_splits_that_it_has_by_the_names_that_it_has(folder):
    sides = ("train", "train", "test_heldout", "test")
    rows = [
        {"question": f"Say {i}", "audio": f"{i}.wav", "reference": "x", "split": split} for i, split in enumerate(sides)
    ]
    path = manifest(folder, rows)
    assert splits_of(path, columns={"prompt": "question"}) == ("train", "test", "test_heldout")
    columns = ("--columns", "prompt=question")
    checked = CliRunner().invoke(app, ["data", "check", path, *columns])
    assert checked.exit_code == 0, checked.exception
    assert "0 leaks" in checked.stdout
    shown = CliRunner().invoke(app, ["data", "show", path, "--split", "test", *columns])
    assert "Say 3" in shown.stdout
    rows[2]["audio"] = "0.wav"
    checked = CliRunner().invoke(app, ["data", "check", manifest(folder, rows), *columns])
    assert checked.exit_code == 1
    assert "test_heldout: the recording 0.wav is heard in train too" in checked.stdout
    with pytest.raises(DataError, match="is unknown"):
        splits_of("nothing")
    with pytest.raises(DataError, match="no finished preparation"):
        splits_of(str(folder))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_offset_and_duration_name_the_stretch_that_is_heard(folder, name):
    """As NeMo's manifests have them; every row of ten seconds heard all of it before."""
    tones = np.concatenate([0.3 * np.sin(2 * np.pi * 100 * (i + 2) * np.arange(16000) / 16000) for i in range(10)])
    soundfile.write(folder / "long.wav", tones, 16000)
    rows = [
        {"audio_filepath": "long.wav", "text": f"r{i}", "prompt": "Say", "offset": 2.0 * i, "duration": 2.0}
        for i in range(5)
    ]
    if name == "a.csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        (folder / name).write_text("\n".join(lines))
    else:
        manifest(folder, rows, name)
    columns = {"audio": "audio_filepath", "reference": "text"}
    (split,) = splits_of(str(folder / name), columns=columns)  # stretches of one file are on one side
    got = load(str(folder / name), split, columns=columns)
    assert [row_seconds(row) for row in got] == [2.0] * 5
    waves = [load_audio(audio_of(row)) for row in got]
    assert [len(wave) for wave in waves] == [32000] * 5
    assert [round(np.abs(np.fft.rfft(wave[:16000])).argmax()) for wave in waves] == [200, 400, 600, 800, 1000]
    assert set(got["utterance"]) == {str((folder / "long.wav").resolve())}  # one recording, drawn as a whole
    assert got["offset"] == [0.0, 2.0, 4.0, 6.0, 8.0]


@pytest.mark.parametrize(
    ("stretch", "message"),
    [
        ({"offset": -1}, r"Row 1 of data\.jsonl: The offset is -1; it says where"),
        ({"duration": "2 s"}, r"Row 1 of data\.jsonl: The duration is '2 s'; it says where"),
        ({"duration": 0}, r"Row 1 of data\.jsonl: The duration is 0; give seconds above 0"),
        ({"offset": 1, "audio": ["1.wav", "2.wav"]}, "2 files of audio; a stretch is of one file"),
    ],
)
def test_stretches_that_are_none_are_named(folder, stretch, message):
    with pytest.raises(DataError, match=message):
        load(manifest(folder, [{"prompt": "Say", "audio": "1.wav", "reference": "x", **stretch}]), "train")


def test_stretches_of_one_file_in_two_splits_are_a_leak(folder):
    row = {"prompt": "Say", "audio": "1.wav", "reference": "x", "duration": 0.05}
    rows = [row | {"offset": 0, "split": "train"}, row | {"offset": 0.05, "split": "test"}]

    def leaks():
        path = manifest(folder, rows)
        return check_leakage({split: load(path, split).to_list() for split in ("train", "test")})

    assert leaks() == ["test: the recording 1.wav#0.05-0.1 is heard in train too, as 1.wav#0.0-0.05"]
    rows[1]["offset"] = 0.04
    assert leaks() == ["test: the recording 1.wav#0.04-0.09 is heard in train too, as 1.wav#0.0-0.05"]
    rows[0] |= {"offset": None, "duration": None}
    assert leaks() == ["test: the recording 1.wav#0.04-0.09 is heard in train too, as 1.wav"]


def test_the_language_of_a_reference_is_text_without_outer_spaces(folder):
    row = {"prompt": "Say", "audio": "1.wav", "reference": "x", "split": "train"}
    (loaded,) = load(manifest(folder, [row | {"reference_language": " zh-CN\t"}]), "train")
    assert loaded["reference_language"] == "zh-CN"
    with pytest.raises(DataError, match=r"Row 1 of .* has reference_language 5; it must be text, such as zh-CN"):
        load(manifest(folder, [row | {"reference_language": 5}]), "train")
