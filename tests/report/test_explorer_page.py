"""The tree explorer in a browser: mouse, keyboard, addresses, hostile text, odd groups, every width."""

from urllib.parse import quote

import pytest
from playwright.sync_api import expect

from tests.helpers.explorer import html
from tests.helpers.recorded import record, worked, write_run


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
