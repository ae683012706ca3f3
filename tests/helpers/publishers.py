"""The corpora of the published runs, a few tones each, as their publishers lay them out."""

import json

from tests.helpers.corpora import parquet
from tests.helpers.sound import write

WORDS = ("press one", "the green door", "two of them", "a red book")


def lay_out(task, source):
    """Write a corpus of recipes/published/tasks, or voicebench, and return the arguments of `leaf data prepare`."""
    corpus, write_it, more = {
        "librisqa": ("librisqa", _librisqa, []),
        "covost2-en-de": ("covost2", _covost, ["--pair", "en_de"]),
        "dailytalk": ("dailytalk", _dailytalk, []),
        "longaudio": ("longaudio", _longaudio, []),
        "voicebench": ("voicebench", _voicebench, []),
    }[task]
    source.mkdir(parents=True)
    write_it(source)
    return [corpus, "--from", str(source), *more]


def _librisqa(source):
    for split, folder, speakers in (("train", "train-clean-360", range(24)), ("test", "test-clean", range(90, 93))):
        entries = []
        for speaker in speakers:
            name = f"LibriSpeech/{folder}/{speaker}/1/{speaker}-1-0000.flac"
            write(source / name, 0.3 + 0.1 * (speaker % 3))
            answer = WORDS[speaker % len(WORDS)]
            question = f"Who is number {speaker}?"
            entries.append({"speech_path": name, "text": answer, "question": question, "answer": answer})
        (source / f"LibriSQA-PartI-{split}.json").write_text(json.dumps(entries))


def _covost(source):
    splits = ["train"] * 8 + ["dev"] * 3 + ["test"] * 3
    with (source / "covost_v2.en_de.tsv").open("w") as table:
        table.write("path\ttranslation\tsplit\n")
        for number, split in enumerate(splits):
            write(source / f"en/clips/clip_{number}.mp3", 0.4, rate=48000, format="MP3")
            table.write(f"clip_{number}.mp3\tdas ist {WORDS[number % len(WORDS)]}\t{split}\n")
    with (source / "en/validated.tsv").open("w") as table:
        table.write("client_id\tpath\tsentence\n")
        table.writelines(f"speaker{i}\tclip_{i}.mp3\tthis is {WORDS[i % len(WORDS)]}\n" for i in range(len(splits)))


def _asked(number, sound):
    answer = WORDS[number % len(WORDS)]
    turns = [{"from": "human", "value": f"<sound>\nWhat is number {number}?"}, {"from": "gpt", "value": answer}]
    return {"id": number, "sound": sound, "duration": 1.0, "conversations": turns}


def _dailytalk(source):
    for dialogue in range(40):
        for turn in range(2):
            write(source / f"dailytalk/data/{dialogue}/{turn}_{turn}_d{dialogue}.wav", 0.2, 44100)
    entries = [_asked(dialogue, f"{dialogue}.wav") for dialogue in range(40)]
    (source / "DailyTalk_LongAudio.json").write_text(json.dumps(entries))


def _longaudio(source):
    europarl, voxpopuli = [], []
    for day in range(20):
        speech = f"en.201003{day + 1:02d}.22.4-121"
        write(source / f"en/audios/{speech}.wav", 1.0)
        europarl.append(_asked(day, f"{speech}_0.1_0.5.wav"))
        turn = f"2016{day % 12 + 1:02d}{day + 1:02d}-0900-PLENARY-19-en_20160120-21:26:04_1"
        write(source / f"transcribed_data/en/2016/{turn}.ogg", 0.4, format="OGG", subtype="VORBIS")
        voxpopuli.append(_asked(day, f"en/2016/{turn}.wav"))
    (source / "Europarl_LongAudio.json").write_text(json.dumps(europarl))
    (source / "VoxPopuli_LongAudio.json").write_text(json.dumps(voxpopuli))


def _voicebench(source):
    (source / "commoneval").mkdir()
    parquet(source / "commoneval/test-00000-of-00001.parquet", 0.4)
