"""How far runs of the same rule and seed end apart, and what that leaves of differences between rules."""

import statistics

from benchmarks.learning.chosen import SPLITS, Chosen
from benchmarks.learning.intervals import shown, unpaired
from leaf.evaluation.bootstrap import seeds_for


def repeats(args):
    """Print how far runs of the same rule and seed in two sets end apart, and the deviation of one run from that."""
    first, again = (
        {(r["credit"], r["seed"]): r for r in Chosen(args.task, args.steps, args.seeds, name).runs() if r["steps"]}
        for name in (None, args.set)
    )
    both = sorted(first.keys() & again.keys())
    for split in SPLITS:
        gaps = [_bleu(again[key], split) - _bleu(first[key], split) for key in both]
        each = ", ".join(f"{rule} {seed}: {gap:+.2f}" for (rule, seed), gap in zip(both, gaps, strict=True))
        print(f"{args.task}, {split}, greedy BLEU of {args.set} minus that of the first runs: {each}")
        if gaps:
            one = (statistics.fmean(gap**2 for gap in gaps) / 2) ** 0.5
            print(f"standard deviation of one run about its rule and seed: {one:.2f} ({len(gaps)} pairs)")
        print_over_both(args.base, split, first, again)


def print_over_both(base, split, first, again):
    """Print every rule's score over the runs of both sets and its difference to the base.

    `first` and `again` are (rule, seed) → record.
    """
    rules = dict.fromkeys(rule for rule, _ in (*first, *again))
    every = {
        rule: [_bleu(r, split) for runs in (first, again) for (its, _), r in runs.items() if its == rule]
        for rule in rules
    }
    for rule, values in every.items():
        if len(values) < 2 or len(every[base]) < 2:
            continue
        print(f"{rule}: {shown(values)} over all {len(values)} runs")
        if rule == base:
            continue
        mean, half = unpaired(values, every[base])
        print(f"  minus {base}, unpaired: {mean:+.2f} ± {half:.2f}")
        gaps = [
            _bleu(r, split) - _bleu(runs[base, seed], split)
            for runs in (first, again)
            for (its, seed), r in runs.items()
            if its == rule and (base, seed) in runs
        ]
        if len(gaps) > 1:
            paired = f"{shown(gaps, signed=True)} ({len(gaps)} pairs; {seeds_for(gaps)} for ± 0.5)"
            print(f"  minus {base}, paired by set and seed: {paired}")


def _bleu(record, split):
    return record[split]["greedy"]["bleu"]
