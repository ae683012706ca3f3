"""One cell of the grid: every arm in turn, and the record."""

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from benchmarks.step.arms import Work, leaf_step, stock_inputs, stock_sample, stock_update
from benchmarks.step.bench import Bench, Cell, Meter, gradients_differ, peft_defaults, summary
from benchmarks.step.floor import estimate, floor_record, update_flop
from benchmarks.step.prompts import make_rows
from benchmarks.step.trl_arm import Trl


@dataclass
class Timings:
    """Collect one arm's runs in a cell."""

    runs: list[dict[str, float]] = field(default_factory=list)
    peak: dict[str, int] = field(default_factory=dict)
    busy: float = 1.0
    slow: bool = False

    def add(self, meter: Meter, slow: float) -> None:
        """Take a run in; the first one is kept only if it was slow."""
        if meter.memory:
            self.peak = meter.peak
            self.slow = sum(meter.seconds.values()) > slow
        if not meter.memory or self.slow:
            self.runs.append(meter.seconds)
            self.busy = min(self.busy, meter.computed / sum(meter.seconds.values()) / torch.get_num_threads())


def run_cell(bench: Bench, cell: Cell) -> dict[str, Any]:
    """Measure every arm in one cell and return its record."""
    args, device = bench.args, torch.device(bench.args.device)
    estimates = {arm: estimate(bench, cell, arm) for arm in args.arms}
    arms = [arm for arm in args.arms if estimates[arm] <= args.memory_limit * 1e9]
    rows = make_rows(bench, cell.prompt_tokens)
    trl = Trl(bench, cell, rows) if "trl" in arms else None
    timings = {arm: Timings() for arm in arms}
    work = leaf_step(bench, cell, rows, Meter(device, memory=False))  # the tokens of the cell; later runs repeat them
    _check(cell, work)
    bench.gradients.clear()
    for number in range(args.repeats + 1):
        bench.keep = number == 0
        for arm in arms if number % 2 == 0 else arms[::-1]:
            if timings[arm].slow:
                continue
            meter = Meter(device, memory=number == 0)
            run_arm(bench, cell, arm, rows, work, trl, meter, sampled="stock" in arms)
            timings[arm].add(meter, args.slow)
            print(f"  {arm}: " + ", ".join(f"{k} {v:.2f} s" for k, v in meter.seconds.items()), flush=True)
    return _record(bench, cell, work, timings, estimates)


def run_arm(
    bench: Bench,
    cell: Cell,
    arm: str,
    rows: list[dict[str, Any]],
    work: Work,
    trl: Trl | None,
    meter: Meter,
    *,
    sampled: bool,
) -> None:
    """Run one arm once. `sampled`: b runs in this cell too, and c need not run the same sampler again."""
    if arm == "leaf":
        leaf_step(bench, cell, rows, meter)
    elif arm == "trl":
        assert trl is not None
        trl.step(meter)
    else:
        shared = arm == "published" and sampled
        inputs = stock_inputs(bench, rows) if shared else stock_sample(bench, cell, rows, meter)
        with meter.phase("update"), peft_defaults(bench.policy):
            stock_update(bench, inputs, work, cell.completions if arm == "stock" else 1, arm)


def _check(cell: Cell, work: Work) -> None:
    for group in work.groups:
        if group.prompt.length != cell.prompt_tokens or group.lengths.tolist() != [cell.length] * cell.completions:
            raise AssertionError(f"{cell} came out as {group.prompt.length} tokens and {group.lengths.tolist()}.")


def _record(
    bench: Bench, cell: Cell, work: Work, timings: dict[str, Timings], estimates: dict[str, float]
) -> dict[str, Any]:
    nodes = [group.tree.num_nodes for group in work.groups]
    total = cell.completions * cell.length
    arms = {arm: _arm_record(arm, timings, estimates[arm], bench.args.memory_limit) for arm in estimates}
    record = asdict(cell) | {
        "prompts": len(work.groups),
        "nodes_per_group": nodes,
        "distinct_over_total": round(sum(nodes) / (total * len(nodes)), 3),
        "arms": arms,
        "gradient_difference_to_leaf": {
            arm: gradients_differ(bench.gradients["leaf"], gradient)
            for arm, gradient in bench.gradients.items()
            if arm != "leaf" and "leaf" in bench.gradients
        },
    }
    if "leaf" in timings:
        ours = arms["leaf"]
        took = {stage: ours[f"{stage}_s"]["median"] for stage in ("update", "step")}
        record["floor"] = floor = floor_record(bench, work, took | {"peak_update_mb": ours["peak_update_mb"]})
        record["leaf_against"] = {arm: _ratios(ours, arms[arm]) for arm in timings if arm != "leaf"}
        if bench.args.peak_tflops:
            for arm in timings:
                rate = update_flop(bench, cell, arm, floor) / arms[arm]["update_s"]["median"]
                arms[arm]["update_flop_utilisation"] = round(rate / bench.args.peak_tflops / 1e12, 4)
    return record


def _arm_record(arm: str, timings: dict[str, Timings], estimated: float, limit: float) -> dict[str, Any]:
    if arm not in timings:
        return {"does_not_fit": {"estimated_gb": round(estimated / 1e9, 2), "limit_gb": limit}}
    runs, peak = timings[arm].runs, timings[arm].peak
    record: dict[str, Any] = {"runs": len(runs), "first_run_counted": timings[arm].slow}
    record["busy"] = round(timings[arm].busy, 2)
    if "sample" not in runs[0]:  # c takes b's sampler
        shared = statistics.median(run["sample"] for run in timings["stock"].runs)
        runs = [run | {"sample": shared} for run in runs]
        peak = peak | {"step": max(peak["step"], timings["stock"].peak["sample"])}
    for stage in runs[0]:
        record[f"{stage}_s"] = summary([run[stage] for run in runs])
    record["step_s"] = summary([sum(run.values()) for run in runs])
    record |= {f"peak_{stage}_mb": round(value / 1e6, 1) for stage, value in peak.items() if stage != "credit"}
    return record | {"estimated_mb": round(estimated / 1e6, 1)}


def _ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    """Return how many times faster and smaller a is, by medians."""
    stages = ("sample", "update", "step")
    times = {stage: theirs[f"{stage}_s"]["median"] / ours[f"{stage}_s"]["median"] for stage in stages}
    times["peak_step"] = theirs["peak_step_mb"] / max(ours["peak_step_mb"], 0.1)
    return {name: round(value, 2) for name, value in times.items()}
