"""Time a step whose adapter is on upper layers only, with layers below run once and in every forward, in turns.

    python -m benchmarks.step.below [--cell 300 8 24] [--adapted 10] [--prompts 1] [--rounds 6]

One round samples the prompts of a cell, scores them with the reference and updates on them, both ways, whose order
changes from round to round. Seconds are of CPU, of one thread; the ratio is that of one round.
"""

import argparse
import statistics
import time

import torch

from benchmarks.step.arms import leaf_credit, leaf_update
from benchmarks.step.bench import Bench, Cell, gradients_differ, make_bench
from benchmarks.step.prompts import make_rows
from leaf.model.below import layers_below
from leaf.model.draws import step_generator
from leaf.model.policy import Prompt
from leaf.model.sampling import sample

LAYERS = 30  # of the embedded model


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", type=int, nargs=3, default=[300, 8, 24], help="P, K and R")
    parser.add_argument("--adapted", type=int, default=10, help="layers with an adapter, from the top")
    parser.add_argument("--prompts", type=int, default=1, help="N, prompts per step")
    parser.add_argument("--rounds", type=int, default=6, help="timed rounds after the first")
    parser.add_argument("--token-budget", type=int, default=768)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    fixed = {"model": "demo", "shape": None, "device": "cpu", "rank": 16, "top_p": 1.0}
    return argparse.Namespace(**vars(parser.parse_args()), **fixed)


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    bench, cell = make_bench(args, range(LAYERS - args.adapted, LAYERS)), Cell(*args.cell)
    bench.keep = True
    prompts = bench.policy.embed(make_rows(bench, cell.prompt_tokens))
    print(f"{layers_below(bench.policy)} of {LAYERS} layers are below the adapter; {args}", flush=True)
    taken: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    gradients: dict[bool, dict[str, torch.Tensor]] = {}
    for number in range(args.rounds + 1):
        for once in (True, False) if number % 2 else (False, True):
            taken[once].append(_seconds(bench, cell, prompts, once=once))
            gradients[once] = bench.gradients["leaf"]
    for place, name in enumerate(("sampling", "reference and update")):
        ours, before = ([one[place] for one in taken[once][1:]] for once in (True, False))
        ratios = sorted(a / b for a, b in zip(ours, before, strict=True))
        print(
            f"{name} at {cell}: once {statistics.median(ours):.3f} s, always {statistics.median(before):.3f} s, ratio "
            f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
            flush=True,
        )
    print(f"gradients differ by {gradients_differ(gradients[True], gradients[False])}")


def _seconds(bench: Bench, cell: Cell, prompts: list[Prompt], *, once: bool) -> tuple[float, float]:
    bench.policy.shares_below = once
    began = time.process_time()
    groups = sample(
        bench.policy,
        prompts,
        num_completions=cell.completions,
        max_new_tokens=cell.length,
        generator=step_generator(0, 0),
        keep_prompts=True,
        keep_entries=True,
    )
    sampled = time.process_time()
    work = leaf_credit(groups, torch.device("cpu"))
    credited = time.process_time()
    leaf_update(bench, work)
    return sampled - began, time.process_time() - credited


if __name__ == "__main__":
    main()
