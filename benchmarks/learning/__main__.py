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

Splits of one run that were scored by two commands count as one run. Of runs that differ in length the longest are
shown, or those of `--steps`. `--set` keeps runs that were made together apart from all others.
"""

import argparse
from pathlib import Path

from benchmarks.learning.chosen import METRICS, SPLITS
from benchmarks.learning.figure import figure
from benchmarks.learning.forks import forks
from benchmarks.learning.repeats import repeats
from benchmarks.learning.runs import RATES, items, run, search
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
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
