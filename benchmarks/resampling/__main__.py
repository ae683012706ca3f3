"""Measure credit on the real model: true values and gradients by re-sampling from shared prefixes.

    python -m benchmarks.resampling values --task qa --prompts 40 --samples 24
    python -m benchmarks.resampling gradients --task qa --prompts 32 --groups 16
    python -m benchmarks.resampling forkability --task fr --prompts 120 --adapter runs/learning/qa-leaf-0/last
    python -m benchmarks.resampling rollouts --task fr --prompts 20 --completions 4 8 16
    python -m benchmarks.resampling noise --task qa --prompts 40 --groups 6
    python -m benchmarks.resampling table
    python -m benchmarks.resampling rollouts_table
    python -m benchmarks.resampling noise_table

Prompts come from the validation split (the same ones for one seed), sampling and reward are those of recipes/qa.yaml.
Every command appends to benchmarks/results/resampling_*.jsonl, a line per prompt (`forkability`: per group; `noise`:
one line at its end), so a run that is stopped loses one prompt. `table` prints what the page of results shows.
`--adapter` names a saved adapter; without it the starting model is used. `--minutes` ends a run after the current
prompt.
"""

import argparse

from benchmarks.resampling.forkability import forkability
from benchmarks.resampling.gradients import gradients
from benchmarks.resampling.noise import noise, noise_table
from benchmarks.resampling.rollouts import rollouts, rollouts_table
from benchmarks.resampling.tables import table
from benchmarks.resampling.values import values


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for command in (values, gradients, forkability, rollouts, noise):
        one = commands.add_parser(command.__name__, help=command.__doc__)
        one.set_defaults(command=command)
        one.add_argument("--task", choices=("qa", "fr", "it", "asr"), default="qa")
        one.add_argument("--split", default="validation", help="whose prompts")
        one.add_argument("--adapter", default=None, help="directory of a saved adapter; default the starting model")
        one.add_argument("--name", default=None, help="what the records call the checkpoint")
        one.add_argument("--prompts", type=int, default=40)
        one.add_argument("--skip", type=int, default=0, help="prompts passed over, as when a run is taken up again")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--threads", type=int, default=1)
        one.add_argument("--minutes", type=float, default=40.0)
        if command is values:
            one.add_argument("--samples", type=int, default=24, help="continuations from each prefix")
            one.add_argument("--only-boundaries", action="store_true")
        one.add_argument("--temperature", type=float, default=1.0)
        if command is rollouts:
            one.add_argument("--completions", type=int, nargs="+", default=[8], help="K")
        if command is noise:
            one.add_argument("--completions", type=int, default=8, help="K")
        if command in (gradients, rollouts, noise):
            one.add_argument("--groups", type=int, default=16)
        if command is gradients:
            one.add_argument(
                "--part", choices=("last layer", "upper half"), default="last layer", help="of the adapter"
            )
    for command in (table, rollouts_table, noise_table):
        described = (command.__doc__ or "").replace("%", "%%")
        commands.add_parser(command.__name__, help=described).set_defaults(command=command)
    args = parser.parse_args()
    args.command(args)


if __name__ == "__main__":
    main()
