"""The tree explorer: exact numbers in its data, and the page in a browser: mouse, keyboard, phone, hostile text."""

import json
from urllib.parse import quote

import numpy as np
import pytest
import soundfile
from datasets import Dataset
from playwright.sync_api import expect

from leaf.config import AlignConfig, LeafConfig, to_dict
from leaf.data import load
from leaf.errors import AudioError
from leaf.report.audio import Recordings
from leaf.report.explorer import RULES, even, explorer_section, group_data
from leaf.report.page import page
from leaf.runs.directory import RunDirectory
from tests.helpers.recorded import REWARDS, SURPRISAL, WORDS, record, write_run
from tests.helpers.waits import until

GRPO = [1.3056, 0.2611, -0.7833, -0.7833]  # (r - 0.5) / (0.38297 + 1e-6)


def worked(**changes):
    return record(WORDS, REWARDS, SURPRISAL, **changes)


def drawn(runs, **options):
    """Return the explorer's section, which has something to show."""
    section = explorer_section(runs, **options)
    assert section is not None
    return section


def html(*runs, **options):
    return page("a run", [drawn(runs, **{"audio": False, **options})])


def test_the_worked_example_has_its_stretches_nodes_and_credit():
    data = group_data(worked(), LeafConfig())
    found = [("".join(s["texts"]), s["above"], s["n"], s["value"], s["retained"], s["ends"]) for s in data["stretches"]]
    assert found == [
        ("press", -1, 3, 0.6, True, []),
        (" one to", 0, 2, 0.8, True, []),
        (" leave■", 1, 1, 1.0, False, [0]),
        (" exit■", 1, 1, 0.6, False, [1]),
        (" two to leave■", 0, 1, 0.2, False, [2]),
        ("dial one■", -1, 1, 0.2, False, [3]),
    ]
    assert [s["start"] for s in data["stretches"]] == [0, 1, 3, 3, 1, 0]
    assert data["stretches"][4]["nats"] == [1.6, 0.2, 0.4, 0.1]
    assert (data["n"], data["value"], data["boundaries"], data["rewards"]) == (4, 0.5, [1, 3], REWARDS)
    # The last column of the table in docs/method.md.
    leaf = [[(count, round(value, 3)) for count, value in row] for row in data["credit"]["leaf"]]
    assert leaf == [
        [(1, 0.169), (2, 0.697), (2, 1.466)],
        [(1, 0.169), (2, 0.697), (2, -0.309)],
        [(1, 0.169), (4, -1.640)],
        [(3, -1.418)],
    ]
    assert data["credit"]["grpo"] == [[[n, value]] for n, value in zip([5, 5, 5, 3], GRPO, strict=True)]
    json.dumps(data, allow_nan=False)


def test_recorded_advantages_are_a_rule_of_their_own_where_they_differ():
    plain = worked(advantages=[[value] * 5 for value in GRPO])
    independent = [rule for rule in RULES if rule != "unordered_set"]
    assert list(group_data(plain, LeafConfig(credit="grpo"))["credit"]) == independent
    assert group_data(plain, LeafConfig(credit="leaf"))["credit"]["recorded"][0] == [[5, 1.3056]]
    # A rule of the run's own code is not run: what it gave was recorded.
    assert "recorded" in group_data(plain, LeafConfig(credit="mine", plugins=["mine.py"]))["credit"]


def test_distinct_completions_have_their_probabilities_weights_and_masses(tmp_path, opened):
    recipe = LeafConfig(rollout="distinct", credit="unordered_set", top_p=1.0)
    record = worked(distinct=True)
    data = group_data(record, recipe)
    # Of 1.5, 1.8, 2.4 and 3 nats: e^-1.5 and so on. `press` is e^-0.1 in all, and three completions begin with it.
    assert data["draw"]["p"] == ["0.223", "0.165", "0.091", "0.050"]
    assert data["draw"]["mass"] == "0.529"
    assert sum(map(float, data["draw"]["weights"])) == pytest.approx(1, abs=2e-3)
    assert data["stretches"][0]["mass"] == ("0.479", "0.905")
    assert data["stretches"][0]["n"] == 3
    assert "grpo" not in data["credit"]  # plain means do not go with weights
    assert "unordered_set" in data["credit"]
    weights = record["weight"]
    assert data["value"] == pytest.approx(sum(w * r for w, r in zip(weights, REWARDS, strict=True)), abs=1e-3)
    share = sum(weights[:3])
    assert data["stretches"][0]["value"] == pytest.approx(
        sum(w * r for w, r in zip(weights[:3], REWARDS[:3], strict=True)) / share, abs=1e-3
    )
    run = write_run(tmp_path / "run", [record], rollout="distinct", credit="unordered_set", top_p=1.0)
    tab = opened(html(run))
    tree = tab.locator("#trees .tree")
    expect(tree).to_contain_text("mass 0.529 of 1")
    expect(tree).to_contain_text("mass 0.479 of 0.905")
    expect(tree).to_contain_text(f"p 0.223, w {weights[0]:.3f}")
    expect(tab.locator("#trees .signs")).to_contain_text("w its weight")
    expect(tab.locator("#trees .modes")).to_contain_text("unordered set")


