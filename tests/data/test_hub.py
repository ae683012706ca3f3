"""Data sets of the hub and folders in its layout: columns, splits, audio inside tables."""

import io
import json
import shutil
import tomllib
from itertools import chain
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Dataset
from packaging.requirements import Requirement

from leaf.data import load
from leaf.data.audio import load_audio
from leaf.data.corpora import Options
from leaf.data.corpora.audio_cells import clip_of
from leaf.data.corpora.items import Clip
from leaf.data.leaks import check_leakage
from leaf.errors import DataError
from tests.helpers.corpora import hub_of, run
from tests.helpers.sound import aac, tone, write


def test_a_folder_of_the_datasets_library_is_read_by_column_names(tmp_path):
    source = tmp_path / "source"
    lines = []
    for i in range(60):
        write(source / f"wavs/{i}.wav", 0.2)
        lines.append({"file": f"wavs/{i}.wav", "answer": f"a{i}", "speaker": f"s{i // 6}"})
    (source / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = {"audio": "file", "reference": "answer", "recording": "speaker", "prompt": "What is said?"}
    summary = run("hub", source, tmp_path / "target", options=Options(columns=columns))
    splits = {split: load(str(tmp_path / "target"), split).to_list() for split in summary["splits"]}
    assert sum(map(len, splits.values())) == 60
    assert all(row["prompt"] == "What is said?" for rows in splits.values() for row in rows)
    assert check_leakage(splits) == []
    with pytest.raises(DataError, match="has no column answr"):
        run("hub", source, tmp_path / "other", options=Options(columns=columns | {"reference": "answr"}))


def test_a_table_with_audio_inside_is_read_without_another_decoder(tmp_path):
    """As `datasets` writes it: parquet whose schema says that a column is audio."""
    source = tmp_path / "source"
    (source / "data").mkdir(parents=True)
    features = {"audio": {"_type": "Audio"}, "answer": {"dtype": "string", "_type": "Value"}}
    for split, seconds in (("train", 0.5), ("validation", 0.7)):
        data = write(tmp_path / f"{split}.wav", seconds).read_bytes()
        table = pa.table({"audio": [{"bytes": data, "path": "a.wav"}] * 2, "answer": ["one", "two"]})
        said = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": said})
        pq.write_table(table, source / f"data/{split}-00000-of-00001.parquet")
    columns = {"reference": "answer", "prompt": "What is said?"}
    summary = run("hub", source, tmp_path / "target", options=Options(columns=columns))
    assert {split: counts["rows"] for split, counts in summary["splits"].items()} == {"train": 2, "validation": 2}
    assert len(load_audio(load(str(tmp_path / "target"), "validation")[0]["audio"])) == 11200
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="has no file of rows"):
        run("hub", empty, tmp_path / "none", options=Options(columns=columns))


def cells(count, *, named=True, seconds=0.1):
    """Audio cells as a table holds them: encoded recordings of different pitch, with or without a file's name."""
    for i in range(count):
        file = io.BytesIO()
        soundfile.write(file, tone(seconds, hz=200.0 + 10 * i), 16000, format="WAV")
        yield {"bytes": file.getvalue(), "path": f"{i}.wav" if named else None}


def rows_of(audio, split=""):
    texts = [f"{split}{i}" for i in range(len(audio))]
    return pa.table({"audio": audio, "prompt": texts, "reference": texts})


@pytest.mark.parametrize("named", [True, False])
def test_questions_on_one_recording_inside_a_table_stay_on_one_side(tmp_path, named):
    source = tmp_path / "source"
    source.mkdir()
    pq.write_table(rows_of([cell for cell in cells(120, named=named) for _ in range(3)]), source / "data.parquet")
    summary = run("hub", source, tmp_path / "target")
    splits = {split: load(str(tmp_path / "target"), split).to_list() for split in summary["splits"]}
    assert len(splits) == 3
    assert {len(its) % 3 for its in splits.values()} == {0}
    assert check_leakage(splits) == []
    assert sum(counts["recordings"] for counts in summary["splits"].values()) == 120
    assert summary["splits"]["train"]["hours"] == pytest.approx(len(splits["train"]) / 3 * 0.1 / 3600, abs=6e-4)
    # The same sound in a file of its own, under another name: known by what was unpacked.
    copied = {**splits["train"][0], "audio": splits["test"][0]["audio"], "utterance": "another"}
    assert "is heard in train too" in check_leakage({"train": splits["train"], "test": [copied]})[0]


