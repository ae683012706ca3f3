"""The report's plots and tables in a real browser: themes, sorting, smoothing, notes, settings, every width."""

import json

import pytest
from playwright.sync_api import expect

from leaf.evaluation.predictions import Predictions
from leaf.report.write import write_report
from tests.helpers.reported import EVIL, made
from tests.helpers.waits import until


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    paths = [
        made(folder / f"leaf{EVIL}".replace("/", "") / f"s{seed}", seed=seed, offset=seed / 10) for seed in range(2)
    ]
    paths += [made(folder / f"grpo-{seed}", seed=seed, credit="grpo") for seed in range(2)]
    return write_report(paths, folder / "r.html").read_text()


def test_plots_are_drawn_and_follow_the_theme(opened, html):
    tab = opened(html, color_scheme="light")
    # Bleu, reward, divergence and the stages; what does not change is told in words.
    expect(tab.locator("#curves .plot svg.marks")).to_have_count(4)
    expect(tab.locator("#curves figure")).to_have_count(4)
    flat = "The same at every step of every run: validation truncated 0, gradient norm 1, tokens saved 0.75."
    assert flat in tab.locator("#curves").text_content()
    assert "from the lowest run to the highest" in tab.locator("#curves").text_content()
    colour = "getComputedStyle(document.querySelector('#curves .plot svg.marks text')).fill"
    light = tab.evaluate(colour)
    tab.locator("#theme").click()
    until(tab, f"{colour} !== {json.dumps(light)}")
    tab.locator("header nav a", has_text="Forks").click()
    tab.locator("#forks .plot svg.marks").first.wait_for()
    assert "100 % (21 % to 100 %)" in tab.locator("#forks tbody tr").first.text_content()


def test_plots_of_a_hidden_tab_are_drawn_when_it_is_shown_again(opened, html):
    """Theme and window size change while it is hidden, and a hidden container has no width to draw in."""
    tab = opened(html, color_scheme="light", viewport={"width": 1280, "height": 800})
    count = tab.locator("#curves figure").count()
    width = "[...document.querySelectorAll('#curves .plot svg.marks')].map(one => one.getBoundingClientRect().width)"
    wide = f"{width}.length === {count} && {width}.every(one => one > 100)"
    colour = "getComputedStyle(document.querySelector('#curves .plot svg.marks text')).fill"
    until(tab, wide)
    light = tab.evaluate(colour)
    tab.evaluate("location.hash = '#forks'")
    tab.locator("#forks .plot svg.marks").first.wait_for()
    tab.locator("#theme").click()
    tab.evaluate("location.hash = '#curves'")
    until(tab, f"{wide} && {colour} !== {json.dumps(light)}")
    tab.evaluate("location.hash = '#forks'")
    until(tab, "document.querySelector('#curves').hidden")
    tab.set_viewport_size({"width": 1000, "height": 800})
    tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    tab.evaluate("location.hash = '#curves'")
    until(tab, f"!document.querySelector('#curves').hidden && {wide}")


def test_the_table_sorts_by_mouse_and_keyboard(opened, html):
    tab = opened(html)
    head = tab.locator("#curves thead th", has_text="reward, last tenth")
    names = tab.locator("#curves .scroll tbody tr td:first-child")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert names.last.text_content() == "s1"
    tab.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert names.first.text_content() == "s1"


def test_curves_are_smoothed_and_single_runs_hidden(opened, html):
    tab = opened(html)
    lines = tab.locator("#curves figure", has_text="mean over a step's completions").locator(".mark-line path")
    expect(lines).to_have_count(6)  # four runs and two means
    tab.locator("#single").uncheck()
    expect(lines).to_have_count(2)
    bleu = tab.locator("#curves figure", has_text="Validation bleu").locator(".mark-line path")
    expect(bleu).to_have_count(2)
    before, scores = lines.first.get_attribute("d"), bleu.first.get_attribute("d")
    tab.locator("#smooth").select_option("5")
    expect(lines.first).not_to_have_attribute("d", before)
    expect(bleu.first).to_have_attribute("d", scores)  # validations are few, and stay as they are


def test_the_note_on_a_point_names_its_run(opened, html):
    tab = opened(html, viewport={"width": 1280, "height": 800})
    reward = tab.locator("#curves figure", has_text="mean over a step's completions").locator("svg.marks")
    tip = tab.locator("#vg-tooltip-element")
    reward.hover()
    expect(tip).to_contain_text("mean of ")
    assert "undefined" not in tip.text_content()
    assert "NaN" not in tip.text_content()