def test_groups_recorded_before_what_is_outside_still_have_a_draw():
    record = worked(distinct=True)
    full = group_data(record, LeafConfig(credit="unordered_set"))["credit"]["unordered_set"]
    del record["log_rest"], record["threshold"]
    older = group_data(record, LeafConfig(credit="unordered_set"))["credit"]["unordered_set"]
    assert [row[0][1] for row in older] == pytest.approx([row[0][1] for row in full], abs=2e-3)


def test_surprisal_of_a_shared_token_is_the_mean_and_nothing_is_nan():
    nats = [[0.2, 1.0], [0.4, 2.0]]
    data = group_data(record([["a", "b"], ["a", "c"]], [None, None], nats), LeafConfig())
    assert data["stretches"][0]["nats"] == [0.3]
    assert data["stretches"][0]["value"] is None
    assert data["idle"] == "fewer than two completions have a reward"
    json.dumps(data, allow_nan=False)


def test_even_samples_keep_both_ends():
    assert even([1, 10, 20, 30, 40], 3) == [1, 20, 40]
    assert even([1, 10, 20, 30], 2) == [1, 30]
    assert even([1, 10, 20], 1) == [20]
    assert even([1, 10], 9) == [1, 10]


def test_too_many_groups_are_sampled_evenly_and_the_page_says_so(tmp_path, opened):
    run = write_run(tmp_path / "run", [{**worked(id=f"g{i % 2}"), "step": 10 * (i // 2)} for i in range(200)])
    section = drawn([run], audio=False, text_bytes=60_000)
    shown = section.data["runs"][0]
    steps = [group["step"] for group in shown["groups"][::2]]
    assert (shown["total"], shown["steps"]) == (200, 100)
    assert len(json.dumps(shown["groups"], separators=(",", ":"))) < 65_000  # what is said of the audio comes on top
    assert 6 <= len(steps) < 40
    assert (steps[0], steps[-1]) == (0, 990)
    gaps = np.diff(steps)
    assert gaps.max() - gaps.min() <= 10
    assert [group["number"] for group in shown["groups"]] == [0, 1] * len(steps)
    tab = opened(page("a run", [section]))
    said = tab.locator("#trees .sample").text_content()
    assert said == f"{2 * len(steps)} of 200 recorded groups: {len(steps)} of 100 recorded steps, evenly spaced"
    assert drawn([run], audio=False, text_bytes=10).data["runs"][0]["groups"][0]["step"] == 990


def test_runs_without_groups_have_no_explorer(tmp_path):
    bare = write_run(tmp_path / "bare", [])
    align = write_run(tmp_path / "align", [])
    align.write_recipe(AlignConfig())
    assert explorer_section([bare, align], audio=False) is None
    full = write_run(tmp_path / "full", [worked()])
    again = write_run(tmp_path / "sub", [worked()])
    (tmp_path / "other").mkdir()
    again.path.rename(tmp_path / "other" / "full")
    runs = drawn([bare, full, RunDirectory(tmp_path / "other" / "full")], audio=False).data["runs"]
    assert [run["name"] for run in runs] == ["full", "full (2)"]
    section = drawn([bare, full], names=["first", "second"], audio=False)
    assert [run["name"] for run in section.data["runs"]] == ["second"]


# -- recordings --------------------------------------------------------------------------------------------------------
def spoken_run(tmp_path, *, length=1, **recipe):
    """Write a run of three groups: the rows of two are in a manifest beside their recordings, the third row is gone."""
    seconds = np.arange(16000 * length) / 16000
    rows = []
    for name, pitch in (("a", 220), ("b", 440)):
        soundfile.write(tmp_path / f"{name}.wav", 0.3 * np.sin(2 * np.pi * pitch * seconds), 16000)
        rows.append({"id": name, "audio": f"{name}.wav", "prompt": "Say", "reference": name, "split": "train"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = [worked(id=name, prompt="Say", reference=name, audio=[f"{name}.wav"]) for name in ("a", "b", "gone")]
    return write_run(tmp_path / "run", records, **{"task": str(tmp_path / "rows.jsonl"), **recipe})


def test_recordings_are_found_again_played_and_missing_ones_named(tmp_path, opened):
    run = spoken_run(tmp_path, length=15)
    section = drawn([run])
    groups = section.data["runs"][0]["groups"]
    assert [group["clip"] for group in groups] == [0, 1, None]
    assert groups[2]["silence"].endswith("rows.jsonl no longer has this row.")
    assert section.data["clips"][0]["seconds"] == 15.0  # long enough not to be over before it is looked at
    tab = opened(page("a run", [section]))
    assert tab.locator("#trees .files").text_content() == "a.wav"
    tab.keyboard.press("a")
    until(tab, "document.querySelector('#trees audio').currentTime > 0.05")
    assert 14.9 < tab.evaluate("document.querySelector('#trees audio').duration") < 15.2
    tab.keyboard.press("2")  # a switch of the rule does not cut the sound off
    assert not tab.evaluate("document.querySelector('#trees audio').paused")
    tab.keyboard.press("n")
    tab.keyboard.press("n")
    assert "no longer has this row" in tab.locator("#trees .silence").text_content()


def test_a_group_says_why_it_is_silent(tmp_path):
    run = spoken_run(tmp_path)
    (tmp_path / "a.wav").write_bytes(b"no sound")
    section = drawn([run])
    groups = section.data["runs"][0]["groups"]
    assert "a.wav" in groups[0]["silence"]
    assert groups[1]["clip"] == 0
    assert "small" in drawn([run], audio_bytes=100).data["runs"][0]["groups"][1]["silence"]
    (tmp_path / "a.wav").unlink()
    for group in drawn([run]).data["runs"][0]["groups"]:
        assert group["clip"] is None
        assert "the rows of rows.jsonl cannot be read" in group["silence"]
        assert "names the audio file 'a.wav', which does not exist" in group["silence"]
        # A report is passed on: it says nothing of the machine it was written on.
        assert str(tmp_path) not in json.dumps(group) + json.dumps(section.data)
    silent = drawn([run], audio=False).data["runs"][0]["groups"][0]
    assert silent["silence"] == "This report was written without recordings."


def test_a_row_without_a_recording_silences_its_own_groups_alone(tmp_path, monkeypatch):
    run = spoken_run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    rows = [row | {"audio": file} for row, file in zip(rows, (None, str(tmp_path / "b.wav")), strict=True)]
    monkeypatch.setattr("leaf.data.load", lambda *given, **options: Dataset.from_list(rows))
    with pytest.raises(AudioError, match="'a' carries 0 recordings"):
        Recordings("task").find({"id": "a"}, "train")
    groups = drawn([run]).data["runs"][0]["groups"]
    assert [group["clip"] for group in groups] == [None, 0, None]
    assert "'a' carries 0 recordings" in groups[0]["silence"]
    assert "no longer has this row" in groups[2]["silence"]


def test_runs_of_one_task_read_its_rows_once(tmp_path, monkeypatch):
    run = spoken_run(tmp_path)
    again = write_run(tmp_path / "again", list(run.lines("groups.jsonl")), task=run.config().task)
    read = []
    monkeypatch.setattr("leaf.data.load", lambda *given, **options: read.append(given) or load(*given, **options))
    runs = drawn([run, again]).data["runs"]
    assert [[group["clip"] for group in one["groups"]] for one in runs] == [[0, 1, None]] * 2
    assert len(read) == 1


def test_plugins_of_a_run_are_run_only_for_a_task_of_their_own(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text("raise RuntimeError('was run')")
    run = spoken_run(tmp_path, plugins=[str(plugin)], credit="mine")
    assert drawn([run]).data["runs"][0]["groups"][0]["clip"] == 0
    values = to_dict(LeafConfig(task="my_task", plugins=[str(plugin)]))
    (run.path / "recipe.yaml").write_text(json.dumps(values))
    assert "was run" in drawn([run]).data["runs"][0]["groups"][0]["silence"]
    assert "was run" not in json.dumps(drawn([run], audio=False).data)


# -- in the browser ----------------------------------------------------------------------------------------------------
def figures(tab):
    return tab.locator("#trees .tree .advantage").all_text_contents()


def tint(tab, key):
    """Read direction and strength of a token's tint in the first row, and the mark that needs no colour."""
    token = tab.locator(f"#trees [data-token='{key}']").first
    direction = {"up", "down"} & set(token.get_attribute("class").split())
    return (
        direction.pop() if direction else None,
        token.evaluate("e => Number(e.style.getPropertyValue('--share'))"),
        token.evaluate("e => getComputedStyle(e).boxShadow"),
    )


def test_switching_the_rule_shows_its_exact_credit(tmp_path, opened):
    tab = opened(html(write_run(tmp_path / "run", [worked()])), viewport={"width": 1280, "height": 800})
    assert figures(tab) == ["+0.17", "+0.70", "+1.47", "−0.31", "−1.64", "−1.42"]
    assert tab.locator("#trees .tree .node").all_text_contents() == ["n 4  V̂ 0.500", "◆ n 3  V̂ 0.600", "◆ n 2  V̂ 0.800"]
    assert tab.locator("#trees .tree .boundary").count() == 4
    assert tab.locator("#trees .reward").all_text_contents() == ["1.000", "0.600", "0.200", "0.200"]
    assert tab.locator("#trees .numbers").all_text_contents() == ["#0", "#1", "#2", "#3"]
    assert tab.locator("#trees .reference").text_content() == "reference press one"
    direction, share, mark = tint(tab, "1-0")
    assert (direction, share) == ("up", pytest.approx(0.697 / 1.640, abs=1e-3))
    down, full, other_mark = tint(tab, "4-0")
    assert (down, full) == ("down", 1)
    assert mark.startswith(other_mark.split(" 0px")[0])  # the same ink, above the text and below it
    assert " -2.5px" in other_mark
    assert " -" not in mark

    tab.get_by_role("button", name="GRPO", exact=True).click()
    assert figures(tab) == ["−0.78 to +1.31", "+0.26 to +1.31", "+1.31", "+0.26", "−0.78", "−0.78"]
    direction, share, _ = tint(tab, "0-0")  # the mean of 1.306, 0.261 and −0.783
    assert (direction, share) == ("up", pytest.approx(0.261 / 1.640, abs=1e-3))

    tab.keyboard.press("4")
    assert tab.get_by_role("button", name="LEAF − GRPO").get_attribute("aria-pressed") == "true"
    assert figures(tab)[2:] == ["+0.16", "−0.57", "−0.86", "−0.63"]
    assert tint(tab, "4-0")[:2] == ("down", pytest.approx(0.857 / 1.136, abs=2e-3))

    tab.keyboard.press("3")
    assert figures(tab)[:4] == ["+0.17", "⌀ +0.26", "+0.70", "⌀ +0.78"]
    tab.get_by_label("rule to compare LEAF with").select_option("tempo")
    assert tab.locator("#trees .modes button").all_text_contents() == ["LEAF", "TEMPO", "both", "LEAF − TEMPO"]


def test_a_token_tells_its_surprisal_and_whose_advantage_it_is(tmp_path, opened):
    tab = opened(html(write_run(tmp_path / "run", [worked()])), viewport={"width": 1280, "height": 800})
    tip = tab.locator("#trees .tip")
    assert not tip.is_visible()
    tab.locator("#trees [data-token='0-0']").hover()
    assert tip.locator("code").text_content() == "press"
    assert "surprisal 0.100 nats, probability 0.905" in tip.text_content()
    rows = [row.locator("th, td").all_text_contents() for row in tip.locator("tr").all()]
    assert rows == [
        ["advantage", "LEAF", "GRPO", "difference"],
        ["#0", "+0.17", "+1.31", "−1.14"],
        ["#1", "+0.17", "+0.26", "−0.09"],
        ["#2", "+0.17", "−0.78", "+0.95"],
        ["mean", "+0.17", "+0.26", "−0.09"],
    ]
    tab.keyboard.press("Escape")
    assert not tip.is_visible()
    tab.locator("#trees [data-token='4-0']").click()
    assert "probability 0.202" in tip.text_content()
    box = tip.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 1280
    assert box["y"] + box["height"] <= 800


def focused(tab):
    return tab.evaluate("document.activeElement.textContent")


def test_every_token_is_reached_with_the_keyboard(tmp_path, opened):
    tab = opened(html(write_run(tmp_path / "run", [worked()])), reduced_motion="reduce")
    assert tab.locator("#trees .stage [tabindex='0']").count() == 1
    tab.locator("#trees select[aria-label='rule to compare LEAF with']").focus()
    tab.keyboard.press("Tab")
    assert focused(tab) == "prompt"
    walked = []
    for key in ["ArrowRight"] * 5 + ["ArrowLeft", "ArrowDown", "ArrowDown", "ArrowUp", "End", "Home"]:
        tab.keyboard.press(key)
        walked.append(focused(tab))
    assert walked == ["press", " one", " to", " leave", "■", " leave", " exit", " two", " exit", "■", "prompt"]
    # Down from stretch to stretch and right within them, the keys reach everything.
    reached = {focused(tab)}
    for _ in range(6):
        tab.keyboard.press("ArrowDown")
        reached.add(tab.evaluate("document.activeElement.dataset.token"))
    assert reached == {"prompt", "0-0", "1-0", "2-0", "3-0", "4-0", "5-0"}
    tab.keyboard.press("2")
    assert focused(tab) == "dial"  # and stays where it was
    assert tab.locator("#trees .stage [tabindex='0']").count() == 1
    label = tab.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label == "“dial”, token 0, surprisal 2.50 nats, in #3, LEAF −1.42, GRPO −0.78"
    end = tab.locator("#trees [data-token='5-2']").get_attribute("aria-label")
    assert end.endswith("here end #3, reward 0.200")


def test_groups_have_addresses_and_keys(tmp_path, opened):
    records = [worked(id=f"g{i}") | {"step": step} for i, step in enumerate([1, 1, 20, 20])]
    name = "a run/é"
    run = write_run(tmp_path / "run", records)
    other = write_run(tmp_path / "other", [worked(id="else")])
    text = html(run, other).replace('"name":"run"', f'"name":"{name}"')
    tab = opened(text)
    heading = tab.locator("#trees h2")
    assert heading.text_content() == "g2, step 20"  # the last step recorded
    for key, wanted in [("n", "g3"), ("n", "g3"), ("P", "g1"), ("p", "g0"), ("p", "g0"), ("N", "g2")]:
        tab.keyboard.press(key)
        assert heading.text_content().startswith(wanted + ","), key
    assert tab.evaluate("location.hash") == f"#trees/{quote(name, safe='')}/20/0"
    tab.evaluate(f"location.hash = '#trees/{quote(name, safe='')}/1/1'")
    expect(heading).to_have_text("g1, step 1")
    tab.get_by_label("run", exact=True).select_option("1")
    assert heading.text_content() == "else, step 1"  # it has no group 1
    tab.get_by_label("run", exact=True).select_option("0")
    assert heading.text_content() == "g0, step 1"  # the same place
    tab.get_by_role("button", name="next step").click()
    assert heading.text_content() == "g2, step 20"
    tab.evaluate("location.hash = '#trees/nothing/7/1'")
    expect(tab.locator("#trees .note")).to_contain_text("no group at nothing/7/1")
    tab.evaluate("location.hash = '#trees/%E0%A4%A/1'")
    expect(tab.locator("#trees .note")).to_contain_text("%E0%A4%A")


EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202e&lt;b&gt;"


def test_text_of_a_model_stays_text(tmp_path, opened):
    words = [[EVIL, " x", "</s>"], [EVIL, " y", "</s>"], ["\x1b[2J", "\u202e", "\ud800", "</s>"]]
    one = record(words, [1.0, 0.5, None], id=EVIL, prompt=EVIL, text=EVIL, reference=EVIL, audio=[EVIL])
    tab = opened(html(write_run(tmp_path / "run", [one])))
    assert tab.title() == "a run"
    shown = EVIL.replace("\u202e", "\\u{202e}")
    assert tab.locator("#trees .facts dd").first.text_content() == shown
    assert tab.locator("#trees .reference").text_content() == f"reference {shown}"
    assert tab.locator("#trees [data-token='0-0']").text_content() == shown
    assert tab.locator("#trees img").count() == 0
    tab.locator("#trees [data-token='0-0']").focus()
    assert tab.locator("#trees .tip code").text_content() == shown
    assert tab.locator("#trees [data-stretch='3'] .token").all_text_contents() == [
        "␛[2J",
        "\\u{202e}",
        "?",
        "■",
    ]
    assert "unscored" in tab.locator("#trees .reward").all_text_contents()


LONG = [[f" word{i}" if i < 40 * k else f" other{i}-{k}" for i in range(200)] for k in range(8)]
ODD = {
    "equal": ([["a", "b"], ["a", "b", "c"], [], ["a", "b"], ["z"]], [0.5, None, 0.5, 0.5, 0.5]),
    "single": ([["a", "</s>"]], [1.0]),
    "nothing": ([[], []], [0.0, 1.0]),
    "unscored": ([["a", "</s>"], ["b", "</s>"]], [None, None]),
    "negative": ([["a", "</s>"], ["b", "</s>"]], [-3.0, 2.0]),
    "same": ([["a", "b", "</s>"]] * 3 + [["a", "c", "</s>"]], [0.5, 0.5, 0.5, 1.0]),
    "unbroken": ([["x" * 300, "</s>"], ["语" * 300, "", "</s>"]], [1.0, 0.0]),
    "long": (LONG, [i / 8 for i in range(8)]),
    "deep": ([["a"] * i + [f"b{i}", "</s>"] for i in range(40)], [i / 40 for i in range(40)]),
}


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["laptop", "phone"])
def test_odd_groups_are_drawn_and_the_page_never_overflows(tmp_path, opened, size):
    records = [
        record(words, rewards, id=name, truncated=[i % 2 == 0 for i in range(len(words))])
        for name, (words, rewards) in ODD.items()
    ]
    tab = opened(html(write_run(tmp_path / "run", records)), viewport=dict(zip(("width", "height"), size, strict=True)))
    for number, (name, (words, _)) in enumerate(ODD.items()):
        tab.evaluate(f"location.hash = '#trees/run/1/{number}'")
        expect(tab.locator("#trees h2")).to_have_text(f"{name}, step 1")
        for mode in "3124":
            tab.keyboard.press(mode)
            assert tab.evaluate("document.documentElement.scrollWidth") <= size[0], name
        numbers = " ".join(tab.locator("#trees .numbers").all_text_contents()).split()
        assert sorted(numbers) == sorted(f"#{k}" for k in range(len(words))), name
        boxes = tab.evaluate(
            """() => [...document.querySelectorAll("#trees .card, #trees .outcome")].map((e) => {
                const b = e.getBoundingClientRect();
                return [b.left, b.top, b.right, b.bottom, e.scrollWidth - e.clientWidth];
            })"""
        )
        for i, (left, top, right, bottom, beyond) in enumerate(boxes):
            assert beyond <= 1, name  # text stays inside its card
            for other in boxes[:i]:
                apart = right <= other[0] + 1 or other[2] <= left + 1 or bottom <= other[1] + 1 or other[3] <= top + 1
                assert apart, name
    assert tab.locator("#trees path").count() > 40


def test_what_an_idle_group_says(tmp_path, opened):
    words, rewards = ODD["equal"]
    run = write_run(tmp_path / "run", [record(words, rewards, truncated=[True, False, False, True, False])])
    tab = opened(html(run))
    assert tab.locator("#trees .legend").text_content() == "advantage 0 everywhere: all rewards in this group are equal"
    assert tab.locator("#trees .tree .token.up, #trees .tree .token.down").count() == 0
    ends = dict(
        zip(tab.locator(".numbers").all_text_contents(), tab.locator(".earned").all_text_contents(), strict=True)
    )
    assert ends["#0 #3"] == "0.500#0 #3✂ truncated"
    assert ends["#1"] == "unscored#1"
    assert ends["#2"] == "0.500#2"