def test_recordings_that_a_publisher_has_on_both_sides_stop_a_preparation(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    one, two, three = cells(3)
    pq.write_table(rows_of([one, two], "a"), source / "train.parquet")
    pq.write_table(rows_of([three, two], "b"), source / "test.parquet")
    with pytest.raises(DataError, match="1 uses of audio are on both sides of a split, first sha256:"):
        run("hub", source, tmp_path / "target")
    summary = run("hub", source, tmp_path / "kept", split_by="published")
    splits = {split: load(str(tmp_path / "kept"), split).to_list() for split in summary["splits"]}
    assert {split: len(its) for split, its in splits.items()} == {"train": 2, "test": 2}
    assert len(check_leakage(splits)) == 1
    # One name in two splits is no sign of one recording.
    pq.write_table(rows_of([three | {"path": "0.wav"}], "b"), source / "test.parquet")
    summary = run("hub", source, tmp_path / "named")
    assert check_leakage({split: load(str(tmp_path / "named"), split).to_list() for split in summary["splits"]}) == []


@pytest.fixture
def folder(tmp_path):
    """A folder with sixty recordings, and a function that writes a file of rows on some of them."""
    for i in range(60):
        write(tmp_path / f"source/{i}.wav", 0.1)

    def put(name, numbers):
        lines = [json.dumps({"audio": f"{i}.wav", "prompt": "p", "reference": f"r{i}"}) for i in numbers]
        (tmp_path / "source" / name).write_text("\n".join(lines))
        return tmp_path / "source"

    return put


def sides(folder, target, **options):
    """Split → the numbers of its recordings."""
    summary = run("hub", folder, target, options=Options(**options))
    return {split: sorted(int(r[1:]) for r in load(str(target), split)["reference"]) for split in summary["splits"]}


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "Dev-00000-of-00001-0123456789abcdef", "val_0"])
def test_a_publishers_validation_split_is_kept_and_none_is_taken_from_training(folder, tmp_path, name):
    folder("train.jsonl", range(50))
    source = folder(f"{name}.jsonl", range(50, 60))
    (source / "dataset_info.json").write_text("{}")
    assert sides(source, tmp_path / "to") == {"train": list(range(50)), "validation": list(range(50, 60))}


def test_without_a_validation_split_of_the_publishers_one_is_taken_from_training(folder, tmp_path):
    folder("train.jsonl", range(50))
    found = sides(folder("test.jsonl", range(50, 60)), tmp_path / "to")
    assert found["test"] == list(range(50, 60))
    assert found["validation"]


def test_splits_of_other_names_are_refused_and_can_be_mapped(folder, tmp_path):
    source, target = tmp_path / "source", tmp_path / "to"
    for name, numbers in {"train.clean.360": range(40), "testimony": range(40, 50), "other": range(50, 60)}.items():
        folder(f"{name}.jsonl", numbers)
    with pytest.raises(DataError, match=r"has a split 'other'; known are .* `--split other=train`"):
        sides(source, target)
    maps = {"train.clean.360": "train", "testimony": "test", "other": "none"}
    with pytest.raises(DataError, match=r"maps to trian\. Did you mean 'train'\? Allowed are train, validation, test"):
        sides(source, target, splits=maps | {"other": "trian"})
    with pytest.raises(DataError, match=r"maps another, but .* has only"):
        sides(source, target, splits=maps | {"another": "train"})
    found = sides(source, target, splits=maps)  # what was refused before its first row is begun anew
    assert sorted(found["train"] + found["validation"]) == list(range(40))
    assert found["test"] == list(range(40, 50))
    # Two names may change places, and a lone file can be kept whole.
    for name in ("other", "testimony", "train.clean.360"):
        (source / f"{name}.jsonl").unlink()
    folder("train.jsonl", range(50))
    folder("test.jsonl", range(50, 60))
    found = sides(source, tmp_path / "swapped", splits={"train": "test", "test": "validation"})
    assert found == {"validation": list(range(50, 60)), "test": list(range(50))}
    (source / "test.jsonl").unlink()
    assert sides(source, tmp_path / "whole", splits={"train": "test"}) == {"test": list(range(50))}


def test_shards_of_a_lone_split_are_cut_together(folder, tmp_path):
    folder("part-00000-of-00002.jsonl", range(30))
    source = folder("part-00001-of-00002.jsonl", range(30, 60))
    found = sides(source, tmp_path / "to")
    assert len(found) == 3
    shutil.copytree(source, tmp_path / "elsewhere")
    assert sides(tmp_path / "elsewhere", tmp_path / "again") == found  # whatever the place
    assert sorted(chain.from_iterable(found.values())) == list(range(60))


def test_rows_in_two_kinds_of_files_are_refused(folder, tmp_path):
    source = folder("test.jsonl", range(10))
    pq.write_table(rows_of(["10.wav"]), source / "train.parquet")
    with pytest.raises(DataError, match=r"has rows as \.jsonl and \.parquet"):
        sides(source, tmp_path / "to")


