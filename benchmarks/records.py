"""Where the benchmarks keep what they measured: benchmarks/results, mostly one JSON object a line."""

import json
import platform
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"


def append(file, record):
    """Add a record to a file, as one line."""
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps(record, separators=(",", ":")) + "\n")


def read(file):
    """Read the records of a file, of which there are none as long as it does not exist."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def machine(threads):
    """Name what seconds and last bits depend on."""
    return f"{platform.machine()}, {threads} thread, torch {torch.__version__}"
