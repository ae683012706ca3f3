"""The evaluation section: its numbers by hand, its pages in a real browser."""

import json

import numpy as np
import pytest
import sacrebleu
import soundfile
from datasets import Dataset

from leaf.data import TASKS
from leaf.errors import DataError, RunError
from leaf.evaluation.compare import load_systems
from leaf.evaluation.predictions import Predictions, read_predictions
from leaf.evaluation.registry import paired_bootstrap
from leaf.files import write_text
from leaf.report.evaluation import evaluation_section
from leaf.report.page import page
from tests.helpers.waits import until

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
REFERENCES = ["press one now please", "it is seven o'clock", "hello there", "two new messages"]
BEFORE = ["press two now", "it is seven o'clock", "hello", ""]
AFTER = ["press one now please", "it was seven o'clock", "hello", "two new messages"]
KINDS = ["menu", "time", "menu", "mail"]


def write(path, passes, *, references=REFERENCES, metrics=("exact_match", "wer"), lowercase=False, made_with=None):
    items = [
        {"id": f"row{i}", "utterance": f"u{i}", "prompt": f"question {i}", "text": f"speech {i}", "kind": KINDS[i % 4]}
        | {"reference": reference}
        for i, reference in enumerate(references)
    ]
    seeds: list[int | None] = [42 + i for i in range(len(passes))]
    made = Predictions(path.stem, items, passes, seeds, [[False] * len(items) for _ in passes])
    decoding = {"greedy": False, "temperature": 0.9, "top_p": 0.9}
    made.meta = {"predictions": 1, "made_with": {"decoding": decoding, **(made_with or {})}, "lowercase": lowercase}
    made.meta["metrics"] = {name: {} for name in metrics}
    made.write(path)
    return path


def recordings(folder, count=4):
    rows = []
    for i in range(count):
        wave = 0.5 * np.sin(2 * np.pi * (300 + 50 * i) * np.arange(16000) / 16000)
        soundfile.write(folder / f"{i}.wav", wave.astype(np.float32), 16000)
        row = {"id": f"row{i}", "prompt": f"question {i}", "audio": f"{i}.wav", "reference": REFERENCES[i]}
        rows.append(row | {"split": "test"})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def run(tmp_path):
    """A run directory as `leaf demo` leaves it, with its task's recordings."""
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(f"stage: rl\ntask: {recordings(tmp_path)}\n")
    write(folder / "test_after.jsonl", [AFTER, AFTER], made_with={"split": "test"})
    write(folder / "test_before.jsonl", [BEFORE, ["press one now please", *BEFORE[1:]]], made_with={"split": "test"})
    return folder


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


def judged(path, kind, files, rows, judge="one"):
    meta = {
        "judge": {"kind": kind, "sha256": kind + judge, "signature": f"judge-{kind}|model:m"},
        "judged": [{"system": "x", "sha256": read_predictions(file).digest} for file in files],
        "passes": 1,
        "line": "as it went",
    }
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    write_text(path.with_suffix(".meta.json"), json.dumps(meta))


def of(data, name):
    return next(metric for metric in data["metrics"] if metric["name"] == name)


def drawn(*runs, **options):
    """Return the evaluation section, which has something to show."""
    section = evaluation_section(*runs, **options)
    assert section is not None
    return section


def html(section):
    return page("runs", [section])


