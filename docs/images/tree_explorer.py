"""Take the picture of the tree explorer: `python docs/images/tree_explorer.py RUN OUT.png`."""

import shutil
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import sync_playwright

from leaf.report.write import write_report
from leaf.runs.directory import RunDirectory


def main(run: str, out: str) -> None:
    """Draw the first recorded group of a run under LEAF and GRPO, the note on its first token open."""
    chromium = shutil.which("chromium")
    first = next(RunDirectory.open(run).lines("groups.jsonl"), None)
    if first is None or chromium is None:
        sys.exit("This needs a run with recorded groups, and Chromium.")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        file = write_report([run], Path(folder) / "report.html")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1280, "height": 770}, color_scheme="light", reduced_motion="reduce")
        tab.goto(f"{file.as_uri()}#trees/{quote(Path(run).resolve().name)}/{first['step']}/0")
        tab.keyboard.press("3")
        tab.locator("#trees [data-token='0-0']").first.hover()
        tab.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
