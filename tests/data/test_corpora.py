"""Each corpus in its publisher's layout: real encodings, broken members, splits that nothing crosses."""

import csv
import gzip
import hashlib
import io
import json
import shutil
import warnings
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
from datasets import Dataset
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.data import load
from leaf.data.audio import load_audio
from leaf.data.corpora import CORPORA, Options, prepare
from leaf.data.corpora.longaudio import _conversation
from leaf.data.leaks import check_leakage
from leaf.errors import DataError, RunError


def tone(seconds=1.0, rate=16000, hz=220.0):
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path: Path, seconds=1.0, rate=16000, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds, rate), rate, **options)
    return path


def quiet(*_):
    return None


def run(name, source, target, **options):
    return prepare(name, CORPORA[name], source, target, report=quiet, **options)


# -- LibriSQA ----------------------------------------------------------------------------------------------------------
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
            entries.append({**entries[0], "question": "No audio?", "speech_path": name.replace("0001", "0099")})
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
        "Answer the question about what is said: ",
        "",
        "Someone reads aloud. ",
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
    prepare("librisqa", CORPORA["librisqa"], librisqa, cut, report=said.append)
    assert said[0].startswith("going on after ")
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
    with pytest.raises(DataError, match="holds other files"):
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
    run("librisqa", librisqa, target)
    splits = {split: load(str(target), split).to_list() for split in ("train", "validation", "test")}
    assert check_leakage(splits) == []
    splits["test"].append({**splits["test"][0], "audio": splits["train"][0]["audio"]})
    assert len(check_leakage(splits)) == 1


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_written_is_named(librisqa, tmp_path, place):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="cannot be written: Not a directory"):
        run("librisqa", librisqa, tmp_path / place)


@pytest.mark.parametrize("name", ["audio", "decided.jsonl", "test.arrow", "prepared.json"])
def test_a_full_disk_stops_a_preparation_and_room_lets_it_go_on(tmp_path, name):
    """/dev/full stands in for the disk, one file after another."""
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "alpacaeval").mkdir(parents=True)
    parquet(source / "alpacaeval/test-0.parquet", 0.5)
    if name == "audio":  # where there is room, it is called
        run("voicebench", source, tmp_path / "roomy")
        name = f"audio/{next((tmp_path / 'roomy/audio').iterdir()).name}"
    full = target / (name if name in ("test.arrow", "decided.jsonl") else f"{name}.partial")

    def items(*arguments):
        full.parent.mkdir(exist_ok=True)
        full.symlink_to("/dev/full")
        yield from CORPORA["voicebench"].items(*arguments)

    with pytest.raises(RunError, match=r"cannot be written: No space left on device\. .*Free some space"):
        prepare("voicebench", replace(CORPORA["voicebench"], items=items), source, target, report=quiet)
    full.unlink(missing_ok=True)
    assert run("voicebench", source, target)["splits"]["test"]["rows"] == 1


def test_decoding_finds_what_headers_hide(tmp_path):
    source = tmp_path / "source"
    name = "LibriSpeech/test-clean/1/2/1-2-0000.flac"
    file = write(source / name, seconds=3.0)
    data = file.read_bytes()
    file.write_bytes(data[:200] + bytes(len(data) - 200))
    entry = {"speech_path": name, "text": "", "question": "Q?", "answer": "A"}
    good = {**entry, "speech_path": name.replace("0000", "0001")}
    write(source / good["speech_path"])
    (source / "LibriSQA-PartI-test.json").write_text(json.dumps([entry, good]))
    assert run("librisqa", source, tmp_path / "header")["refused"] == {}
    assert run("librisqa", source, tmp_path / "decoded", decode=True)["refused"] == {"audio unusable": 1}


# -- CoVoST 2 ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def covost(tmp_path):
    source = tmp_path / "source"
    names = [f"common_voice_en_{i}.mp3" for i in range(8)]
    for name in names[:7]:
        write(source / "en/clips" / name, rate=48000, format="MP3")
    (source / "en/clips" / names[6]).write_bytes(b"")
    rows = [
        (name, f'He said "{i}', f'Er sagte "{i}', split)
        for i, (name, split) in enumerate(
            zip(names, ("train", "train_covost", "dev", "test", "test_covost", "train", "train", "test"), strict=True)
        )
    ]
    with (source / "covost_v2.en_de.tsv").open("w") as file:
        file.write("path\ttranslation\tsplit\n")
        file.writelines(f"{name}\t{german}\t{split}\n" for name, _, german, split in rows)
    with (source / "en/validated.tsv").open("w") as file:
        file.write("client_id\tpath\tsentence\tup_votes\n")
        file.writelines(f"speaker{i // 2}\t{row[0]}\t{row[1]}\t2\n" for i, row in enumerate(rows))
    return source