# -- numbers -----------------------------------------------------------------------------------------------------------
def test_scores_items_and_differences_by_hand(run):
    section = drawn([run])
    (data,) = section.data["sets"]
    assert (data["systems"], data["passes"], data["total"]) == (["test_before", "test_after"], [2, 2], 4)
    exact = of(data, "exact_match")
    # Before: 1 of 4, then 2 of 4; after: 2 of 4 in both passes.
    assert [score[0] for score in exact["scores"]] == [37.5, 50.0]
    assert exact["scores"][0][3:] == [25.0, 50.0]
    assert exact["items"] == [[50.0, 100.0, 0.0, 0.0], [100.0, 0.0, 0.0, 100.0]]
    wrong = of(data, "wer")
    # Edits over 4 + 4 + 2 + 3 = 13 words. Before: two→one and please missing, hello's one, all of three: 6, then 4.
    assert [score[0] for score in wrong["scores"]] == [
        pytest.approx(100 * 5 / 13, abs=1e-4),
        pytest.approx(200 / 13, abs=1e-4),
    ]
    assert wrong["items"] == [[25.0, 0.0, 50.0, 100.0], [0.0, 25.0, 50.0, 0.0]]
    assert (exact["less"], wrong["less"]) == (False, True)
    assert exact["differences"]["0-1"][0] == 12.5
    assert wrong["differences"]["0-1"][0] == pytest.approx(-300 / 13, abs=1e-4)
    item = data["items"][3]
    assert item["said"] == [["", ""], ["two new messages"] * 2]
    assert (item["id"], item["kind"], item["text"]) == ("row3", "mail", "speech 3")
    json.dumps(section.data, allow_nan=False)


