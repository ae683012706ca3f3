"""CoVoST 2, LongAudio and VoiceBench as their publishers lay them out: encodings, broken members, splits kept apart."""

import csv
import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.data import load
from leaf.data.audio import load_audio
from leaf.data.corpora import Options
from leaf.data.corpora.longaudio import _conversation
from leaf.data.leaks import check_leakage
from leaf.errors import DataError
from tests.helpers.corpora import parquet, run
from tests.helpers.sound import aac, write


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
    assert row["reference_language"] == "de"
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
    with pytest.raises(DataError, match=r"has no covost_v2\.en_ja\.tsv"):
        run("covost2", covost, tmp_path / "ja", options=Options(pair="en_ja"))


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