def test_covost_joins_translations_with_mp3_clips(covost, tmp_path):
    summary = run("covost2", covost, tmp_path / "target")
    assert summary["refused"] == {"a split of CoVoST 1 only": 1, "audio unusable": 1, "audio missing": 1}
    assert {split: counts["rows"] for split, counts in summary["splits"].items()} == {
        "train": 3,
        "validation": 1,
        "test": 1,
    }
    row = load(str(tmp_path / "target"), "validation")[0]
    assert row["reference"] == 'Er sagte "2'  # an unpaired quote is text
    assert row["text"] == 'He said "2'
    assert "German" in row["prompt"]
    assert len(load_audio(row["audio"])) == pytest.approx(16000, rel=0.2)  # mp3 pads


def test_covost_reads_a_backslash_as_its_publishers_do(tmp_path):
    source = tmp_path / "source"
    write(source / "en/clips/a.mp3", rate=48000, format="MP3")
    said = {"covost_v2.en_de.tsv": ("path\ttranslation\tsplit", r"a.mp3 Er#sagte#\"ja\"#\\#nein. test")}
    said["en/validated.tsv"] = ("client_id\tpath\tsentence", r"one a.mp3 He#said#\"yes\".")
    for name, (header, row) in said.items():
        (source / name).write_text(f"{header}\n{row.replace(' ', chr(9)).replace('#', ' ')}\n")
    run("covost2", source, tmp_path / "target")
    row = load(str(tmp_path / "target"), "test")[0]
    assert (row["reference"], row["text"]) == (r'Er sagte "ja" \ nein.', 'He said "yes".')


def test_covost_takes_any_published_pair_and_refuses_others(covost, tmp_path):
    for pair in ("en_xx", "fr_de", "en_en", "en"):
        with pytest.raises(DataError, match="one of them en"):
            run("covost2", covost, tmp_path / pair, options=Options(pair=pair))
    with pytest.raises(DataError, match=r"holds no covost_v2\.en_ja\.tsv"):
        run("covost2", covost, tmp_path / "ja", options=Options(pair="en_ja"))


# -- LongAudio ---------------------------------------------------------------------------------------------------------
def asked(number, sound, question="<sound>\nWhat is meant?", answer="This is.", text=False):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": number, "sound": sound, "duration": 1.0, "conversations": str(turns) if text else turns}


@pytest.fixture
def dailytalk(tmp_path):
    source = tmp_path / "source"
    entries = []
    for dialogue in range(30):
        for turn in range(11):
            write(source / f"dailytalk/data/{dialogue}/{turn}_{turn % 2}_d{dialogue}.wav", 0.1 + turn / 100, 44100)
        entries += [
            asked(f"{dialogue}-{q}", f"{dialogue}.wav", f"<sound>\nQuestion {q}?", text=q == 2) for q in range(4)
        ]
    entries.append(asked("mcq", "0.wav", "<sound>\nChoose the correct option: (A) x", "(A) x"))
    entries.append(asked("gone", "77.wav"))
    broken = ("not [ a list", "{[]: 1}", "[" * 5000, None, 7, {"value": "x"})
    entries += [asked(f"odd{i}", f"{i}.wav") | {"conversations": turns} for i, turns in enumerate(broken)]
    entries.append(asked("two", ["1.wav", "2.wav"]))
    (source / "dailytalk/data/1/1a_0_d1.wav").write_bytes(b"")  # no turn's name
    (source / "DailyTalk_LongAudio.json").write_text(json.dumps(entries))
    return source


def test_dailytalk_joins_turns_in_order_and_splits_by_dialogue(dailytalk, tmp_path):
    summary = run("dailytalk", dailytalk, tmp_path / "target")
    assert summary["refused"] == {
        "no prompt": 6,
        "multiple choice": 1,
        "audio missing": 1,
        "sounds of several dialogues": 1,
    }
    splits = {split: load(str(tmp_path / "target"), split).to_list() for split in summary["splits"]}
    assert set(splits) == {"train", "validation", "test"}
    assert check_leakage(splits) == []
    row = splits["train"][0]
    assert [Path(name).name.split("_")[0] for name in row["audio"]] == [str(turn) for turn in range(11)]  # 10 after 9
    assert "<sound>" not in row["prompt"]


def test_the_published_split_is_offered_by_name_and_leaks(dailytalk, tmp_path):
    target = tmp_path / "published"
    run("dailytalk", dailytalk, target, split_by="published")
    splits = {split: load(str(target), split).to_list() for split in ("train", "validation", "test")}
    assert check_leakage(splits)
    for split, rows in splits.items():
        for row in rows:
            dialogue = row["utterance"].removeprefix("dailytalk/")
            question = row["prompt"].split("Question ")[1][0]
            value = int(hashlib.md5(f"{dialogue}-{question}".encode()).hexdigest(), 16) / 16**32
            assert split == ("test" if value < 0.1 else "validation" if value < 0.2 else "train")
    result = CliRunner().invoke(app, ["data", "check", str(target)])
    assert result.exit_code == 1
    assert "is in train too" in result.stdout


