"""What more processes bring: measured from one to two here, by simulation up to 64 GPUs; and how a step grows.

    python -m benchmarks.scaling measure [--steps 6] [key=value ...]  # embedded model, one thread each
    python -m benchmarks.scaling simulate [--run RUN]
    python -m benchmarks.scaling curves [--repeats 3]  # benchmarks/curves.py; 10 minutes on a quiet core

`measure` runs recipes/qa-leaf.yaml with the same global batch in one process and in two (gloo, CPU), in turns, and
prints medians of the seconds per step without the first. `simulate` draws completion lengths and prints which share of
the sampler's and the update's time the processes spend working while the slowest is not done, and what the exchange of
adapter gradients adds; with a run directory it draws recorded groups of completions in place of log-normal lengths.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import curves
from benchmarks.records import RESULTS, ROOT, read

FILE = RESULTS / "scaling.json"
STAGES = ("embed", "sample", "reference", "update", "step")
# Granite Speech 3.3 2B, LoRA r 64 on all linear layers: counted by benchmarks/granite_memory.py.
TRAINED = 112.7e6
# Per process and step at K = 8: seconds a decoding step takes whatever its width (memory-bound), and seconds a packed
# token of the update takes. Round numbers of the order of one large GPU; the shares below depend on their ratio only.
DECODE_S, UPDATE_S = 0.025, 0.0004


def measure(args):
    rows = {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(args.turns):
            for count in (1, 2):
                run = Path(folder) / f"{count}-{turn}"
                leaf = ["-m", "leaf", "train", str(ROOT / "recipes/qa-leaf.yaml"), f"output_dir={run}"]
                leaf += [f"max_steps={args.steps}", "eval_every=0", "record_every=0", "device=cpu", *args.overrides]
                launcher = (
                    ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if count == 2 else []
                )
                subprocess.run([sys.executable, *launcher, *leaf], env=environment, check=True, cwd=ROOT)
                lines = read(run / "metrics.jsonl")[1:]
                for stage in STAGES:
                    rows.setdefault(stage, {}).setdefault(count, []).extend(line[f"seconds/{stage}"] for line in lines)
    table = Table("stage", "1 process, s", "2 processes, s", "times faster", title="medians (lowest to highest)")
    for stage, counts in rows.items():
        cells = [f"{statistics.median(v):.2f} ({min(v):.2f} to {max(v):.2f})" for v in counts.values()]
        table.add_row(stage, *cells, f"{statistics.median(counts[1]) / statistics.median(counts[2]):.2f}")
    Console().print(table)
    record = {"seconds": rows, "steps": args.steps, "turns": args.turns, "overrides": args.overrides}
    FILE.write_text(json.dumps(record | {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}) + "\n")


def recorded_lengths(run):
    """Return the lengths in tokens of the completions that a run recorded, (groups, K)."""
    return np.array([[len(ids) for ids in group["token_ids"]] for group in read(run / "groups.jsonl")])


def simulate(args):
    """Draw lengths; a process samples until its longest completion ends, and all wait for the slowest."""
    generator = np.random.default_rng(0)
    recorded = None if args.run is None else recorded_lengths(args.run)
    if recorded is not None:
        groups, completions = recorded.shape
        print(
            f"{args.run}: {groups} recorded groups of {completions}, {recorded.mean():.1f} tokens on average "
            f"({recorded.min()} to {recorded.max()})"
        )
    shown = Table(
        "GPUs", "prompts each", "sampler busy", "update busy", "step busy", "exchange, NVLink", "exchange, 25 GB/s"
    )
    for count in (1, 2, 8, 16, 64):
        for prompts in (1, 4):
            if recorded is None:
                shape, spread = (args.rounds, count, prompts * args.completions), args.spread
                lengths = generator.lognormal(np.log(args.mean) - spread**2 / 2, spread, shape).clip(1, args.limit)
            else:  # whole groups: the answers to one prompt are of like length
                drawn = generator.integers(len(recorded), size=(args.rounds, count, prompts))
                lengths = recorded[drawn].reshape(args.rounds, count, -1)
            sampler = lengths.max(-1) * DECODE_S
            # Completions share a part of their tokens, and every prompt is fed once.
            tokens = lengths.sum(-1) * (1 - args.shared) + prompts * args.prompt
            update = tokens * UPDATE_S
            both = sampler.max(-1) + update.max(-1)  # the processes meet after sampling and after the update
            ring = 2 * (count - 1) / count * TRAINED * 4
            cells = [sampler.mean() / sampler.max(-1).mean(), update.mean() / update.max(-1).mean()]
            cells.append((sampler + update).mean() / both.mean())
            exchange = [f"{ring / rate:.3f} s" for rate in (300e9, 25e9)]
            shown.add_row(str(count), str(prompts), *(f"{cell:.0%}" for cell in cells), *exchange)
    Console(width=110).print(shown)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.add_argument("--steps", type=int, default=6)
    one.add_argument("--turns", type=int, default=2)
    one.add_argument("overrides", nargs="*", default=[])
    one.set_defaults(command=measure)
    two = commands.add_parser("simulate")
    two.add_argument("--completions", type=int, default=8, help="K")
    two.add_argument("--mean", type=float, default=40, help="mean completion length in tokens")
    two.add_argument("--spread", type=float, default=0.6, help="standard deviation of the logarithm of the length")
    two.add_argument("--limit", type=int, default=200, help="longest completion in tokens")
    two.add_argument("--prompt", type=int, default=350, help="prompt length in tokens")
    two.add_argument("--shared", type=float, default=0.5, help="share of completion tokens that prefixes share")
    two.add_argument("--run", type=Path, help="run directory whose groups.jsonl gives the lengths; K is then its own")
    two.add_argument("--rounds", type=int, default=2000)
    two.set_defaults(command=simulate)
    three = commands.add_parser("curves")
    three.add_argument("--repeats", type=int, default=3, help="rounds after the first")
    three.add_argument("--prompts", type=int, default=2, help="prompts per step")
    three.add_argument("--dtype", default="bfloat16")
    three.set_defaults(command=curves.measure)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