def test_intervals_and_p_are_those_of_compare(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", [texts]) for name, texts in (("a", BEFORE), ("b", AFTER))]
    (data,) = drawn(predictions=files, audio=False).data["sets"]
    a, b = load_systems(files)
    expected = paired_bootstrap(a.passes[0], b.passes[0], REFERENCES, "wer", groups=a.groups)
    assert of(data, "wer")["differences"]["0-1"] == pytest.approx(expected, abs=1e-4)
    value, low, high, only = of(data, "wer")["scores"][0]
    assert (value, low, high) == pytest.approx(
        (value, *a.scored("wer", lowercase=False)[0].interval(groups=a.groups)), abs=1e-4
    )
    assert only == value


@pytest.mark.parametrize("lowercase", [False, True])
def test_an_items_bleu_is_sentence_bleu(tmp_path, lowercase):
    said = [text.upper() for text in AFTER]
    file = write(tmp_path / "a.jsonl", [said], metrics=["bleu"], lowercase=lowercase)
    (data,) = drawn(predictions=[file], audio=False).data["sets"]
    expected = [
        sacrebleu.sentence_bleu(text, [reference], lowercase=lowercase).score
        for text, reference in zip(said, REFERENCES, strict=True)
    ]
    assert of(data, "bleu")["items"][0] == pytest.approx(expected, abs=1e-4)
    assert data["lowercase"] is lowercase
    assert expected[0] == pytest.approx(100 if lowercase else 0, abs=1e-9)


def test_judges_give_scores_and_verdicts(tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", [texts]) for name, texts in (("a", BEFORE), ("b", AFTER))]
    for file, scores in zip(files, ((10, 20, None, 60), (30, 20, 100, None)), strict=True):
        rows = [{"id": f"row{i}", "pass": 0, "score": score} for i, score in enumerate(scores)]
        judged(file.with_suffix(".judge-direct-m.jsonl"), "direct", [file], rows)
    verdicts = ("win", "tie", "inconsistent", "win")
    rows = [{"id": f"row{i}", "pass": 0, "score": 7} for i in range(4)]
    judged(files[0].with_suffix(".judge-direct-other.jsonl"), "direct", files[:1], rows, judge="other")
    rows = [{"id": f"row{i}", "pass": 0, "verdict": verdict} for i, verdict in enumerate(verdicts)]
    judged(tmp_path / "b.judge-pairwise-m-a.jsonl", "pairwise", files[::-1], rows)
    (data,) = drawn(predictions=files, audio=False).data["sets"]
    judge = of(data, "judge direct")
    assert [score[0] for score in judge["scores"]] == [30.0, 50.0]
    assert judge["items"] == [[10.0, 20.0, None, 60.0], [30.0, 20.0, 100.0, None]]
    assert judge["differences"]["0-1"][0] == 10.0  # over the two items that both have
    second = of(data, "judge direct #2")
    assert (second["scores"], second["items"][1], second["differences"]) == ([[7.0] * 4, None], [None] * 4, {})
    assert data["verdicts"] == [{"a": 1, "b": 0, "items": [[verdict] for verdict in verdicts]}]
    assert any("as it went" in note for note in data["notes"])


def test_files_of_other_items_or_case_are_sets_of_their_own(tmp_path):
    files = [
        write(tmp_path / "a.jsonl", [AFTER]),
        write(tmp_path / "b.jsonl", [AFTER], lowercase=True),
        write(tmp_path / "c.jsonl", [["one"]], references=["one"]),
        write(tmp_path / "d.jsonl", [BEFORE]),
    ]
    data = drawn(predictions=files, audio=False).data
    assert [one["systems"] for one in data["sets"]] == [["a", "d"], ["b"], ["c"]]


def test_what_cannot_be_scored_is_left_out_and_said(tmp_path):
    files = [
        write(tmp_path / "a.jsonl", [AFTER], metrics=["wer", "comet"]),
        write(tmp_path / "b.jsonl", [["x"]], references=[" "], metrics=[]),
    ]
    scored, judged_only = drawn(predictions=files, audio=False).data["sets"]
    assert [metric["name"] for metric in scored["metrics"]] == ["wer"]
    assert "comet is left out, because a was not scored with it." in scored["notes"]
    assert judged_only["metrics"] == []
    assert any("no reference" in note for note in judged_only["notes"])


def test_which_files_are_shown(run, tmp_path):
    assert evaluation_section([]) is None
    other = tmp_path / "runs" / "other"
    other.mkdir()
    with pytest.raises(RunError, match=r"no recipe\.yaml"):
        evaluation_section([other])
    (other / "recipe.yaml").write_text("stage: rl\n")
    assert evaluation_section([other]) is None
    with pytest.raises(DataError, match="has no prediction files"):
        evaluation_section(predictions=[other])
    made_with = {"adapter": None, "split": "test"}
    write(other / "evaluation" / "tuned.jsonl", [AFTER], made_with={"adapter": {"name": "best"}})
    write(other / "evaluation" / "z-bare.jsonl", [BEFORE], made_with=made_with)
    # A file given twice is one; what was there before training comes first.
    section = drawn([run, other], [run / "test_after.jsonl"], audio=False)
    assert section.data["sets"][0]["systems"] == ["test_before", "test_after", "z-bare", "tuned"]
    assert section.data["audio"] is False


def test_systems_of_one_name_are_told_apart(tmp_path):
    files = [write(tmp_path / name / "evaluation" / "best.jsonl", [AFTER]) for name in "ab"]
    (data,) = drawn(predictions=files, audio=False).data["sets"]
    assert data["systems"] == ["a/evaluation/best", "b/evaluation/best"]


def test_a_long_file_is_cut_to_its_telling_items(tmp_path, monkeypatch):
    monkeypatch.setattr("leaf.report.evaluation.TEXT_BYTES", 450)
    files = [write(tmp_path / f"{name}.jsonl", [texts]) for name, texts in (("a", BEFORE), ("b", AFTER))]
    (data,) = drawn(predictions=files, audio=False).data["sets"]
    # Most improved (row3 goes from 0 to 100, as row0 does, which comes first), then most worsened (row1).
    assert [item["id"] for item in data["items"]] == ["row0", "row1"]
    assert data["total"] == 4
    assert of(data, "exact_match")["items"] == [[0.0, 100.0], [100.0, 0.0]]
    assert of(data, "exact_match")["scores"][1][0] == 50.0  # over all items


# -- recordings --------------------------------------------------------------------------------------------------------
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


# -- the page ----------------------------------------------------------------------------------------------------------
def ids(tab):
    return tab.locator(".item").evaluate_all("items => items.map(item => item.dataset.id)")


def test_items_can_be_filtered_sorted_and_heard(run, opened):
    tab = opened(html(drawn([run])))
    assert ids(tab) == ["row3", "row0", "row2", "row1"]  # +100, +50, 0, −100
    order, kind = tab.get_by_label("order"), tab.get_by_label("kind")
    for name, expected in (
        ("loss", ["row1", "row2", "row0", "row3"]),
        ("best", ["row0", "row3", "row1", "row2"]),
        ("worst", ["row1", "row2", "row0", "row3"]),
        ("file", ["row0", "row1", "row2", "row3"]),
    ):
        order.select_option(name)
        assert ids(tab) == expected
    kind.select_option("menu")
    assert ids(tab) == ["row0", "row2"]
    kind.select_option("")
    search = tab.get_by_label("search")
    search.fill("QUESTION was")  # in prompt and prediction, any case
    assert ids(tab) == ["row1"]
    assert tab.locator(".count").text_content() == "1 item of 4; mean of their exact_match: 100.0 → 0.0"
    search.fill("nowhere")
    assert ids(tab) == []
    search.fill("")
    better = tab.get_by_role("button", name="2 better")
    better.focus()
    tab.keyboard.press("Enter")
    assert ids(tab) == ["row0", "row3"]
    assert tab.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    tab.keyboard.press("Enter")
    assert len(ids(tab)) == 4
    # Less is better for errors: the same items are better.
    tab.get_by_label("score of an item").select_option(label="wer")
    assert tab.locator(".outcomes").text_content() == "▲ 2 better= 1 same▼ 1 worse"
    tab.get_by_role("button", name="play recording of row0").click()
    until(tab, "[...document.querySelectorAll('audio')].some(audio => audio.currentTime > 0)")


def test_the_two_systems_can_be_chosen_and_swapped(run, tmp_path, opened):
    third = write(tmp_path / "third.jsonl", [BEFORE])
    tab = opened(html(drawn([run], [third], audio=False)))
    a, b = tab.locator("select[data-side=A]"), tab.locator("select[data-side=B]")
    assert (a.input_value(), b.input_value()) == ("0", "2")
    b.select_option("1")
    table = tab.locator(".tables table").nth(1)
    assert "exact_match+12.5" in table.text_content()
    assert "wer ↓−23.1" in table.text_content()
    swap = tab.get_by_role("button", name="swap")
    swap.focus()
    tab.keyboard.press("Enter")
    assert (a.input_value(), b.input_value()) == ("1", "0")
    assert "exact_match−12.5" in table.text_content()
    assert tab.evaluate("document.activeElement.className") == "swap"
    b.select_option("1")  # one system against itself is one system
    assert tab.locator(".tables table").count() == 1
    assert tab.locator(".outcomes").is_hidden()
    assert tab.locator(".item .system").count() == 4


@pytest.mark.parametrize(
    ("metric", "interval", "verdict"),
    [
        ("exact_match", (10.0, 2.0, 18.0), "B is better"),
        ("exact_match", (-10.0, -18.0, -2.0), "B is worse"),
        ("exact_match", (10.0, -2.0, 22.0), "could be chance"),
        ("wer", (-10.0, -18.0, -2.0), "B is better"),
        ("wer", (10.0, 2.0, 18.0), "B is worse"),
        ("wer", (-10.0, -22.0, 2.0), "could be chance"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero_and_knows_if_less_is_better(run, opened, metric, interval, verdict):
    section = drawn([run], audio=False)
    of(section.data["sets"][0], metric)["differences"]["0-1"] = [*interval, 0.01]
    row = opened(html(section)).locator(".tables table").nth(1).locator("tr", has_text=metric)
    assert row.locator("td").last.text_content() == verdict


def differences(opened, tmp_path, pairs, **options):
    """Read the text of each item's prediction with [missing] and {extra} words."""
    references, said = zip(*pairs, strict=True)
    file = write(tmp_path / "a.jsonl", [list(said)], references=list(references), **options)
    tab = opened(html(drawn(predictions=[file], audio=False)))
    tab.get_by_label("order").select_option("file")
    return tab.locator(".system .said").evaluate_all(
        """lines => lines.map(line => [...line.childNodes].map(({nodeName, textContent}) =>
            ({DEL: `[${textContent}]`, INS: `{${textContent}}`})[nodeName] || textContent).join(""))"""
    )


def test_words_are_marked_against_the_reference(opened, tmp_path):
    pairs = [
        ("You leave the conference.", "To leave the conference, press eight."),
        ("Press six for extension six two.", "Press six."),
        ("a b c", "a b c"),
        ("a b", "b a"),
        ("yes", "no"),
        ("It's well-known.", "Its well-known"),
        ("我爱你", "我喜欢你"),
        ("one  two\nthree", "one two three four"),
        ("été naïve", "été naive"),
    ]
    assert differences(opened, tmp_path, pairs) == [
        "[You] {To} leave the conference{, press eight}.",
        "Press six [for extension six two].",
        "a b c",
        "[a] b {a}",
        "[yes] {no}",
        "[It's] {Its} well-known[.]",
        "我[爱]{喜欢}你",
        "one two three {four}",
        "été [naïve] {naive}",
    ]


def test_case_counts_as_it_was_scored(opened, tmp_path):
    pairs = [("Press One", "press one")]
    assert differences(opened, tmp_path, pairs) == ["[Press One] {press one}"]
    assert differences(opened, tmp_path, pairs, lowercase=True) == ["press one"]


def test_very_long_texts_stay_quick(opened, tmp_path):
    reference = " ".join(f"w{i}" for i in range(3000))
    said = " ".join(f"v{i}" for i in range(3000))
    (line,) = differences(opened, tmp_path, [(reference, said)])
    assert line == f"[{reference}] {{{said}}}"


def test_predictions_stay_text(opened, tmp_path):
    items = [
        {"id": EVIL + str(i), "kind": EVIL, "utterance": EVIL, "prompt": EVIL, "text": EVIL + "!", "reference": EVIL}
        for i in range(2)
    ]
    files = []
    for name, said in (("<b>a", EVIL), ("<b>b", EVIL + " \ud800 {}")):
        rows = [json.dumps(item | {"prediction": said}) + "\n" for item in items]
        file = tmp_path / f"{len(files)}.jsonl"
        file.write_text("".join(rows))
        file.with_suffix(".meta.json").write_text(json.dumps({"predictions": 1, "system": name}))
        files.append(file)
    tab = opened(html(drawn(predictions=files, audio=False)))
    assert tab.title() == "runs"
    assert tab.locator("#evaluation img, #evaluation script").count() == 0
    assert EVIL in tab.locator(".item").first.text_content()
    assert "<b>a" in tab.locator(".tables").text_content()


def test_many_items_come_in_parts_and_further_passes_on_demand(opened, tmp_path):
    texts = [f"answer {i}" for i in range(45)]
    file = write(tmp_path / "a.jsonl", [texts, texts[::-1]], references=texts)
    tab = opened(html(drawn(predictions=[file], audio=False)))
    more = tab.locator(".further")
    assert (len(ids(tab)), more.text_content()) == (20, "show 20 more")
    more.click()
    assert (len(ids(tab)), more.text_content()) == (40, "show 5 more")
    assert tab.evaluate("[...document.querySelectorAll('.item')].indexOf(document.activeElement)") == 20
    more.click()
    assert len(set(ids(tab))) == 45
    assert more.is_hidden()
    tab.get_by_label("order").select_option("file")
    passes = tab.locator(".item").first.locator(".passes")
    passes.locator("summary").click()
    passes.locator(".said").wait_for()
    assert passes.locator(".said").text_content() == "answer 0 44"  # 0 missing, 44 said instead


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(run, tmp_path, opened, scheme):
    long = write(tmp_path / ("a-system-of-a-long-name" * 3 + ".jsonl"), [["x" * 300, *AFTER[1:]]])
    tab = opened(html(drawn([run], [long])), viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.locator(".notes summary").click()
    for summary in tab.locator(".more summary").all():
        summary.click()
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
