"""How the cost of a step grows: seconds as one size doubles, with the exponent of the growth.

Sampler, update and step of leaf (arm a of benchmarks.step) as prompts P, completions K and lengths R grow from the
headline cell; what a start and a step do to the rows as their number grows; and, from the record of `measure`, two
processes beside one. An exponent is the slope of log seconds over log size, by least squares over all points; its range
is the smallest and the largest slope between neighbours. 0 is no growth, 1 is in proportion, -1 halves.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers.utils import logging

from benchmarks.records import RESULTS, machine
from benchmarks.step.arms import leaf_step
from benchmarks.step.bench import Bench, Cell, Meter, make_bench
from benchmarks.step.prompts import make_rows
from leaf.data.fingerprint import rows_fingerprint
from leaf.data.given import rows_from
from leaf.data.rows import batch_indices, check_references, shuffled

FILE = RESULTS / "curves.json"
BASE = Cell(300, 8, 24)
AXES = {
    "prompt_tokens": [75, 150, 300, 600, 1200],
    "completions": [4, 8, 16, 32, 64],
    "length": [12, 24, 48, 96],
}
ROWS = [100_000 * 2**i for i in range(5)]
STAGES = ("sample", "update", "step")
_SHOWN = {"prompt_tokens": "P", "completions": "K", "length": "R"}


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> dict[str, Any]:
    """Fit the slope of log seconds over log size, and find the slopes between neighbours."""
    x, y = [math.log(size) for size in sizes], [math.log(taken) for taken in seconds]
    between = [(y[i + 1] - y[i]) / (x[i + 1] - x[i]) for i in range(len(x) - 1)]
    slope = statistics.linear_regression(x, y).slope
    return {"exponent": round(slope, 3), "range": [round(min(between), 3), round(max(between), 3)]}


def step_curves(
    bench: Bench, axes: Mapping[str, Sequence[int]], base: Cell, repeats: int, prompts: Callable[[int], Any]
) -> dict[str, Any]:
    """Time leaf's step at every point of every axis, in rounds in which the points take turns.

    Args:
        bench, base: the policy, and the cell from which one size at a time is changed.
        axes: name of a size → its values.
        repeats: rounds after a first one, which is not counted.
        prompts: makes the rows of a step from P.
    """
    device = torch.device(bench.args.device)
    cells = {(axis, value): Cell(**{**vars(base), axis: value}) for axis, values in axes.items() for value in values}
    rows = {length: prompts(length) for length in sorted({cell.prompt_tokens for cell in cells.values()})}
    runs: dict[Cell, list[dict[str, float]]] = {cell: [] for cell in cells.values()}
    for number in range(repeats + 1):
        for cell, done in runs.items():
            meter = Meter(device, memory=False)
            leaf_step(bench, cell, rows[cell.prompt_tokens], meter)
            if number:
                done.append({**meter.seconds, "step": sum(meter.seconds.values())})
        print(f"round {number} of {repeats}", flush=True)
    made: dict[str, Any] = {}
    for axis, values in axes.items():
        points = [runs[cells[axis, value]] for value in values]
        seconds = {stage: [statistics.median(run[stage] for run in point) for point in points] for stage in STAGES}
        made[axis] = {"sizes": list(values), "seconds": seconds, "rounds": points}
        made[axis] |= {"growth": {stage: exponent(values, taken) for stage, taken in seconds.items()}}
    return made


def row_curve(sizes: Sequence[int]) -> dict[str, Any]:
    """Measure, in CPU seconds, what a start does to rows, what the first step of an epoch does, and what others do."""
    seconds: dict[str, list[float]] = {"start": [], "first step of an epoch": [], "other step": []}
    for size in sizes:
        columns: dict[str, Any] = {
            name: [f"{name} {i}" for i in range(size)] for name in ("prompt", "reference", "id", "utterance")
        }
        given = Dataset.from_dict({**columns, "audio": ["a.wav"] * size})
        del columns
        seconds["start"].append(_cpu(lambda given=given: _start(given)))
        shuffled.cache_clear()
        seconds["first step of an epoch"].append(_cpu(lambda size=size: batch_indices(size, 4, 0, 0)))
        later = _cpu(lambda size=size: [batch_indices(size, 4, step, 0) for step in range(1, 1001)])
        seconds["other step"].append(later / 1000)
    growth = {name: exponent(sizes, taken) for name, taken in seconds.items()}
    return {"sizes": list(sizes), "seconds": seconds, "growth": growth}


def _start(given: Dataset) -> None:
    rows = rows_from(given, "Training row")
    check_references(rows, "The bench reads")
    rows_fingerprint(rows)


def _cpu(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


def process_curve(record: Path) -> dict[str, Any] | None:
    """Read seconds and growth from the record of `python -m benchmarks.scaling measure`, if there is one."""
    if not record.exists():
        return None
    stages = json.loads(record.read_text(encoding="utf-8"))["seconds"]
    seconds = {stage: [statistics.median(counts[str(n)]) for n in (1, 2)] for stage, counts in stages.items()}
    growth = {stage: exponent((1, 2), taken) for stage, taken in seconds.items()}
    return {"sizes": [1, 2], "seconds": seconds, "growth": growth}


def table(curves: Mapping[str, Any]) -> str:
    """Write a row for each axis and stage."""
    lines = ["| grows | stage | seconds | exponent (between neighbours) |", "| --- | --- | --- | --- |"]
    for axis, curve in curves.items():
        sizes = f"{_SHOWN.get(axis, axis)} = {', '.join(f'{size:,}' for size in curve['sizes'])}"
        for stage, growth in curve["growth"].items():
            seconds = ", ".join(f"{taken:.3g}" for taken in curve["seconds"][stage])
            low, high = growth["range"]
            lines.append(f"| {sizes} | {stage} | {seconds} | {growth['exponent']:.2f} ({low:.2f} to {high:.2f}) |")
    return "\n".join(lines)


def measure(args: argparse.Namespace) -> None:
    """Measure all curves with the embedded model, and write and print them."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    given = {"model": "demo", "shape": None, "device": "cpu", "dtype": args.dtype, "rank": 16, "top_p": 1.0}
    bench = make_bench(argparse.Namespace(**given, prompts=args.prompts, token_budget=768))
    curves = step_curves(bench, AXES, BASE, args.repeats, lambda tokens: make_rows(bench, tokens))
    curves["rows"] = row_curve(ROWS)
    if (processes := process_curve(RESULTS / "scaling.json")) is not None:
        curves["processes"] = processes
    about = {"machine": machine(1), "dtype": args.dtype, "prompts": args.prompts, "repeats": args.repeats}
    FILE.write_text(json.dumps({**about, "base": vars(BASE), "curves": curves}, indent=1) + "\n", encoding="utf-8")
    print(table(curves))
