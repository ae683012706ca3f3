"""LibriSQA, and what every preparation does: it resumes, keeps what is there, and says what it refused and why."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from leaf.data import load
from leaf.data.corpora import CORPORA, Options, prepare
from leaf.data.leaks import check_leakage
from leaf.errors import DataError, RunError
from tests.helpers.corpora import parquet, quiet, run
from tests.helpers.sound import write


@pytest.fixture
def librisqa(tmp_path):
    source = tmp_path / "source"
    for split, folder, speakers in (("train", "train-clean-360", range(40)), ("test", "test-clean", range(900, 904))):
        entries = []
        for speaker in speakers:
            for utterance in range(2):
                name = f"LibriSpeech/{folder}/{speaker}/77/{speaker}-77-{utterance:04d}.flac"
                write(source / name, seconds=0.3)
                said = name.replace(".flac", ".wav") if speaker % 2 else name  # as it may stand in the publisher's file
                entries.append({"speech_path": said, "text": "a b", "question": f"Who is {speaker}?", "answer": "x"})
                entries[-1]["question"] += str(utterance)
        if split == "train":
            entries.append(
                {**entries[0], "question": "No audio?", "speech_path": f"LibriSpeech/{folder}/39/77/39-77-0099.flac"}
            )
            entries.append({**entries[0], "question": "Broken?", "speech_path": f"LibriSpeech/{folder}/0/77/bad.flac"})
            (source / f"LibriSpeech/{folder}/0/77/bad.flac").write_bytes(b"fLaC no more")
            entries.append({**entries[0], "question": "No answer?", "answer": ""})
            entries.append(dict(entries[0]))
            entries.append({**entries[0], "question": "Out?", "speech_path": "../../etc/x/passwd.flac"})
            entries += [{**entries[i], "question": question} for i, question in enumerate((None, "", " "))]
        (source / f"LibriSQA-PartI-{split}.json").write_text(json.dumps(entries))
    return source


def test_librisqa_keeps_the_publishers_test_split_and_cuts_validation_by_speaker(librisqa, tmp_path):
    target = tmp_path / "target"
    summary = run("librisqa", librisqa, target)
    assert summary["refused"] == {
        "audio missing": 1,
        "audio unusable": 1,
        "no reference": 1,
        "no prompt": 3,
        "repeats an earlier entry": 1,
        "speech_path is not set/speaker/chapter/utterance": 1,
    }
    splits = {split: load(str(target), split).to_list() for split in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == 88
    assert len(splits["test"]) == 8
    assert {len(its) % 2 for its in splits.values()} == {0}  # both utterances of a speaker on one side
    assert 4 <= len(splits["validation"]) <= 30  # a fifth of forty speakers, by hash
    assert check_leakage(splits) == []
    row = splits["test"][0]
    assert row["audio"][0].endswith(".flac")
    assert str(librisqa) in row["audio"][0]  # by reference
    assert not (target / "audio").exists()
    assert row["utterance"] == "librispeech/900"
    assert "Who is 900?0" in row["prompt"]
    assert {row["prompt"].split("Who")[0] for row in splits["train"]} == {
        "Listen to the audio {audio} and answer the following question: ",
        "{audio} Please answer this question about the spoken passage: ",
        "You will hear speech in {audio}. Answer: ",
    }
    assert summary["splits"]["test"] == {"rows": 8, "recordings": 4, "hours": pytest.approx(8 * 0.3 / 3600, abs=6e-4)}


def test_an_interrupted_preparation_goes_on_where_it_stopped_and_ends_the_same(librisqa, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run("librisqa", librisqa, whole)
    decided = (whole / "decided.jsonl").read_bytes()
    cut.mkdir()
    settings = (whole / "settings.json").read_text()
    (cut / "settings.json").write_text(settings)
    (cut / "decided.jsonl").write_bytes(decided[: len(decided) // 2])  # in the middle of a line
    said = []
    prepare("librisqa", CORPORA["librisqa"], librisqa, cut, say=said.append)
    assert said[0].startswith("continuing after ")
    assert (cut / "decided.jsonl").read_bytes() == decided
    for split in ("train", "validation", "test"):
        assert (cut / f"{split}.arrow").read_bytes() == (whole / f"{split}.arrow").read_bytes()


def test_a_finished_a_foreign_and_a_differently_begun_folder_are_kept(librisqa, tmp_path):
    target = tmp_path / "target"
    run("librisqa", librisqa, target)
    with pytest.raises(DataError, match="prepared already"):
        run("librisqa", librisqa, target)
    (target / "prepared.json").unlink()
    with pytest.raises(DataError, match="begun with another max_seconds"):
        run("librisqa", librisqa, target, max_seconds=3.0)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="has other files"):
        run("librisqa", librisqa, foreign)
    assert (foreign / "thesis.txt").read_text() == "mine"


def test_audio_that_goes_away_after_preparation_is_named_with_its_row(librisqa, tmp_path):
    target = tmp_path / "target"
    run("librisqa", librisqa, target)
    rows = load(str(target), "test").to_list()
    Path(rows[3]["audio"][0]).unlink()
    with pytest.raises(DataError, match=r"Row 4 of test\.arrow names .* which is gone"):
        load(str(target), "test")
    with pytest.raises(DataError, match="has no split 'dev'; it has test, train, validation"):
        load(str(target), "dev")


def test_what_an_earlier_version_prepared_or_began_is_read(librisqa, tmp_path, monkeypatch):
    """It knew neither the sources of the audio nor maps of splits."""
    target = tmp_path / "target"
    run("librisqa", librisqa, target)
    (target / "prepared.json").unlink()
    settings = json.loads((target / "settings.json").read_text())
    settings["options"] = {"pair": "en_de", "columns": {}}
    (target / "settings.json").write_text(json.dumps(settings))
    decided = [json.loads(line) for line in (target / "decided.jsonl").read_text().splitlines()]
    for entry in decided:
        entry.get("row", {}).pop("audio_sources", None)
    (target / "decided.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in decided))
    with pytest.raises(DataError, match=r"begun with another wordings \(leaf, now published\)"):
        run("librisqa", librisqa, target)
    run("librisqa", librisqa, target, options=Options(wordings="leaf"))
    splits = {split: load(str(target), split).to_list() for split in ("train", "validation", "test")}
    assert check_leakage(splits) == []
    splits["test"].append({**splits["test"][0], "audio": splits["train"][0]["audio"]})
    assert len(check_leakage(splits)) == 1


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_named(librisqa, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="cannot be written: Not a directory"):
        run("librisqa", librisqa, tmp_path / place)


def test_a_corpus_without_a_published_split_of_its_own_says_so(librisqa, tmp_path):
    with pytest.raises(DataError, match="has no published split"):
        run("librisqa", librisqa, tmp_path / "target", split_by="published")


def test_decoding_finds_what_headers_hide(tmp_path):
    source = tmp_path / "source"
    name = "LibriSpeech/test-clean/1/2/1-2-0000.flac"
    file = write(source / name, seconds=3.0)
    data = file.read_bytes()
    file.write_bytes(data[:200] + bytes(len(data) // 2) + data[200 + len(data) // 2 :])
    entry = {"speech_path": name, "text": "", "question": "Q?", "answer": "A"}
    good = {**entry, "speech_path": name.replace("0000", "0001")}
    write(source / good["speech_path"])
    (source / "LibriSQA-PartI-test.json").write_text(json.dumps([entry, good]))
    assert run("librisqa", source, tmp_path / "header")["refused"] == {}
    assert run("librisqa", source, tmp_path / "decoded", decode=True)["refused"] == {"audio unusable": 1}


@pytest.mark.parametrize("name", ["audio", "decided.jsonl", "test.arrow", "prepared.json"])
def test_a_full_disk_stops_a_preparation_and_room_lets_it_go_on(tmp_path, name):
    """/dev/full stands in for the disk, one file after another."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "alpacaeval").mkdir(parents=True)
    parquet(source / "alpacaeval/test-0.parquet", 0.5)
    if name == "audio":  # where there is room, it is called
        run("voicebench", source, tmp_path / "roomy")
        name = f"audio/{next((tmp_path / 'roomy/audio').iterdir()).name}"
    full = target / (name if name in ("test.arrow", "decided.jsonl") else f"{name}.leaf-unfinished")

    def items(*arguments):
        full.parent.mkdir(exist_ok=True)
        full.symlink_to("/dev/full")
        yield from CORPORA["voicebench"].items(*arguments)

    with pytest.raises(RunError, match=r"cannot be written: No space left on device\. .*Free some space"):
        prepare("voicebench", replace(CORPORA["voicebench"], items=items), source, target, say=quiet)
    full.unlink(missing_ok=True)
    assert run("voicebench", source, target)["splits"]["test"]["rows"] == 1
