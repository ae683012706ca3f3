"""A real browser for the report's tests: Debian's Chromium, headless, through Playwright."""

import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.helpers.waits import LIMIT

QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--mute-audio",
]


@pytest.fixture(scope="session")
def browser():
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium here: install it (Debian: apt-get install chromium) to test the report in a browser")
    expect.set_options(timeout=1000 * LIMIT)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=QUIET, timeout=2000 * LIMIT)
        yield running
        running.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Give a function that opens HTML from disk; a console error or a request to a network fails the test.

    A test that expects errors takes them out of the function's list `errors`.
    """
    errors: list[str] = []
    contexts = []

    def seen(request):
        if not request.url.startswith(("file:", "data:", "blob:", "about:")):
            errors.append(request.url)

    def open_page(html, **settings):
        file = tmp_path / "report.html"
        file.write_text(html, encoding="utf-8")
        context = browser.new_context(**settings)
        context.set_default_timeout(1000 * LIMIT)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("request", seen)
        open_page.address = file.as_uri()
        tab.goto(open_page.address)
        return tab

    open_page.errors = errors
    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
