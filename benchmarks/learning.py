"""Train credit rules from one checkpoint over several seeds and compare held-out scores.

    python benchmarks/learning.py run --credit leaf --seed 0 [key=value ...]
    python benchmarks/learning.py run --credit none            # the starting checkpoint
    python benchmarks/learning.py table

`run` trains recipes/qa.yaml with the given rule and seed, scores the last adapter on the test splits greedily, and
appends one line to benchmarks/results/qa_learning.jsonl. Every rule sees the same prompts in the same order and draws
from the same sampling seeds. `table` prints means over seeds with Student 95 % intervals, also of the gain.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from leaf.config import load_recipe
from leaf.demo_model import resolve_model
from leaf.evaluate import evaluate
from leaf.metrics import mean_interval
from leaf.speech.policy import Policy
from leaf.tasks import load
from leaf.trainer import LeafTrainer

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/qa_learning.jsonl"
METRICS = ("bleu", "exact_match", "chrf")


def run(args):
    torch.set_num_threads(args.threads)
    name = args.credit if args.credit == "none" else f"{args.credit}-{args.seed}"
    overrides = [f"output_dir=runs/learning/{name}", f"seed={args.seed}"]
    overrides += [] if args.credit == "none" else [f"credit={args.credit}"]
    config = load_recipe(ROOT / "recipes/qa.yaml", overrides + args.overrides)
    checkpoint = resolve_model(config.model)
    record = {"credit": args.credit, "seed": args.seed, "steps": 0, "overrides": args.overrides}
    if args.credit == "none":
        policy = Policy.load(checkpoint, dtype=config.dtype)
    else:
        rows = load(config.task, config.train_split), load(config.task, config.eval_split)
        trainer = LeafTrainer(checkpoint, args=config, train_dataset=rows[0], eval_dataset=rows[1])
        directory = trainer.train()
        policy = trainer.policy
        steps = list(directory.lines("metrics.jsonl"))
        record["steps"] = config.max_steps
        record["rewards"] = [round(step["reward_mean"], 4) for step in steps]
        record["usable_fork_rate"] = sum(step["usable_fork_rate"] for step in steps) / len(steps)
        record["validation"] = list(directory.lines("validation.jsonl"))
        record["seconds_per_step"] = sorted(step["seconds/step"] for step in steps)[len(steps) // 2]
    for split in args.splits.split(","):
        rows = load(config.task, split, limit=args.items).to_list()
        result = evaluate(policy, rows, greedy=True, max_new_tokens=config.max_new_tokens, metrics=METRICS)
        record[split] = {"items": len(rows), **result.values()}
        print(args.credit, args.seed, split, record[split], flush=True)
    record["machine"] = f"{platform.machine()}, {args.threads} thread, torch {torch.__version__}, {config.dtype}"
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")


def table(args):
    records = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    start = next(record for record in records if record["credit"] == "none")
    for split in (name for name in ("test", "test_heldout") if name in start):
        shown = Table("", "seeds", *METRICS, *(f"gain {name}" for name in METRICS), title=f"{split}, greedy")
        shown.add_row("start", "", *(f"{start[split][name]:.2f}" for name in METRICS), "", "", "")
        for credit in dict.fromkeys(r["credit"] for r in records if r["credit"] != "none"):
            mine = [record for record in records if record["credit"] == credit]
            cells, gains = [], []
            for name in METRICS:
                mean, half = mean_interval([record[split][name] for record in mine])
                cells.append(f"{mean:.2f} ± {half:.2f}")
                gains.append(f"{mean - start[split][name]:+.2f} ± {half:.2f}")
            shown.add_row(credit, str(len(mine)), *cells, *gains)
        Console().print(shown)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("run")
    one.add_argument("--credit", required=True)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--threads", type=int, default=1)
    one.add_argument("--items", type=int, default=None)
    one.add_argument("--splits", default="test,test_heldout")
    one.add_argument("overrides", nargs="*", default=[])
    one.set_defaults(command=run)
    commands.add_parser("table").set_defaults(command=table)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
