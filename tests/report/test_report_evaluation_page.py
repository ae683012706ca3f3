"""The evaluation section in a real browser: items, systems, verdicts, marked words, hostile text, every width."""

import json

import pytest

from leaf.files import read_rows, write_rows
from tests.helpers.evaluations import AFTER, BEFORE, drawn, html, of, write
from tests.helpers.waits import until

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


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
        ("words", (10.0, 2.0, 18.0), "B has more"),
        ("words", (-10.0, -18.0, -2.0), "B has fewer"),
        ("words", (10.0, -2.0, 22.0), "could be chance"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero_and_knows_if_less_is_better(run, opened, metric, interval, verdict):
    for file in run.glob("test_*.meta.json"):
        meta = json.loads(file.read_text())
        file.write_text(json.dumps(meta | {"metrics": {metric: {}}}))
    section = drawn([run], audio=False)
    of(section.data["sets"][0], metric)["differences"]["0-1"] = [*interval, 0.01]
    row = opened(html(section)).locator(".tables table").nth(1).locator("tr", has_text=metric)
    assert row.locator("td").last.text_content() == verdict


def test_a_single_recording_shows_values_and_no_intervals(opened, tmp_path):
    files = [write(tmp_path / f"{name}.jsonl", [said]) for name, said in (("a", BEFORE), ("b", AFTER))]
    for file in files:
        write_rows(file, [{**row, "utterance": "u"} for row in read_rows(file)])
    tab = opened(html(drawn(predictions=files, audio=False)))
    score = tab.locator(".tables table").nth(0).locator("tr", has_text="exact_match").first
    assert score.locator("td").all_text_contents()[-3:-1] == ["25.0", "–"]
    row = tab.locator(".tables table").nth(1).locator("tr", has_text="exact_match")
    assert row.locator("td").all_text_contents() == ["+25.0", "–", "", "–", "a single recording"]
    tab.get_by_role("button", name="swap").click()
    assert row.locator("td").all_text_contents() == ["−25.0", "–", "", "–", "a single recording"]


def test_small_changes_of_a_reward_are_shown_and_counted(run, opened):
    section = drawn([run], audio=False)
    metric = section.data["sets"][0]["metrics"][0]
    metric.update(name="reward", digits=4, items=[[0.5, 0.5, 0.5, 0.5], [0.504, 0.5, 0.4999, 0.5]])
    tab = opened(html(section))
    assert tab.locator(".outcomes").text_content() == "▲ 1 better= 2 same▼ 1 worse"
    assert tab.locator(".item .by").all_text_contents() == ["▲ +0.0040", "=", "=", "▼ −0.0001"]


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


def test_a_prediction_that_matches_any_reference_is_ticked(opened, tmp_path):
    references = [["at noon", "at twelve"], ["yes"]]
    file = write(tmp_path / "a.jsonl", [["at twelve", "at noon"]], references=references, metrics=("exact_match",))
    tab = opened(html(drawn(predictions=[file], audio=False)))
    tab.get_by_label("order").select_option("file")
    first = tab.locator(".item").nth(0)
    assert first.locator(".reference").all_text_contents() == references[0]
    assert first.locator(".system .text").text_content() == "at twelve✓ matches the reference"
    assert tab.locator(".tag.right").count() == 1
    tab.get_by_label("search").fill("twelve")
    assert ids(tab) == ["row0"]


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
