"""The report's JavaScript and CSS stay reviewable; `npm run lint` checks more, and `make test` needs no npm."""

from pathlib import Path

import pytest

from leaf.report.page import ASSETS

FILES = sorted(path for path in Path(str(ASSETS)).rglob("*") if path.suffix in (".js", ".css"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_and_no_line_is_too_long_to_read(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, 1) if len(line) > 120] == []
    assert len(lines) <= 400
