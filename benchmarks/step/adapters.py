"""Time leaf's own forward of adapted layers against peft's, in one process, in turns, by CPU seconds.

    python -m benchmarks.step.adapters [--cell 300 8 24] [--rounds 8]

One round samples the prompts of a cell and updates on them (benchmarks/step), each with peft's forward and with leaf's.
The order changes from round to round. The ratio is that of one round; its median and range are printed.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.step.arms import leaf_step, leaf_update
from benchmarks.step.bench import Cell, Meter, make_bench
from benchmarks.step.prompts import make_rows
from leaf.model.draws import step_generator
from leaf.model.layer_forward import plain_forward
from leaf.model.sampling import sample


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", type=int, nargs=3, default=[300, 8, 24], help="P, K and R")
    parser.add_argument("--rounds", type=int, default=8, help="timed rounds after the first")
    parser.add_argument("--prompts", type=int, default=1, help="N, prompts per step")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    args = parser.parse_args()
    fixed = {"model": "demo", "shape": None, "device": "cpu", "rank": 16, "top_p": 1.0, "token_budget": 768}
    return argparse.Namespace(**vars(args), **fixed)


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    bench, cell = make_bench(args), Cell(*args.cell)
    policy, rows = bench.policy, make_rows(bench, cell.prompt_tokens)
    work = leaf_step(bench, cell, rows, Meter(torch.device("cpu"), memory=False))
    prompts = policy.embed(rows)

    def draw() -> None:
        sample(
            policy,
            prompts,
            num_completions=cell.completions,
            max_new_tokens=cell.length,
            generator=step_generator(0, 0),
        )

    for name, run in (("sampling", draw), ("update", lambda: leaf_update(bench, work))):
        taken: dict[bool, list[float]] = {True: [], False: []}
        for number in range(args.rounds + 1):
            for own in (True, False) if number % 2 else (False, True):
                taken[own].append(_seconds(bench.policy, run, own=own))
        ours, pefts = taken[True][1:], taken[False][1:]
        ratios = sorted(a / b for a, b in zip(ours, pefts, strict=True))
        print(
            f"{name} at {cell}: leaf's {statistics.median(ours):.3f} s, peft's {statistics.median(pefts):.3f} s, "
            f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
            flush=True,
        )


def _seconds(policy: torch.nn.Module, run: Callable[[], None], *, own: bool) -> float:
    if not own:
        with plain_forward(policy):
            return _seconds(policy, run, own=True)
    began = time.process_time()
    run()
    return time.process_time() - began


if __name__ == "__main__":
    main()
