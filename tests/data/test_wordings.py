"""Wordings of the corpora: the published ones, leaf's own, and those of a file; which one a question gets."""

import hashlib
import json

import pytest

from leaf.data import load
from leaf.data.corpora import Options
from leaf.data.corpora.wordings import FIELDS, OURS, PUBLISHED, wordings_of
from leaf.data.rows import prompt_text
from leaf.errors import ConfigError, DataError
from leaf.model.families import family_of
from leaf.model.prompts import conversation, render
from tests.helpers.corpora import parquet, run
from tests.helpers.families import CASES
from tests.helpers.sound import write

QUESTION = "Who keeps the light?"


def index(text, count):
    return int(hashlib.md5(text.encode()).hexdigest()[:8], 16) % count


def test_the_published_wording_goes_by_the_md5_of_the_question():
    # md5sum of "Who keeps the light?" begins with 2eeafd11, which is 787152145: 1 modulo 3.
    words = wordings_of("librisqa", None)
    first = words.put(QUESTION, "any", question=QUESTION)
    assert first.prompt == "{audio} Please answer this question about the spoken passage: Who keeps the light?"
    for question in (QUESTION, "What is said?", "Why?", "Where did they go?"):
        want = PUBLISHED["librisqa"][index(question, 3)].replace("{question}", question)
        assert words.put(question, "any", question=question) == (want, "")
        assert words.put(question, "other key", question=question).prompt == want
    assert len({words.put(str(i), "k", question="").prompt for i in range(40)}) == 3


def test_covost_is_tested_with_its_first_wording_alone():
    words = wordings_of("covost2", "published")
    put = words.put("A sentence.", "k", origin="English", language="German")
    assert put.test == "{audio} Listen to the speech and translate it into German."
    prompts = {words.put(str(i), "k", origin="English", language="German").prompt for i in range(40)}
    assert prompts == {
        "{audio} Listen to the speech and translate it into German.",
        "Translate the audio {audio} from English to German.",
        "You will hear English speech in {audio}. Provide the German translation.",
    }


def test_a_question_with_braces_stays_as_it_is():
    words = wordings_of("librisqa", None)
    assert "What is {question} in {audio}?" in words.put("x", "k", question="What is {question} in {audio}?").prompt


@pytest.mark.parametrize("corpus", OURS)
def test_leafs_own_wordings_say_no_place_and_go_by_a_stable_hash(corpus):
    words = wordings_of(corpus, "leaf")
    fields = dict.fromkeys(FIELDS.get(corpus, ()), "x")
    seen = {words.put("same", str(i), **fields).prompt for i in range(40)}
    assert len(seen) == 3
    assert not any("{" in text for text in seen)


def test_a_file_has_the_words_of_a_researcher(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text('wordings: ["{audio} Say {question}", "Hear {audio}: {question}"]\ntest: ["{question}"]\n')
    words = wordings_of("librisqa", str(file))
    put = words.put(QUESTION, "k", question=QUESTION)
    assert put.prompt == ["{audio} Say {q}", "Hear {audio}: {q}"][index(QUESTION, 2)].replace("{q}", QUESTION)
    assert put.test == QUESTION


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wordings: []", "give `wordings: "),
        ("- a", "give `wordings: "),
        ("wordings: ['{question}']\ntests: []", "give `wordings: "),
        ("wordings: '{question}'", "give `wordings: "),
        ("wordings: ['{question}']\ntest: '{question}'", "give `wordings: "),
        ("wordings: [1]", "give texts, in quotation marks"),
        ("wordings: [' ']", "give texts, in quotation marks"),
        ("wordings: ['<|audio|> {question}']", r"write \{audio\} in place of <\|audio\|>"),
        ("wordings: ['{{audio}} {question}']", "once"),
        ("wordings: ['{question} {the audio}']", "once"),
        ("wordings: ['{question}}']", "once"),
        ("wordings: ['{query}']", r"in braces \{question\} and once \{audio\} are allowed, and one of \{question\} is"),
        ("wordings: ['Answer.']", r"and one of \{question\} is needed"),
        ("wordings: ['{audio} {audio} {question}']", r"once \{audio\}"),
        ("wordings: ['{question}]", "Cannot parse the wordings"),
        (b"\xff\xfe", "Save the file in UTF-8"),
    ],
)
def test_files_that_cannot_be_used_are_refused(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((DataError, ConfigError), match=message):
        wordings_of("librisqa", str(file))


def test_a_wrong_name_and_wordings_of_a_set_with_columns_are_refused(tmp_path):
    with pytest.raises(DataError, match="Did you mean 'published'"):
        wordings_of("librisqa", "publised")
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match="leave --wordings out"):
        run("hub", tmp_path / "set", tmp_path / "to", options=Options(wordings="leaf"))


def test_longaudio_asks_its_own_question_with_the_audio_where_its_sound_is(tmp_path):
    entries = [
        ("<sound>\nWhat is meant?", "{audio}\nWhat is meant?"),
        ("In <sound>, who speaks?", "In {audio}, who speaks?"),
        ("Who speaks?", "Who speaks?"),
    ]
    said = []
    for number, (question, _) in enumerate(entries):
        write(tmp_path / f"data/{number}/0_1_d{number}.wav", seconds=0.3)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": "A reply."}]
        said.append({"id": number, "sound": f"{number}.wav", "duration": 1.0, "conversations": turns})
    (tmp_path / "DailyTalk_LongAudio.json").write_text(json.dumps(said))
    run("dailytalk", tmp_path, tmp_path / "to")
    rows = [row for split in ("train", "validation", "test") for row in _rows(tmp_path / "to", split)]
    assert sorted(row["prompt"] for row in rows) == sorted(prompt for _, prompt in entries)


def _rows(folder, split):
    return load(str(folder), split).to_list() if (folder / f"{split}.arrow").is_file() else []


def test_voicebench_has_one_wording(tmp_path):
    (tmp_path / "commoneval").mkdir()
    parquet(tmp_path / "commoneval/test-0.parquet", 0.3)
    run("voicebench", tmp_path, tmp_path / "to")
    assert [row["prompt"] for row in _rows(tmp_path / "to", "test")] == [
        "You will hear a request in {audio}. Respond to it."
    ]


def test_a_judge_and_a_prediction_file_see_the_words_alone():
    assert prompt_text("{audio} Listen.") == "Listen."
    assert prompt_text("Listen to {audio} and answer: why?") == "Listen to and answer: why?"
    assert prompt_text("Two  spaces stay.") == "Two  spaces stay."


@pytest.mark.parametrize("case", ["granite_speech", "qwen2_audio", "voxtral", "audioflamingo3"])
def test_the_audio_goes_where_the_wording_says(case):
    model, processor = CASES[case]()
    family = family_of(model.config)
    parts = conversation(family, "Hear {audio} and answer.")[0]["content"]
    assert [part["type"] for part in parts] == ["text", "audio", "text"]
    if case != "voxtral":  # its template has its own processor
        text = render(family, processor, "Hear {audio} and answer.")
        before, after = text.split(family.audio_token)
        assert "Hear" in before
        assert "answer" in after
        assert "{audio}" not in text
        assert render(family, processor, "{audio}Hear.") == render(family, processor, "Hear.")
