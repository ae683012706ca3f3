"""`leaf data export`: a manifest as Parquet for verl, read back with pyarrow and heard as leaf hears the rows."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.data import load
from leaf.data.export import encoded_audio, export_for_verl
from leaf.data.recordings import hear
from leaf.errors import DataError
from tests.helpers.sound import aac, write


def exported(*arguments):
    return CliRunner().invoke(app, ["data", "export", *map(str, arguments)])


@pytest.fixture
def manifest(tmp_path):
    write(tmp_path / "a.wav", 1.0, 8000)
    write(tmp_path / "b.flac", 2.0, 44100)
    aac(tmp_path / "c.m4a", 0.5)
    write(tmp_path / "held.wav", 0.7)
    rows = [
        {"prompt": "Say it.", "audio": "a.wav", "reference": "one", "split": "train", "level": 3},
        {"prompt": "Say it.", "audio": "b.flac", "offset": 0.5, "duration": 0.75, "reference": "two", "split": "train"},
        {"prompt": "Say all.", "audio": ["a.wav", "c.m4a"], "reference": ["one three", "1 3"], "split": "train"},
        {"prompt": "Say it.", "audio": "held.wav", "reference": "four", "split": "validation"},
    ]
    return save(tmp_path, rows)


def save(folder, rows):
    path = folder / "my.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def audio(row):
    return soundfile.read(io.BytesIO(row["audios"][0]["bytes"]), dtype="float32")


def test_the_file_has_what_leaf_reads_and_hears(manifest, tmp_path):
    out = tmp_path / "train.parquet"
    done = exported(manifest, "--for", "verl", "--to", out)
    assert done.exit_code == 0, done.output
    assert f"3 rows; give verl data.train_files=[{out}]" in done.output
    rows, wanted = pq.read_table(out).to_pylist(), load(str(manifest), "train")
    for i, (row, its) in enumerate(zip(rows, wanted, strict=True)):
        assert row["prompt"] == [{"role": "user", "content": "<audio>" + its["prompt"]}]
        assert row["data_source"] == "my"
        assert row["reward_model"] == {"style": "rule", "ground_truth": its["reference"]}
        assert (row["extra_info"]["index"], row["extra_info"]["split"]) == (i, "train")
        wave, rate = audio(row)
        assert rate == 16000
        np.testing.assert_allclose(wave, hear(its), rtol=0, atol=2**-23)
        columns = row["extra_info"]["columns"]
        assert columns == {name: its[name] for name in columns}
        assert set(its) - set(columns) == {"audio", "offset", "duration"}
    assert [row["extra_info"]["columns"]["level"] for row in rows] == [3, None, None]
    assert rows[2]["extra_info"]["columns"]["references"] == ["one three", "1 3"]


def test_the_audio_stands_where_the_prompt_wants_it(tmp_path):
    write(tmp_path / "a.wav")
    row = {"prompt": "Hear {audio} and say it.", "audio": "a.wav", "reference": "one", "split": "train"}
    export_for_verl(load(str(save(tmp_path, [row])), "train"), "my", "train", tmp_path / "t.parquet")
    message = pq.read_table(tmp_path / "t.parquet").to_pylist()[0]["prompt"][0]
    assert message["content"] == "Hear <audio> and say it."
    path = save(tmp_path, [{**row, "prompt": "{audio} and {audio}"}])
    with pytest.raises(DataError, match="more than once"):
        export_for_verl(load(str(path), "train"), "my", "train", tmp_path / "t.parquet")


def test_samples_of_16_bits_come_back_to_the_bit():
    wave = np.arange(-32768, 32768, dtype=np.int32).astype(np.float32) / 32768
    back, _ = soundfile.read(io.BytesIO(encoded_audio(wave)), dtype="float32")
    assert np.array_equal(back, wave)
    # and a sample of 1.0, which 24 bits do not hold, is the largest they do
    assert soundfile.read(io.BytesIO(encoded_audio(np.array([1.0, 0.5]))), dtype="float32")[0][0] == 1 - 2**-23


def test_long_audio_goes_into_several_files_of_one_schema(manifest, tmp_path):
    out = tmp_path / "out" / "train.parquet"
    done = exported(manifest, "--for", "verl", "--to", out, "--hours", 1.8 / 3600)
    names = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert done.exit_code == 0, done.output
    assert sorted(file.name for file in out.parent.iterdir()) == names
    tables = [pq.read_table(out.with_name(name)) for name in names]
    assert [len(table) for table in tables] == [2, 1]
    assert tables[0].schema == tables[1].schema
    assert [row["extra_info"]["index"] for table in tables for row in table.to_pylist()] == [0, 1, 2]


def test_nothing_is_written_where_a_row_cannot_be_used(manifest, tmp_path):
    write(tmp_path / "quiet.wav", 1.0)
    soundfile.write(tmp_path / "quiet.wav", np.zeros(8000), 16000)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    save(tmp_path, [*rows, {"prompt": "Say it.", "audio": "quiet.wav", "reference": "x", "split": "train"}])
    done = exported(manifest, "--for", "verl", "--to", tmp_path / "t.parquet")
    assert done.exit_code == 1
    assert "1 of 4 rows cannot be used, and nothing was written" in done.output
    assert "silent" in done.output
    assert not (tmp_path / "t.parquet").exists()


def test_the_first_rows_alone_are_written_where_asked_for(manifest, tmp_path):
    for items, written in ((2, 2), (9, 3)):
        done = exported(manifest, "--for", "verl", "--to", tmp_path / "train.parquet", "--items", items)
        assert (done.exit_code, f"{written} rows; give verl" in done.output) == (0, True), done.output
        read = pq.read_table(tmp_path / "train.parquet").to_pylist()
        assert [row["reward_model"]["ground_truth"] for row in read][:2] == ["one", "two"]
        assert len(read) == written


def test_recordings_on_both_sides_are_refused_unless_allowed(manifest, tmp_path):
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    save(tmp_path, [*rows, {"prompt": "Again.", "audio": "a.wav", "reference": "x", "split": "test"}])
    done = exported(manifest, "--for", "verl", "--to", tmp_path / "t.parquet", "--split", "test")
    assert done.exit_code == 1
    assert "1 leak of other splits into train" in done.output
    assert not (tmp_path / "t.parquet").exists()
    done = exported(manifest, "--for", "verl", "--to", tmp_path / "t.parquet", "--split", "test", "--leaks")
    assert done.exit_code == 0
    assert "data.val_files=[" in done.output
    assert len(pq.read_table(tmp_path / "t.parquet")) == 1


@pytest.mark.parametrize("tag", ["<image>", "<|audio|>", "<audio>", "<|im_start|>user", "[INST]"])
def test_prompts_that_verl_would_cut_or_render_twice_are_refused(tmp_path, tag):
    write(tmp_path / "a.wav")
    path = save(tmp_path, [{"prompt": f"{tag} Say it.", "audio": "a.wav", "reference": "one", "split": "train"}])
    done = exported(path, "--for", "verl", "--to", tmp_path / "t.parquet")
    assert isinstance(done.exception, DataError)
    assert "give the plain instruction" in str(done.exception)


def test_what_is_asked_for_wrongly_is_named(manifest, tmp_path):
    out = tmp_path / "t.parquet"
    for arguments, words in {
        ("--for", "verk", "--to", out): "Did you mean 'verl'",
        ("--for", "verl", "--to", tmp_path / "t.csv"): "ends in .parquet",
        ("--for", "verl", "--to", out, "--split", "tset"): "no rows in split 'tset'",
        ("--for", "verl", "--to", out, "--hours", 0.0): "hours is 0.0",
    }.items():
        done = exported(manifest, *arguments)
        assert isinstance(done.exception, DataError), done.output
        assert words in str(done.exception)


def test_a_set_without_references_has_no_ground_truth(tmp_path):
    write(tmp_path / "a.wav")
    path = save(tmp_path, [{"prompt": "Say it.", "audio": "a.wav", "split": "train"}])
    export_for_verl(load(str(path), "train"), "mine", "train", tmp_path / "t.parquet")
    assert pq.read_table(tmp_path / "t.parquet").to_pylist()[0]["reward_model"]["ground_truth"] is None
