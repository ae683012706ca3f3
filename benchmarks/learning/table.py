"""Print what the runs of a task scored, and how they got there."""

import statistics

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.learning.chosen import METRICS, SPLITS, Chosen, gaps
from benchmarks.learning.intervals import cells, crossed_interval, shown
from benchmarks.learning.runs import COURSE


def table(args):
    """Print scores of every rule with differences to the base, and the course of training."""
    records = Chosen.of(args).runs()
    rules = list(dict.fromkeys(record["credit"] for record in records if record["credit"] != "none"))
    for split in SPLITS:
        for mode in ("greedy", "sampled"):
            print_scores(args, records, rules, split, mode)
    print_gaps_by_row(args)
    print_reached(records, rules)
    print_courses(args, records, rules)
    print_divergence(records)


def print_scores(args, records, rules, split, mode):
    """Print the scores of one split, greedy or sampled, if any run has them."""
    records = [record for record in records if mode in record.get(split, {})]
    if not records:
        return
    title = f"{args.task}, {split}, {mode}: mean over seeds ± 95 %, and difference to {args.base} paired by seed"
    header = (*METRICS, *(f"Δ {name}" for name in METRICS), "seeds for Δ bleu ± 0.5")
    made = Table("", "seeds", *header, title=title)
    for start in [record for record in records if record["credit"] == "none"][:1]:
        made.add_row("start", "", *(f"{start[split][mode][name]:.2f}" for name in METRICS), *[""] * 4)
    by_seed = {rule: {r["seed"]: r[split][mode] for r in records if r["credit"] == rule} for rule in rules}
    for rule, mine in by_seed.items():
        if mine:
            base = {} if rule == args.base else by_seed.get(args.base, {})
            made.add_row(rule, str(len(mine)), *cells(mine, base))
    Console(width=150).print(made)


def print_divergence(records):
    """Print how a run's divergence from the start in its last ten steps goes with its greedy BLEU, seed means off."""
    for split in SPLITS:
        runs = [r for r in records if "kl" in r.get("course", {}) and split in r]
        seeds = np.array([r["seed"] for r in runs])
        values = np.array([[r["course"]["kl"][1], r[split]["greedy"]["bleu"]] for r in runs])
        for seed in set(seeds):
            values[seeds == seed] -= values[seeds == seed].mean(0)
        if len(runs) > 2 and values.any(0).all():
            print(f"{split}: correlation of kl and BLEU over {len(runs)} runs {np.corrcoef(values.T)[0, 1]:.2f}")


def print_gaps_by_row(args):
    """Print each rule's difference to the base in sentence BLEU, with an interval over both seeds and test rows."""
    for rule, by_row in gaps(args):
        values = np.array(list(by_row.values()))
        rows, seeds = values.shape
        if seeds > 1:
            mean, half = crossed_interval(values.T)
            print(f"{rule} - {args.base}, sentence BLEU, {seeds} seeds and {rows} rows: {mean:+.2f} ± {half:.2f}")


def print_courses(args, records, rules):
    """Print how rewards, forks, gradients and credit changed from the first ten steps to the last ten."""
    made = Table("", *rules, title=f"{args.task}, training: mean over seeds ± 95 %, first ten steps → last ten")
    ends = {
        rule: {
            r["seed"]: [statistics.fmean(r["rewards"][part]) for part in (slice(10), slice(-10, None))]
            for r in records
            if r["credit"] == rule and "rewards" in r
        }
        for rule in rules
    }
    made.add_row("reward", *(_change(ends[rule].values()) for rule in rules))
    base = ends.get(args.base, {})
    minus = {rule: np.array([np.subtract(ends[rule][s], base[s]) for s in ends[rule].keys() & base]) for rule in rules}
    made.add_row("Δ reward", *("" if rule == args.base else _change(minus[rule], signed=True) for rule in rules))
    for name in COURSE:
        known = [record for record in records if name in record.get("course", {})]
        pairs = {rule: [r["course"][name] for r in known if r["credit"] == rule] for rule in rules}
        made.add_row(name, *(_change(pairs[rule]) for rule in rules))
    Console(width=150).print(made)


def _change(pairs, *, signed=False):
    """Format means before and after, with their intervals where there are three seeds or more."""
    columns = [list(values) if len(values) > 2 else [statistics.fmean(values)] for values in zip(*pairs, strict=True)]
    return " → ".join(shown(values, signed=signed, digits=3) for values in columns)


def print_reached(records, rules):
    """Print at which validation each rule first reached the mean final validation BLEU of GRPO."""
    curves = {}
    for rule in rules:
        mine = [record for record in records if record["credit"] == rule and record["validation"]]
        if not mine:
            continue
        steps = [point["step"] for point in mine[0]["validation"]]
        means = [statistics.fmean(record["validation"][i]["bleu"] for record in mine) for i in range(len(steps))]
        curves[rule] = (steps, means, mine[0]["completions_per_step"])
    if "grpo" not in curves:
        return
    goal = curves["grpo"][1][-1]
    for rule, (steps, means, size) in curves.items():
        at = next((step for step, value in zip(steps, means, strict=True) if value >= goal), None)
        reached = "not reached" if at is None else f"{at * size} completions"
        points = ", ".join(f"{step}: {value:.1f}" for step, value in zip(steps, means, strict=True))
        print(f"{rule}: GRPO's final validation BLEU {goal:.2f}: {reached} (mean curve by step {points})")
