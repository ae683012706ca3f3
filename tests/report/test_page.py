"""The page itself: tabs, themes, and text that stays text."""

import pytest
from playwright.sync_api import expect

from leaf.report.page import Section, page
from tests.helpers.waits import until

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u2028&lt;b&gt;"
DRAW = """
leaf.section("%s", (root, data) => {
  root.append(leaf.element("p.said", {}, data.said));
  leaf.onTheme((dark) => root.setAttribute("data-seen", dark));
});
"""


def made(*names, said=EVIL, title="a <run>"):
    return page(title, [Section(name, name.title(), {"said": said}, (DRAW % name,)) for name in names])


def test_text_stays_text_and_tabs_and_themes_switch(opened):
    tab = opened(made("one", "two"), color_scheme="light")
    assert tab.title() == "a <run>"
    assert tab.locator("#one .said").text_content() == EVIL
    assert tab.locator("#one").is_visible()
    assert not tab.locator("#two").is_visible()
    assert tab.locator("#two .said").count() == 0  # drawn when first shown
    tab.locator("header nav a").nth(1).focus()
    tab.keyboard.press("Enter")
    expect(tab.locator("#two .said")).to_be_visible()
    expect(tab.locator("#one")).to_be_hidden()
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.locator("#theme").click()
    assert tab.locator("#one").get_attribute("data-seen") == "true"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != light


def test_the_theme_follows_the_system_until_the_button_is_clicked(opened):
    tab = opened(made("one"), color_scheme="light")
    theme = "document.documentElement.dataset.theme"
    assert tab.evaluate(theme) == "light"
    tab.emulate_media(color_scheme="dark")
    until(tab, f"{theme} === 'dark'")
    tab.locator("#theme").click()
    assert tab.evaluate(theme) == "light"
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
    assert tab.evaluate(theme) == "light"


@pytest.mark.parametrize("size", [(1280, 800), (390, 844)], ids=["laptop", "phone"])
def test_a_section_opened_by_its_address_begins_below_the_header(opened, size):
    tab = opened(
        made("one", "two", "three", said="long " * 5000, title="a long title " * 9),
        viewport=dict(zip(("width", "height"), size, strict=True)),
    )
    tab.goto("about:blank")
    tab.goto(opened.address + "#three")
    said = tab.locator("#three .said")
    expect(said).to_be_visible()
    tab.wait_for_load_state("load")
    assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
    header = tab.locator("header").bounding_box()
    assert header["y"] + header["height"] <= said.bounding_box()["y"]


def test_a_script_that_is_not_the_pages_own_does_not_run(opened):
    tab = opened(made("one", said="x"))
    ran = tab.evaluate(
        """() => new Promise(done => {
            document.addEventListener("securitypolicyviolation", e => done(e.violatedDirective));
            const script = document.createElement("script");
            script.textContent = "window.ran = 1";
            document.body.append(script);
            if (window.ran) done("ran");
        })"""
    )
    assert ran.startswith("script-src")
    assert len(opened.errors) == 1
    assert "Content Security Policy" in opened.errors.pop()
