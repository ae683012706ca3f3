"""A judge's server with scripted answers and faults, and a template that shows it the answer alone."""

import subprocess
import sys
from pathlib import Path

import pytest

SERVER = Path(__file__).parents[1] / "helpers" / "judge_server.py"


@pytest.fixture
def url():
    """The address of a fresh server process."""
    with subprocess.Popen([sys.executable, str(SERVER)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


@pytest.fixture
def template(tmp_path):
    file = tmp_path / "template.txt"
    file.write_text("{answer}")
    return file
