"""Print what the study of rollouts measured: rates tried, scores with differences paired by seed, and costs."""

import statistics

from rich.console import Console
from rich.table import Table

from benchmarks.learning.chosen import SPLITS
from benchmarks.learning.intervals import shown
from benchmarks.records import read


def study_table(args):
    """Print a table of searches, one of scores per split, and one of costs, for every task of a file."""
    records = read(args.out)
    console = Console(width=170)
    for task in dict.fromkeys(record["task"] for record in records):
        mine = [record for record in records if record["task"] == task]
        for made in (
            _searches(task, mine),
            *(_scores(task, mine, split, args.base) for split in SPLITS),
            _costs(task, mine),
        ):
            if made.rows:
                console.print(made)


def by_method(records, stage):
    """Sort the records of a stage by their method, in the order in which they were made."""
    found = {}
    for record in records:
        if record["stage"] == stage:
            found.setdefault(record["method"], []).append(record)
    return found


def _searches(task, records):
    """Show the expected reward on validation of every rate that was tried."""
    found = by_method(records, "search")
    rates = sorted({record["rate"] for mine in found.values() for record in mine})
    made = Table("", *(f"{rate:g}" for rate in rates), title=f"{task}: expected reward on validation by learning rate")
    for method, mine in found.items():
        cells = ([r["validation"]["expected_reward"] for r in mine if r["rate"] == rate] for rate in rates)
        made.add_row(method, *(f"{statistics.fmean(values):.4f}" if values else "" for values in cells))
    return made


def _scores(task, records, split, base):
    """Show scores of a test split, and how they differ from the base with the same seed."""
    found = by_method([record for record in records if split in record], "seeds")
    start = [record for record in records if record["stage"] == "start" and split in record]
    names = [name for name in next(iter(found.values()))[0][split]["greedy"] if name != "reward"] if found else []
    columns = ["expected reward", "Δ"]
    for mode in ("greedy", "sampled"):
        for name in names:
            columns += [f"{mode} {name.split(':')[0]}", "Δ"]
    made = Table(
        "", "rate", "seeds", *columns, title=f"{task}, {split}: mean over seeds ± 95 %, and difference to {base}"
    )

    def values(record):
        one = record[split]
        return [one["expected_reward"], *(one[mode][name] for mode in ("greedy", "sampled") for name in names)]

    for record in start[:1] if found else []:
        made.add_row("start", "", "", *(cell for value in values(record) for cell in (f"{value:.3f}", "")))
    theirs = {record["seed"]: values(record) for record in found.get(base, [])}
    for method, mine in found.items():
        ours = {record["seed"]: values(record) for record in mine}
        both = sorted(ours.keys() & theirs.keys()) if method != base else []
        cells = []
        for i in range(len(names) * 2 + 1):
            cells += [shown([one[i] for one in ours.values()], digits=3)]
            cells += [shown([ours[seed][i] - theirs[seed][i] for seed in both], signed=True, digits=3)]
        made.add_row(
            method, ", ".join(f"{rate:g}" for rate in sorted({r["rate"] for r in mine})), str(len(ours)), *cells
        )
    return made


def _costs(task, records):
    """Show what a run sampled, decoded and took, and how many groups were flat, first ten steps → last ten."""
    made = Table(
        "",
        "completions",
        "tokens decoded",
        "tokens scored",
        "seconds a step",
        "of them sampling",
        "flat groups",
        "entropy",
        "kl",
        "set mass",
        title=f"{task}: costs of a run, mean over seeds; flat groups to set mass: first ten steps → last ten",
    )
    for method, mine in by_method(records, "seeds").items():
        sums = {name: statistics.fmean(r["sums"][name] for r in mine) for name in mine[0]["sums"]}
        steps = mine[0]["steps"]
        ends = []
        for name in ("zero_variance_groups", "entropy", "kl", "set_mass"):
            known = [r["course"][name] for r in mine if name in r["course"]]
            ends.append(" → ".join(f"{statistics.fmean(part):.3f}" for part in zip(*known, strict=True)))
        made.add_row(
            method,
            f"{sums['completions']:.0f}",
            f"{sums['tokens_decoded']:.0f}",
            f"{sums['packed_tokens']:.0f}",
            f"{sums['seconds/step'] / steps:.2f}",
            f"{sums['seconds/sample'] / steps:.2f}",
            *ends,
        )
    return made