def test_settings_are_side_by_side_where_runs_differ(opened, html, tmp_path):
    tab = opened(html)
    tables = tab.locator("#curves .settings table")
    found = [row.locator("th, td").all_text_contents() for row in tables.first.locator("tr").all()]
    assert [row[1] for row in found] == ["credit", "leaf", "leaf", "grpo", "grpo"]  # a row for each run
    tab.locator("#curves summary").click()
    common = [row.locator("th, td").all_text_contents() for row in tables.last.locator("tr").all()]
    assert ["lora_r", "64"] in common
    assert not {"credit", "seed"} & {key for key, _ in common}
    paths = [made(tmp_path / "one"), made(tmp_path / "two", lora_r=8, save_every=7, credit="grpo")]
    tab = opened(write_report(paths, tmp_path / "r.html").read_text())
    rows = tab.locator("#curves .settings table").first.locator("tr").all()
    found = [row.locator("th, td").all_text_contents() for row in rows]  # fewer runs than settings: a column for each
    assert sorted(found) == [
        ["", "one", "two"],
        ["credit", "leaf", "grpo"],
        ["lora_r", "64", "8"],
        ["save_every", "50", "7"],
    ]


@pytest.mark.parametrize("width", [800, 1280])
def test_no_table_is_wider_than_the_page_however_much_the_runs_differ(opened, tmp_path, width):
    paths = []
    for number in range(8):
        task = f"a/rather/long/path/of/a/manifest/number-{number}/with_a_long_name_of_its_own.jsonl"
        many = {
            "learning_rate": 1e-5 * (number + 1),
            "lora_r": 8 + number,
            "temperature": 1 - number / 10,
            "task": task,
        }
        many |= {"credit_options": {"max_boundaries": number, "min_prefix": number + 1, "sqrt_count": number % 2 == 0}}
        many |= {"max_new_tokens": 40 + number, "kl_coef": number / 10, "lora_alpha": 10 + number, "clip": number / 10}
        paths.append(made(tmp_path / f"a-run-with-a-rather-long-name-{number}", **many))
    for path in paths:
        items = [{"id": f"{i}", "utterance": f"{i}", "prompt": "?", "reference": "one two three"} for i in range(3)]
        made_with = {"decoding": {"greedy": True}}
        meta = {"predictions": 1, "made_with": made_with, "lowercase": False, "metrics": {"bleu": {}, "wer": {}}}
        Predictions(path.name, items, [["one two four"] * 3], [None], [[False] * 3], meta=meta).write(
            path / "test.jsonl"
        )
    page = write_report(paths, tmp_path / "r.html", audio=False).read_text()
    tab = opened(page, viewport={"width": width, "height": 900})
    names = [path.name for path in paths]
    assert tab.locator("#curves .key").first.text_content() == names[0]
    assert names == [key.text_content() for key in tab.locator("#curves .key").all()[:8]]
    for section in ("curves", "forks", "evaluation"):
        tab.evaluate(f"location.hash = '#{section}'")
        tab.locator(f"#{section} .scroll").first.wait_for()
        for opened_table in tab.locator(f"#{section} summary").all():
            opened_table.click()
        for box in tab.locator(f"#{section} .scroll").all():
            assert box.evaluate("box => box.scrollWidth - box.clientWidth") <= 1, box.get_attribute("aria-label")


def test_a_rule_has_one_colour_whether_it_trained_or_not(opened, html):
    tab = opened(html)
    tab.evaluate("location.hash = '#forks'")
    bars = tab.locator("#forks figure", has_text="Credit by fifths").locator(".mark-rect path")
    figures = tab.locator("#forks figure", has_text="Credit by fifths")
    expect(figures).to_have_count(2)
    expect(figures.first.locator(".mark-rect path").first).to_be_visible()
    expect(figures.last.locator(".mark-rect path").first).to_be_visible()
    legends = [figure.locator(".role-legend-label text").all_text_contents() for figure in figures.all()]
    assert legends == [["leaf, as trained", "grpo"], ["leaf", "grpo, as trained"]]
    first, last = (figure.locator(".role-legend-symbol path").first.get_attribute("fill") for figure in figures.all())
    assert first == last
    assert bars.count() >= 4


def test_no_section_is_wider_than_a_phone(opened, html):
    tab = opened(html, viewport={"width": 390, "height": 844})
    for name in ("curves", "forks"):
        tab.evaluate(f"location.hash = '#{name}'")
        figures = tab.locator(f"#{name} figure")
        figures.first.wait_for()
        expect(tab.locator(f"#{name} .plot svg.marks")).to_have_count(figures.count())
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.title().startswith("leaf: ")
