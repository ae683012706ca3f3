"""Where the benchmarks keep what they measured: benchmarks/results, mostly one JSON object a line."""

import platform
from pathlib import Path

import torch

from leaf.files import read_rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"


def read(file: Path) -> list[dict]:
    """Read the records of a file, of which there are none as long as it does not exist."""
    return read_rows(file) if file.exists() else []


def machine(threads: int) -> str:
    """Name what seconds and last bits depend on."""
    return f"{platform.machine()}, {threads} thread, torch {torch.__version__}"
