"""Train credit rules from one checkpoint over several seeds and compare held-out scores.

    python -m benchmarks.learning run --task qa --credit leaf --seed 0 [key=value ...]
    python -m benchmarks.learning run --task qa --credit none            # the starting checkpoint
    python -m benchmarks.learning run --credit leaf --name leaf-no-sqrt 'credit_options={"sqrt_count":false}'
    python -m benchmarks.learning search --task qa                       # learning rates, by validation
    python -m benchmarks.learning table --task qa
    python -m benchmarks.learning items --task qa --credit leaf --seed 0  # sentence BLEU by test row, of a past run
    python -m benchmarks.learning forks --task qa
    python -m benchmarks.learning repeats --task qa --set relatives
    python -m benchmarks.learning figure --task qa --out docs/images/learning_qa.svg
    python -m benchmarks.learning study                                  # rollouts at the same cost; see below
    python -m benchmarks.learning study_table

`run` trains recipes/qa.yaml (the other tasks with their own data) with the given rule and seed. It scores the last
adapter on the test splits, greedily and in five sampled passes (temperature 0.9, top-p 0.9, seeds 42 to 46). It appends
one line to benchmarks/results/learning.jsonl, and the sentence BLEU of the test rows to learning_items.jsonl. Every
rule sees the same prompts in the same order and draws from the same sampling seeds. An interrupted run continues from
its last checkpoint when the command is repeated.

`table` prints means over seeds with Student 95 % intervals and differences to GRPO (or to `--base`) paired by seed. It
also prints how many seeds an interval of ±0.5 takes, how many completions each rule had sampled when its validation
curve first reached GRPO's final score, an interval over both seeds and test rows, and how rewards, forks and gradients
changed in training.

`figure` draws the rewards of the sampled completions (means of a tenth of the run) against completions sampled, and the
scores of every seed on both test splits.

`forks` asks whether LEAF gains more over GRPO on prompts where the starting model's forks are usable
(`python -m benchmarks.resampling forkability --split test`). It groups rows by their number of usable boundaries and
prints the difference of sentence BLEU (percent, greedy, mean over seeds), once with bootstrap intervals over rows and
once with intervals over seeds and rows.

`repeats` compares the runs of a set with those of the same rule and seed outside it. They differ only in the machine's
last bits, so what that grows to in training is noise. It also prints differences to the base over the runs of both
sets, unpaired and paired by set and seed.

`study` compares ways to roll out: GRPO, LEAF, distinct completions and GRPO with K = 32, on QA, French and
transcription. Each method tries the same learning rates (60 steps, scored on validation) and runs five seeds at its
best one (100 steps, scored on both test splits greedily and in five passes at temperature 1, whose mean reward is the
expected reward). It makes one run at a time and appends a line to benchmarks/results/study.jsonl for each. Stop it with
Ctrl-C or SIGTERM whenever you like, or bound it with `--minutes`; the same command continues. A run that takes longer
than `--minutes-per-run` is stopped, and the next command continues it. `study_table` prints what there is so far, and
`study_figure` draws rewards against completions and seconds.

Splits of one run that were scored by two commands count as one run. Of runs that differ in length the longest are
shown, or those of `--steps`. `--set` keeps runs that were made together apart from all others.
"""

import argparse
from pathlib import Path

from benchmarks.learning.chosen import METRICS, SPLITS
from benchmarks.learning.figure import figure
from benchmarks.learning.forks import forks
from benchmarks.learning.repeats import repeats
from benchmarks.learning.runs import RATES, SEARCH_SEED, items, run, search
from benchmarks.learning.study import DEFAULT_METHODS, METHODS, STUDY, TASKS, job, study
from benchmarks.learning.study import RATES as STUDY_RATES
from benchmarks.learning.study_figure import study_figure
from benchmarks.learning.study_table import study_table
from benchmarks.learning.table import table


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for command in (run, search, table, figure, items, repeats, forks):
        name = command.__name__
        one = commands.add_parser(name, help=command.__doc__)
        one.add_argument("--task", choices=("qa", "fr", "it"), default="qa")
        one.set_defaults(command=command)
        if name != "search":
            one.add_argument("--set", default=None, help="runs that belong together, made on one machine")
        if name in ("run", "search", "items"):
            one.add_argument("--threads", type=int, default=1)
        if name in ("run", "search"):
            one.add_argument("overrides", nargs="*", default=[])
        if name in ("run", "items"):
            one.add_argument("--credit", required=True)
            one.add_argument("--seed", type=int, default=0)
        if name == "run":
            one.add_argument("--name", default=None, help="what the records call a rule with options of its own")
            one.add_argument("--items", type=int, default=None)
            one.add_argument("--splits", default=",".join(SPLITS))
            one.add_argument("--sampled", default=",".join(SPLITS), help="splits that are scored sampled as well")
        if name == "figure":
            one.add_argument("--out", type=Path, required=True)
            one.add_argument("--metric", choices=METRICS, default="bleu")
            one.add_argument("--credits", default="leaf,grpo")
        if name in ("table", "figure", "forks", "repeats"):
            one.add_argument("--steps", type=int, default=None, help="runs of this length; without it the longest")
            one.add_argument("--seeds", type=int, nargs="+", default=None, help="runs of these seeds; without it all")
        if name in ("table", "forks", "repeats"):
            one.add_argument("--base", default="grpo", help="rule that differences are taken to")
        if name == "search":
            one.add_argument("--steps", type=int, default=60)
            one.add_argument("--credits", default="leaf,grpo")
            one.add_argument("--rates", type=float, nargs="+", default=RATES)
    add_study(commands)
    args = parser.parse_args()
    args.command(args)


def add_study(commands):
    """Add the commands of the study; `job` is one of its runs, which it makes itself."""
    for command in (study, study_table, study_figure, job):
        one = commands.add_parser(command.__name__, help=command.__doc__)
        one.set_defaults(command=command)
        one.add_argument("--out", type=Path, default=STUDY, help="records, one a line")
        if command is study_table:
            one.add_argument("--base", default="grpo", help="method that differences are taken to")
            continue
        if command is study_figure:
            one.add_argument("--task", choices=TASKS, default=TASKS[0])
            one.add_argument("--steps", type=int, default=100, help="length of the runs that are drawn")
            one.add_argument("--svg", type=Path, required=True)
            continue
        one.add_argument("--threads", type=int, default=1)
        one.add_argument("--items", type=int, default=None, help="rows that are scored of a split; default all")
        if command is study:
            one.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
            one.add_argument("--methods", nargs="+", choices=METHODS, default=DEFAULT_METHODS)
            one.add_argument("--rates", type=float, nargs="+", default=STUDY_RATES, help="one alone needs no search")
            one.add_argument("--seeds", type=int, nargs="+", default=range(5))
            one.add_argument("--search-seeds", type=int, nargs="+", default=[SEARCH_SEED])
            one.add_argument("--steps", type=int, default=100)
            one.add_argument("--search-steps", type=int, default=60)
            one.add_argument("--minutes", type=float, default=None, help="stop after so long; default when all is done")
            one.add_argument("--minutes-per-run", type=float, default=60)
        else:
            for name, kind in (("task", str), ("method", str), ("stage", str), ("rate", float), ("seed", int)):
                one.add_argument(f"--{name}", type=kind, required=True)
            one.add_argument("--steps", type=int, required=True)
        one.add_argument("--overrides", nargs="*", default=[], help="key=value, for all runs alike")


if __name__ == "__main__":
    main()
