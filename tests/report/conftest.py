"""A real browser for the report's tests (Debian's Chromium, headless, through Playwright), and a run to report."""

import shutil

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.helpers.evaluations import AFTER, BEFORE, recordings, write
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


class Opened:
    """Open HTML from disk, and note every console error and every request to a network in `errors`."""

    def __init__(self, browser, file):
        self.browser, self.file, self.address = browser, file, file.as_uri()
        self.errors: list[str] = []
        self.contexts = []

    def __call__(self, html, **settings):
        self.file.write_text(html, encoding="utf-8")
        context = self.browser.new_context(**settings)
        context.set_default_timeout(1000 * LIMIT)
        self.contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.on("request", self.requested)
        tab.goto(self.address)
        return tab

    def requested(self, request):
        if not request.url.startswith(("file:", "data:", "blob:", "about:")):
            self.errors.append(request.url)


@pytest.fixture
def opened(browser, tmp_path):
    """Open pages, and fail the test on errors that it did not take out of `opened.errors`."""
    pages = Opened(browser, tmp_path / "report.html")
    yield pages
    for context in pages.contexts:
        context.close()
    assert pages.errors == []


@pytest.fixture
def run(tmp_path):
    """A run directory as `leaf demo` leaves it, with its task's recordings."""
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(f"stage: rl\ntask: {recordings(tmp_path)}\n")
    write(folder / "test_after.jsonl", [AFTER, AFTER], made_with={"split": "test"})
    write(folder / "test_before.jsonl", [BEFORE, ["press one now please", *BEFORE[1:]]], made_with={"split": "test"})
    return folder
