"""Print what the study of rollouts measured: rates tried, scores with differences paired by seed, and costs."""

import statistics

from benchmarks.learning.chosen import SPLITS
from benchmarks.learning.intervals import shown
from benchmarks.records import read

SHOWN = 2  # metrics of a task that the table has room for
COURSES = ("zero_variance_groups", "different_completions", "set_mass", "entropy", "kl")


def study_table(args):
    """Print for every task of a file its searches, its scores on both test splits, and its costs, as Markdown."""
    records = read(args.out)
    for task in dict.fromkeys(record["task"] for record in records):
        mine = [record for record in records if record["task"] == task]
        _print(f"{task}: expected reward and greedy score on validation by learning rate", _searches(mine))
        for split in SPLITS:
            title = f"{task}, {split}: mean over seeds ± 95 %, and difference to {args.base}"
            _print(title, _scores(mine, split, args.base))
        _print(
            f"{task}: one run; seconds are medians, arrows join the means of the first and last ten steps", _costs(mine)
        )


def _print(title, rows):
    """Print a table under its title, unless it has nothing but a head."""
    if len(rows) > 1:
        head, *rest = rows
        lines = [head, ["---"] * len(head), *rest]
        print("\n".join(["", title, "", *("| " + " | ".join(line) + " |" for line in lines)]))


def by_method(records, stage):
    """Sort the records of a stage by their method, in the order in which they were made.

    A method that ran its seeds at a second rate as well, for another number of steps than the first record, or with
    overrides of the recipe, has that behind its name.
    """
    found, rates = {}, {}
    mine = [record for record in records if record["stage"] == stage]
    for record in mine:
        name, rate = record["method"], record["rate"]
        if stage == "seeds" and rates.setdefault(name, rate) != rate:
            name += f" at {rate:g}"
        if record["steps"] != mine[0]["steps"]:
            name += f", {record['steps']} steps"
        name += "".join(f", {override}" for override in record["overrides"])
        found.setdefault(name, []).append(record)
    return found


def _metrics(record):
    """Name the metrics of a record that are shown; the expected reward stands for the reward."""
    return [name for name in record["greedy"] if name != "reward"][:SHOWN]


def _searches(records):
    """Show what every rate that was tried comes to on validation."""
    found = by_method(records, "search")
    rates = sorted({record["rate"] for mine in found.values() for record in mine})
    rows = [["", *(f"{rate:g}" for rate in rates)]]
    for method, mine in found.items():
        cells = []
        for rate in rates:
            scores = [record["validation"] for record in mine if record["rate"] == rate]
            reward = statistics.fmean(one["expected_reward"] for one in scores) if scores else 0.0
            greedy = statistics.fmean(one["greedy"][_metrics(one)[0]] for one in scores) if scores else 0.0
            cells.append(f"{reward:.3f}, {greedy:.1f}" if scores else "")
        rows.append([method, *cells])
    return rows


def _scores(records, split, base):
    """Show scores of a test split, and how they differ from the base with the same seed."""
    found = by_method([record for record in records if split in record], "seeds")
    if not found:
        return []
    names = _metrics(next(iter(found.values()))[0][split])
    modes = [(mode, name) for mode in ("greedy", "sampled") for name in names]
    rows = [["", "rate", "seeds"]]
    for title in ("expected reward", *(f"{mode} {name.split(':')[0]}" for mode, name in modes)):
        rows[0] += [title, "Δ"]

    def values(record):
        one = record[split]
        return [one["expected_reward"], *(one[mode][name] for mode, name in modes)]

    start = [record for record in records if record["stage"] == "start" and split in record]
    for value in [values(record) for record in start[:1]]:
        rows += [["start", "", "", *(cell for one in value for cell in (f"{one:.3f}", ""))]]

    def is_base(record):
        """Tell whether a run is of the base's method, rate and overrides, whatever its length."""
        same = ("method", "rate", "overrides")
        return any(all(record[key] == one[key] for key in same) for one in found.get(base, []))

    # Every run is held against one of the same length.
    theirs = {(r["seed"], r["steps"]): values(r) for mine in found.values() for r in mine if is_base(r)}
    for method, mine in found.items():
        ours = {(record["seed"], record["steps"]): values(record) for record in mine}
        both = [] if is_base(mine[0]) else sorted(ours.keys() & theirs.keys())
        row = [method, ", ".join(f"{rate:g}" for rate in sorted({r["rate"] for r in mine})), str(len(ours))]
        for i in range(len(modes) + 1):
            digits = 2 if i else 4
            row += [shown([one[i] for one in ours.values()], digits=digits)]
            row += [shown([ours[run][i] - theirs[run][i] for run in both], signed=True, digits=digits)]
        rows.append(row)
    return rows


def _costs(records):
    """Show what a run sampled, decoded and took, and how its rollouts changed, first ten steps → last ten."""
    names = ("", "completions", "tokens decoded", "tokens scored", "seconds a step", "of them sampling")
    rows = [[*names, *(name.replace("_", " ") for name in COURSES)]]
    for method, mine in by_method(records, "seeds").items():
        sums = {name: statistics.fmean(r["sums"][name] for r in mine) for name in mine[0]["sums"]}
        ends = []
        for name in COURSES:
            known = [r["course"][name] for r in mine if name in r["course"]]
            ends.append(" → ".join(f"{statistics.fmean(part):.2f}" for part in zip(*known, strict=True)))
        rows.append(
            [
                method,
                f"{sums['completions']:.0f}",
                f"{sums['tokens_decoded']:.0f}",
                f"{sums['packed_tokens']:.0f}",
                # The median: a run that shared its core with another one tells how busy the machine was.
                f"{statistics.median(seconds for r in mine for seconds in r['seconds']):.2f}",
                f"{sums['seconds/sample'] / sums['seconds/step']:.0%}",
                *ends,
            ]
        )
    return rows