def test_a_corpus_without_a_published_split_of_its_own_says_so(librisqa, tmp_path):
    with pytest.raises(DataError, match="has no published split"):
        run("librisqa", librisqa, tmp_path / "target", split_by="published")


def aac(path, seconds):
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        container = av.open(str(path), "w")
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(seconds)[None], format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
        container.close()


def test_parliament_cuts_speeches_and_keeps_a_sitting_together_over_both_corpora(tmp_path):
    source = tmp_path / "source"
    speech = "en.20100309.22.4-121"
    aac(source / f"en/audios/{speech}.m4a", 6.0)
    write(source / "en/audios/en.20110510.3.3-062.wav", 5.0)
    europarl = [
        asked(1, f"{speech}_0.5_2.0.wav"),
        asked(2, [f"{speech}_0.5_2.0.wav", f"{speech}_3.0_4.5.wav"], "<sound>\nBoth?"),
        asked(3, "en.20110510.3.3-062_1.0_2.25.wav"),
        asked(4, f"{speech}_5.0_9.0.wav", "<sound>\nPast the end?"),
        asked(5, "noname.wav"),
        asked(6, [f"{speech}_0.5_2.0.wav", "en.20110510.3.3-062_1.0_2.25.wav"], "<sound>\nTwo days?"),
        asked(7, "en.20110510.3.3-062_1.0_2.25.wav", "<sound>\nAgain?"),
        asked(8, f"{speech}_0.0_41.0.wav", "<sound>\nToo long to decode?"),
    ]
    (source / "Europarl_LongAudio.json").write_text(json.dumps(europarl))
    session = "20100309-0900-PLENARY-5"
    write(source / f"raw_audios/en/2010/{session}_en.ogg", 8.0, format="OGG", subtype="VORBIS")
    turn = "20160120-0900-PLENARY-19-en_20160120-21:26:04_1"
    write(source / f"transcribed_data/en/2016/{turn}.ogg", 2.0, format="OGG", subtype="VORBIS")
    with gzip.open(source / "asr_en.tsv.gz", "wt") as file:
        out = csv.writer(file, delimiter="|")
        out.writerow(["session_id", "id_", "original_text", "vad"])
        out.writerow([session, "en_20100309-10:38:16_0", "words", "[[1.0, 2.0], [4.0, 5.5]]"])
        out.writerow([session, "en_20100309-11:11:11_9", "other", "[[0.0, 1.0]]"])
        for number, cell in enumerate(broken := ("", "[", "[]", "7", "[[1.0]]", "[[2.0, 1.0]]", "[[0, 1e999]]")):
            out.writerow([session, f"en_20100309-13:00:00_{number}", "words", cell])
    voxpopuli = [
        asked(1, f"en/2010/{session}-en_20100309-10:38:16_0.wav"),
        asked(2, [f"en/2016/{turn}.wav"]),
        asked(3, f"en/2010/{session}-en_20100309-12:00:00_3.wav"),
        asked(4, f"en/2016/{turn}.wav", "<sound>\nLong?") | {"sound": [f"en/2016/{turn}.wav"] * 21},
        asked(5, [f"en/2016/{turn}.wav", f"en/2010/{session}-en_20100309-10:38:16_0.wav"]),
        *(asked(6 + i, f"en/2010/{session}-en_20100309-13:00:00_{i}.wav") for i in range(len(broken))),
    ]
    (source / "VoxPopuli_LongAudio.json").write_text(json.dumps(voxpopuli))
    summary = run("longaudio", source, tmp_path / "target")
    assert summary["refused"] == {
        "the vad cell is no list of stretches": 7,
        "sounds of several days": 2,
        "audio unusable": 1,
        "the sound's name is not speech_start_end": 1,
        "audio missing": 1,
        "longer than 40 s": 2,
    }
    rows = {row["id"]: row for split in summary["splits"] for row in load(str(tmp_path / "target"), split)}
    sides = {row["id"]: split for split in summary["splits"] for row in load(str(tmp_path / "target"), split)}
    assert rows["europarl-0"]["seconds"] == pytest.approx(1.5, abs=0.01)
    assert rows["europarl-1"]["seconds"] == pytest.approx(3.0, abs=0.01)
    assert rows["europarl-2"]["seconds"] == pytest.approx(1.25, abs=0.01)
    assert rows["voxpopuli-0"]["seconds"] == pytest.approx(2.5, abs=0.01)
    assert rows["voxpopuli-0"]["audio"][0].endswith(".flac")
    assert rows["voxpopuli-1"]["audio"][0].endswith(f"{turn}.ogg")
    assert rows["europarl-6"]["audio"] == rows["europarl-2"]["audio"]
    assert rows["europarl-6"]["seconds"] == rows["europarl-2"]["seconds"]
    assert len(list((tmp_path / "target/audio").iterdir())) == 4  # nothing of what was refused
    session_file = str(source / f"raw_audios/en/2010/{session}_en.ogg")
    assert rows["voxpopuli-0"]["audio_sources"] == [f"{session_file}#1.0-2.0", f"{session_file}#4.0-5.5"]
    assert rows["voxpopuli-1"]["audio_sources"] == rows["voxpopuli-1"]["audio"]
    assert len({sides["europarl-0"], sides["europarl-1"], sides["voxpopuli-0"]}) == 1
    assert rows["europarl-0"]["utterance"] == rows["voxpopuli-0"]["utterance"] == "parliament/20100309"
    heard = load_audio(rows["europarl-0"]["audio"])
    assert np.abs(np.fft.rfft(heard)).argmax() / 1.5 == pytest.approx(220, abs=2)  # the tone, through AAC and FLAC


