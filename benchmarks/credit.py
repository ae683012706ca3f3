"""Time LEAF's credit, token ids to advantages, against a plain implementation with dictionaries over token tuples.

Run it alone: `python -m benchmarks.credit`. The plain implementation is the oracle of the tests, so both give the same
advantages, which is checked before anything is timed. Groups share prefixes: seven of ten completions branch off an
earlier one. Results go to benchmarks/results/credit.json with the machine they were taken on.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.records import RESULTS
from leaf.credit import PrefixTree, leaf_advantages, select_boundaries
from tests.helpers import groups, oracle

# (K, T) and the least speed-up that the project promises there.
SIZES = {(8, 200): None, (64, 512): 8.0, (256, 2048): 15.0}
MAX_BOUNDARIES = 2


def make_group(size: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    tokens, lengths = groups.branching_tokens(rng, size, width, vocabulary=32_000, shortest=width // 2, duplicates=0.05)
    lengths[0] = width
    return (
        torch.from_numpy(tokens),
        torch.from_numpy(lengths),
        torch.from_numpy(rng.exponential(1.0, (size, width)).astype(np.float32)),
        torch.from_numpy(rng.random(size)),
    )


def plain(tokens: torch.Tensor, lengths: torch.Tensor, surprisal: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    ends = lengths.tolist()
    rows = [row[:end] for row, end in zip(tokens.tolist(), ends, strict=True)]
    cuts = oracle.boundaries(surprisal.tolist(), ends, MAX_BOUNDARIES)
    return torch.tensor(oracle.leaf_advantages(rows, rewards.tolist(), cuts, tokens.shape[1]))


def fast(tokens: torch.Tensor, lengths: torch.Tensor, surprisal: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    return leaf_advantages(tokens, lengths, surprisal, rewards, max_boundaries=MAX_BOUNDARIES)


def timed(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """Return median and interquartile range in milliseconds over `repeats` calls, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    low, median, high = statistics.quantiles(seconds, n=4)
    return {"median_ms": median * 1e3, "iqr_low_ms": low * 1e3, "iqr_high_ms": high * 1e3, "repeats": repeats}


def measure(size: int, width: int, repeats: int) -> dict[str, Any]:
    group = make_group(size, width, seed=size)
    tokens, lengths, surprisal, _ = group
    tree = PrefixTree.build(tokens, lengths)
    torch.testing.assert_close(fast(*group), plain(*group), atol=1e-5, rtol=1e-5)
    row: dict[str, Any] = {
        "completions": size,
        "tokens": width,
        "nodes_per_token": tree.num_nodes / int(lengths.sum()),
        "plain": timed(lambda: plain(*group), repeats),
        "fast": timed(lambda: fast(*group), repeats * 5),
        "stages": {
            "tree": timed(lambda: PrefixTree.build(tokens, lengths), repeats * 3),
            "boundaries": timed(lambda: select_boundaries(surprisal, lengths), repeats * 3),
            "plain_boundaries": timed(
                lambda: oracle.boundaries(surprisal.tolist(), lengths.tolist(), MAX_BOUNDARIES), repeats
            ),
        },
    }
    row["speedup"] = row["plain"]["median_ms"] / row["fast"]["median_ms"]
    row["promised"] = SIZES.get((size, width))
    return row


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":", 1)[1].strip() for line in info.open() if line.startswith("model name")), cpu)
    return {
        "cpu": cpu,
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of the plain implementation")
    parser.add_argument("--output", type=Path, default=RESULTS / "credit.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {"machine": machine(), "max_boundaries": MAX_BOUNDARIES, "rows": []}
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    print(f"{'K':>5} {'T':>6} {'plain ms (IQR)':>28} {'fast ms (IQR)':>26} {'speed-up':>9} {'promised':>9}")
    missed = False
    for size, width in SIZES:
        row = measure(size, width, arguments.repeats)
        result["rows"].append(row)
        cells = [
            f"{m['median_ms']:.2f} ({m['iqr_low_ms']:.2f}–{m['iqr_high_ms']:.2f})" for m in (row["plain"], row["fast"])
        ]
        promised = f"{row['promised']:.0f}x" if row["promised"] else "–"
        print(f"{size:>5} {width:>6} {cells[0]:>28} {cells[1]:>26} {row['speedup']:>8.1f}x {promised:>9}")
        missed |= row["promised"] is not None and row["speedup"] < row["promised"]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    if missed:
        print("A promised speed-up was missed.", file=sys.stderr)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