def test_a_configuration_and_maps_of_splits_reach_data_sets_of_the_hub(folder, tmp_path, monkeypatch):
    source = folder("all.jsonl", range(6))
    for i in range(6):  # what is the same is one recording
        write(source / f"{i}.wav", 0.1 + i / 100)
    asked = []
    hub_of(monkeypatch, "datasets/somebody/speech@main", source)

    def load_dataset(*arguments, streaming):
        asked.append(arguments)
        cells = [{"bytes": None, "path": f"hf://datasets/somebody/speech@main/{i}.wav"} for i in range(3)]
        cells += [{"bytes": (source / f"{i}.wav").read_bytes(), "path": f"{i}.wav"} for i in range(3, 6)]
        rows = [{"audio": cell, "prompt": "p", "reference": f"r{i}"} for i, cell in enumerate(cells)]
        parts = {"train.clean": rows[:3], "test.clean": rows[3:5], "test.other": rows[5:]}
        return {name: Dataset.from_list(its).to_iterable_dataset() for name, its in parts.items()}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    hub = Path("somebody/speech")
    with pytest.raises(DataError, match=r"has a split 'train.clean'; .*`--split train.clean=train`"):
        sides(hub, tmp_path / "to", config="clean")
    maps = {"train.clean": "train", "test.clean": "test", "test.other": "none"}
    found = sides(hub, tmp_path / "to", config="clean", splits=maps)
    assert sorted(found["train"] + found.get("validation", [])) == [0, 1, 2]
    assert found["test"] == [3, 4]
    assert set(asked) == {("somebody/speech", "clean")}
    (source / "0.wav").unlink()
    assert sides(hub, tmp_path / "one less", splits=maps)["test"] == [3, 4]
    assert json.loads((tmp_path / "one less/prepared.json").read_text())["refused"] == {"audio missing": 1}
    (source / "0.wav").mkdir()
    with pytest.raises(DataError, match=r"0\.wav cannot be fetched: .*Repeat the command to continue"):
        sides(hub, tmp_path / "a folder", splits=maps)
    with pytest.raises(DataError, match="--config goes with an id of the hub"):
        sides(source, tmp_path / "other", config="clean")
    with pytest.raises(DataError, match="covost2 has a layout of its own and takes no splits, config"):
        run("covost2", source, tmp_path / "covost", options=Options(splits=maps, config="clean"))