def test_conversations_come_as_lists_json_or_python_text():
    turns = [{"from": "human", "value": "it's"}]
    assert _conversation(turns) == _conversation(json.dumps(turns)) == _conversation(str(turns)) == turns
    assert _conversation("__import__('os').getcwd()") == []


# -- VoiceBench, hub ---------------------------------------------------------------------------------------------------
def parquet(path, seconds):
    file = write(path.parent / "one.wav", seconds)
    data = file.read_bytes()
    file.unlink()
    cell = [{"bytes": data, "path": "a.wav"}, {"bytes": b"RIFFnothing", "path": "b.wav"}, None]
    pq.write_table(pa.table({"audio": cell, "prompt": ["Name a tree.", "Broken", "None"]}), path)


def test_voicebench_is_unpacked_for_judges(tmp_path):
    source = tmp_path / "source"
    (source / "alpacaeval").mkdir(parents=True)
    parquet(source / "alpacaeval/test-00000-of-00001.parquet", 1.5)
    summary = run("voicebench", source, tmp_path / "target")
    assert summary["refused"] == {"audio unusable": 1, "audio missing": 1}
    row = load(str(tmp_path / "target"), "test")[0]
    assert row["text"] == "Name a tree."
    assert row["reference"] == ""
    assert len(load_audio(row["audio"])) == 24000


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
    with pytest.raises(DataError, match="holds no file of rows"):
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
    with pytest.raises(DataError, match="1 uses of audio stand on both sides of a split, first sha256:"):
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
    with pytest.raises(DataError, match="maps to trian; allowed are train, validation, test, none"):
        sides(source, target, splits=maps | {"other": "trian"})
    with pytest.raises(DataError, match=r"maps another, and .* has only"):
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
    with pytest.raises(DataError, match=r"holds rows as \.jsonl and \.parquet"):
        sides(source, tmp_path / "to")


def test_a_configuration_and_maps_of_splits_reach_data_sets_of_the_hub(folder, tmp_path, monkeypatch):
    source = folder("all.jsonl", range(6))
    for i in range(6):  # what is the same is one recording
        write(source / f"{i}.wav", 0.1 + i / 100)
    asked = []

    def load_dataset(*arguments, streaming):
        asked.append(arguments)
        cells = [{"bytes": None, "path": (source / f"{i}.wav").as_uri()} for i in range(3)]  # as of a folder on the hub
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
    with pytest.raises(DataError, match=r"0\.wav cannot be fetched: .*Given again, the command goes on"):
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


# -- the command -------------------------------------------------------------------------------------------------------
def test_the_command_prepares_reports_and_checks(covost, tmp_path):
    target = str(tmp_path / "target")
    arguments = ["data", "prepare", "covost2", "--from", str(covost), "--to", target, "--pair", "en_de"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for expected in ("CC0-1.0", "refused, audio missing: 1", "validation", f"use it as task: {target}"):
        assert expected in result.stdout
    shown = CliRunner().invoke(app, ["data", "show", target, "--split", "test"])
    assert "Er sagte" in shown.stdout
    assert CliRunner().invoke(app, ["data", "check", target]).exit_code == 0
    hub = ["data", "prepare", "hub", "--from", str(covost), "--to", str(tmp_path / "hub")]
    for option, value in (("--split", "train"), ("--split", "=train"), ("--columns", "answer=")):
        refused = CliRunner().invoke(app, [*hub, option, value])
        assert f"{option} came as {value}; give " in str(refused.exception)
    refused = CliRunner().invoke(app, [*hub, "--split", "dev=trian", "--config", "x"])
    assert "--config goes with an id of the hub" in str(refused.exception)
