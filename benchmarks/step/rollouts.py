"""Time steps of the embedded model whose rollouts differ, in turns: independent, larger and distinct groups.

    python -m benchmarks.step.rollouts [--task qa] [--rounds 20]

All kinds take the same prompts of the task in a round, in an order that changes from round to round. The learning rate
is 0, so that all sample from the starting model throughout. Seconds are of CPU, of one thread; a ratio is that of one
round.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.learning.study import METHODS, TASKS
from benchmarks.recipe import task_recipe
from leaf.train.trainer import RLTrainer

KINDS = ("grpo", "grpo_k32", "unordered_set")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default=TASKS[0])
    parser.add_argument("--kinds", nargs="+", choices=METHODS, default=KINDS)
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds after the first")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainers = {kind: started(kind, args, Path(folder)) for kind in args.kinds}
        taken = {kind: [] for kind in args.kinds}
        for number in range(1, args.rounds + 2):
            first = number % len(args.kinds)
            for kind in (*args.kinds[first:], *args.kinds[:first]):
                began = time.process_time()
                trainers[kind].step(number)
                taken[kind].append(time.process_time() - began)
    base = taken[args.kinds[0]][1:]
    for kind, (_, *seconds) in taken.items():
        ratios = statistics.quantiles([a / b for a, b in zip(seconds, base, strict=True)], n=4)
        median, (low, middle, high) = statistics.median(seconds), ratios
        print(f"{kind}: {median:.2f} s, ratio to {args.kinds[0]} {middle:.2f} (quartiles {low:.2f} and {high:.2f})")


def started(kind: str, args: argparse.Namespace, folder: Path) -> RLTrainer:
    """Make the trainer of a kind, ready for its first step."""
    given = [f"output_dir={folder / kind}", "record_every=0", "eval_every=0", "learning_rate=0", *METHODS[kind]]
    trainer = RLTrainer.from_recipe(task_recipe(args.task, [*given, f"max_steps={args.rounds + 1}"]))
    trainer.start()
    return trainer


if __name__ == "__main__":
    main()