def test_empty_cells_are_no_text_and_zero_is(tmp_path):
    source = tmp_path / "source"
    write(source / "a.wav")
    given = ((None, 1), ("p", None), ("p", 0))
    rows = [{"audio": "a.wav", "prompt": prompt, "reference": answer, "recording": 0} for prompt, answer in given]
    (source / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = run("hub", source, tmp_path / "to")
    assert summary["refused"] == {"no prompt": 1, "no reference": 1}
    (split,) = summary["splits"]
    row = load(str(tmp_path / "to"), split)[0]
    assert (row["reference"], row["utterance"]) == ("0", "0")


@pytest.mark.parametrize(
    "path",
    [
        "reference://x::file:///tmp/refs.json",
        "zip://a.wav::file:///tmp/a.zip",
        "file:///etc/hostname",
        "http://127.0.0.1:9/a.wav",
        "hf://datasets/somebody/else@main/a.wav",
        "hf://datasets/somebody/speech@main/../../else/a.wav",
        "hf://datasets/somebody/speech@main/a.zip::file:///etc/hostname",
        "hf://datasets/somebody/speech::file:///etc/hostname",
        "local::0.wav",
        "/etc/hostname",
        "../outside.wav",
        "clips/../../outside.wav",
        "..\\outside.wav",
        "C:\\a.wav",
        "file:a.wav",
        "simplecache::0.wav",
    ],
)
@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_a_cell_that_leads_out_of_the_data_set_is_refused_before_it_is_opened(tmp_path, monkeypatch, path, suffix):
    source = tmp_path / "source"
    write(source / "0.wav", 0.1)
    write(tmp_path / "outside.wav", 0.1)
    table = rows_of(["0.wav", path])
    if suffix == "parquet":
        pq.write_table(table, source / "rows.parquet")
    elif suffix == "jsonl":
        (source / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    else:
        table.to_pandas().to_csv(source / "rows.csv", index=False)

    def never(*arguments, **options):
        raise AssertionError(f"opened {arguments}")

    monkeypatch.setattr(fsspec, "open", never)
    with pytest.raises(
        DataError, match=r"names the audio '.*'; allowed are bytes in the table and plain paths"
    ) as caught:
        run("hub", source, tmp_path / "target")
    assert "\n" not in str(caught.value)
    # On the hub, too; and beside bytes a path is a name only.
    with pytest.raises(DataError, match="allowed are bytes in the table"):
        clip_of({"bytes": None, "path": path}, Path("somebody/speech"), {}, "Row 1")
    assert clip_of({"bytes": b"RIFF", "path": path}, Path("somebody/speech"), {}, "Row 1") == Clip(data=b"RIFF")


def test_a_plain_path_of_a_data_set_on_the_hub_is_fetched_from_it(tmp_path, monkeypatch):
    data = write(tmp_path / "clips/a b.wav", 0.1).read_bytes()
    hub_of(monkeypatch, "datasets/somebody/speech", tmp_path)
    for path in ("clips/a b.wav", "./clips/a b.wav", "hf://datasets/somebody/speech/clips/a b.wav"):
        assert clip_of(path, Path("somebody/speech"), {}, "Row 1") == Clip(data=data)
    assert clip_of("clips/none.wav", Path("somebody/speech"), {}, "Row 1") is None


def test_the_fsspec_that_is_allowed_runs_no_commands():
    """Up to 2026.4 the address reference://... could."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    (wanted,) = (Requirement(one) for one in project["project"]["dependencies"] if one.startswith("fsspec"))
    assert "2026.4.0" not in wanted.specifier
    assert fsspec.__version__ in wanted.specifier


def test_recordings_that_all_have_one_name_are_told_apart_by_their_bytes(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    pq.write_table(rows_of([cell | {"path": "audio.wav"} for cell in cells(120)]), source / "data.parquet")
    summary = run("hub", source, tmp_path / "target")
    assert sum(counts["recordings"] for counts in summary["splits"].values()) == 120
    assert list(summary["splits"]) == ["train", "validation", "test"]


@pytest.mark.parametrize("kind", ["files", "bytes"])
def test_a_stretch_of_a_recording_is_cut_out(tmp_path, kind):
    """As NeMo's manifests name it, with columns of other names; the length of the whole makes no copy."""
    source = tmp_path / "source"
    source.mkdir()
    whole = np.concatenate([tone(1.0, hz=200 + 100 * i) for i in range(4)])
    soundfile.write(source / "a.wav", whole, 16000)
    audio = "a.wav" if kind == "files" else {"bytes": (source / "a.wav").read_bytes(), "path": "a.wav"}
    stretches = [(0.0, 4.0), (1.0, 1.0), (3.0, None), (None, 2.0), (3.5, 2.0), ("x", 1.0)]
    rows = [
        {"audio": audio, "prompt": "p", "reference": f"r{i}", "begin": start, "length": length}
        for i, (start, length) in enumerate(stretches)
    ]
    if kind == "files":
        lines = [",".join(rows[0]), *(",".join(str(value or "") for value in row.values()) for row in rows)]
        (source / "rows.csv").write_text("\n".join(lines))
    else:
        pq.write_table(pa.Table.from_pylist(rows[:-1]), source / "rows.parquet")
    columns = {"offset": "begin", "duration": "length"}
    summary = run("hub", source, tmp_path / "to", options=Options(columns=columns))
    refused = {"offset or duration is no number of seconds": 1} if kind == "files" else {}
    assert summary["refused"] == {"audio unusable": 1, **refused}
    assert "stretch from 3.5 to 5.5 s is not in" in summary["examples"]["audio unusable"][0]
    (split,) = summary["splits"]  # one recording is on one side
    got = load(str(tmp_path / "to"), split).to_list()
    assert [row["seconds"] for row in got] == [4.0, 1.0, 1.0, 2.0]
    waves = [load_audio(row["audio"]) for row in got]
    assert [len(wave) / 16000 for wave in waves] == [4.0, 1.0, 1.0, 2.0]
    assert [round(np.abs(np.fft.rfft(wave)).argmax()) for wave in waves[1:3]] == [300, 500]
    assert (got[0]["audio"] == [str(source / "a.wav")]) == (kind == "files")


def test_aac_in_a_table_is_unpacked(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    aac(tmp_path / "a.m4a", 1.0)
    cell = {"bytes": (tmp_path / "a.m4a").read_bytes(), "path": "audio.wav"}
    pq.write_table(rows_of([cell]), source / "rows.parquet")
    summary = run("hub", source, tmp_path / "to")
    assert summary["refused"] == {}
    (split,) = summary["splits"]
    assert len(load_audio(load(str(tmp_path / "to"), split)[0]["audio"])) / 16000 == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("decode", [False, True])
def test_a_recording_that_is_cut_off_is_refused(tmp_path, decode):
    source = tmp_path / "source"
    whole = write(source / "a.wav", 2.0).read_bytes()
    (source / "cut.wav").write_bytes(whole[: len(whole) // 2])
    pq.write_table(rows_of(["a.wav", "cut.wav"]), source / "rows.parquet")
    summary = run("hub", source, tmp_path / "to", decode=decode)
    assert summary["refused"] == {"audio unusable": 1}
    assert "states 2.00 s and holds 1.00 s" in summary["examples"]["audio unusable"][0]
