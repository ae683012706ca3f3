"""The page itself: tabs, themes, and text that stays text."""

from leaf.report.page import Section, page

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u2028&lt;b&gt;"
DRAW = """
leaf.section("%s", (root, data) => {
  root.append(leaf.element("p.said", {}, data.said));
  leaf.onTheme((dark) => root.setAttribute("data-seen", dark));
});
"""


def made(*names, said=EVIL, title="a <run>"):
    return page(title, [Section(name, name.title(), {"said": said}, DRAW % name) for name in names])


def test_text_stays_text_and_tabs_and_themes_switch(opened):
    tab = opened(made("one", "two"), color_scheme="light")
    assert tab.title() == "a <run>"
    assert tab.locator("#one .said").text_content() == EVIL
    assert tab.locator("#one").is_visible()
    assert not tab.locator("#two").is_visible()
    assert tab.locator("#two .said").count() == 0  # drawn when first shown
    tab.locator("header nav a").nth(1).focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#two .said").is_visible()
    assert not tab.locator("#one").is_visible()
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.locator("#theme").click()
    assert tab.locator("#one").get_attribute("data-seen") == "true"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != light


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
