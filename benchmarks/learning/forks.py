"""Whether a rule gains more over the base where the starting model's forks are usable."""

import statistics

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.learning.chosen import gaps
from benchmarks.learning.intervals import crossed_interval
from benchmarks.records import RESULTS, read
from benchmarks.resampling.estimators import bootstrap

FORKS = RESULTS / "resampling_forkability.jsonl"


def forks(args):
    """Print differences to the base by the number of usable boundaries of a row, and their correlation."""
    facts = [r for r in read(FORKS) if (r["task"], r.get("split"), r["checkpoint"]) == (args.task, "test", "start")]
    usable = {record["id"]: sum(fork[2] for fork in record["forks"]) for record in facts}
    numbers = sorted(set(usable.values()))
    print(f"{len(usable)} rows of the test split with a group of the starting model")
    for rule, by_row in gaps(args):
        columns = ("usable boundaries", "rows", f"{rule} - {args.base}, rows as drawn", "seeds and rows as drawn")
        made = Table(*columns, title=f"{args.task}, {len(next(iter(by_row.values())))} seeds")
        for name, chosen in [*((str(n), {n}) for n in numbers), ("all", set(numbers))]:
            values = np.array([by_row[i] for i in usable if usable[i] in chosen])
            means = values.mean(1)
            drawn = "{:+.2f} ({:+.2f} to {:+.2f})".format(*bootstrap(lambda i, m=means: m[i].mean(), len(means)))
            both = "{:+.2f} ± {:.2f}".format(*crossed_interval(values.T)) if min(values.shape) > 1 else ""
            made.add_row(name, str(len(values)), drawn, both)
        Console(width=110).print(made)
        pair = np.array([[usable[i], statistics.fmean(by_row[i])] for i in usable])
        found = bootstrap(lambda i, pair=pair: np.corrcoef(pair[i].T)[0, 1], len(pair))
        print("correlation {:+.3f} ({:+.3f} to {:+.3f})".format(*found))
