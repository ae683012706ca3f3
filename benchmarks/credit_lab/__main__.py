"""Run the credit laboratory: `python -m benchmarks.credit_lab {rules,ablation,kappa,sharing_curve,boundaries}`.

Each experiment draws `--worlds` worlds (seeds 0, 1, …) for every condition and `--groups` groups from each; all rules
of a condition see the same groups. One line of JSON for every condition: per rule and measure the mean over worlds and
the half-width of its 95 % Student interval, and the same of the difference to a reference rule, paired by world.
"""

import argparse
import json
import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.credit_lab.measure import Judge, advantages, sharing
from benchmarks.credit_lab.rules import ablations, all_rules, by_length, empirical_kappas, out, own
from benchmarks.credit_lab.world import Setting, World
from benchmarks.records import RESULTS
from leaf.credit import PrefixTree, credit_rule, entropy_boundaries, even_boundaries, random_boundaries
from leaf.credit.boundaries import select_boundaries
from leaf.evaluation.bootstrap import mean_interval

PAIRED = ("cosine", "efficiency", "efficiency_64", "credit")


def conditions():
    """Return name → setting: one thing varied at a time, for both kinds of policy."""
    result = {}
    for policy in ("tabular", "shared"):
        base = Setting(policy=policy)
        result[f"{policy}: base"] = base
        for k in (4, 16, 32):
            result[f"{policy}: K={k}"] = replace(base, completions=k)
        for noise in (1.0, 2.0):
            result[f"{policy}: noise {noise:g}"] = replace(base, noise=noise)
        for q in (0.2, 0.05):
            result[f"{policy}: sparse {q:g}"] = replace(base, sparse=q)
        for name, t in {"first": 0, "early": 1, "middle": 4, "late": 6}.items():
            result[f"{policy}: decisive {name}"] = replace(base, decisive=t)
        result[f"{policy}: sharp"] = replace(base, scale=3.0)
        result[f"{policy}: aligned"] = replace(base, aligned=1.0)
        result[f"{policy}: long"] = replace(base, vocabulary=2, depth=14)
        result[f"{policy}: ends"] = replace(base, end=True)
    return result


def generator(seed):
    return torch.Generator().manual_seed(10_000 + seed)


def summary(records, reference):
    """Return per rule and measure [mean, half-width], over worlds; `minus` holds paired differences to `reference`."""
    result = {}
    for rule in records[0]:
        row: dict[str, Any] = {m: _interval([r[rule][m] for r in records]) for m in records[0][rule]}
        if rule != reference:
            row["minus"] = {m: _interval([r[rule][m] - r[reference][m] for r in records]) for m in PAIRED}
        result[rule] = row
    return result


def _interval(values):
    return [float(f"{x:.4g}") for x in mean_interval(values)]


def judge_rules(setting, rules_of, args, reference, reductions=("completion_mean",)):
    records, shared = {r: [] for r in reductions}, []
    for seed in range(args.worlds):
        world = World.draw(setting, seed)
        groups = world.sample(args.groups, generator(seed))
        drawn = advantages(groups, rules_of(groups))
        own_value = world.own_value(groups)
        drawn["r - true value"] = groups.rewards[..., None] - own_value
        drawn["true advantage"] = world.child_value(groups) - own_value
        shared.append(sharing(groups))
        for reduction in reductions:
            judge = Judge(world, groups, reduction)
            records[reduction].append({name: judge(each) for name, each in drawn.items()})
    measured = {m: _interval([s[m] for s in shared]) for m in shared[0]}
    return measured, {r: summary(each, reference) for r, each in records.items()}


def rules(args):
    for name, setting in conditions().items():
        if args.only and args.only not in name:
            continue
        reductions = ("completion_mean", "constant") if setting.end else ("completion_mean",)
        measured, found = judge_rules(setting, lambda _: all_rules(), args, "grpo", reductions)
        for reduction, each in found.items():
            yield {"condition": name, "setting": asdict(setting), "reduction": reduction, **measured, "rules": each}


def ablation(args):
    for name in ("tabular: base", "shared: base", "tabular: sharp", "shared: sharp", "shared: K=32", "shared: noise 2"):
        setting = conditions()[name]
        measured, found = judge_rules(setting, lambda _: ablations(), args, "dr_grpo")
        yield {"condition": name, "setting": asdict(setting), **measured, "rules": found["completion_mean"]}


def kappa(args):
    """κ by hand against κ estimated from the data (half of the groups estimate, the other half is judged)."""
    chosen = ("base", "K=16", "noise 2", "sparse 0.05", "decisive early", "decisive late", "sharp", "long")
    for name, setting in conditions().items():
        if name.split(": ")[1] not in chosen:
            continue
        estimates = []

        def rules_of(_, setting=setting, estimates=estimates):
            seed = len(estimates)
            past = World.draw(setting, seed).sample(args.groups, generator(20_000 + seed))
            single, by = empirical_kappas(past, PrefixTree.build)
            estimates.append({"single": round(single, 3), "by_length": [round(x, 2) for x in by[1:].tolist()]})
            grid = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
            return {
                "rloo": credit_rule("rloo"),
                **{f"out {k:g}": out(k) for k in grid},
                **{f"in {k:g}": own(k) for k in grid},
                "out estimated": out(single),
                "in estimated": own(single),
                "out by length": by_length(by, True),
                "in by length": by_length(by, False),
            }

        measured, found = judge_rules(setting, rules_of, args, "rloo")
        record = {"condition": name, "setting": asdict(setting), **measured, "estimates": estimates}
        yield {**record, "rules": found["completion_mean"]}


def sharing_curve(args):
    """How much is shared, by the spread of the policy's logits, and what span credit does to the noise then."""
    chosen = {
        "dr_grpo": credit_rule("dr_grpo"),
        "leaf": credit_rule("leaf"),
        "leaf raw": credit_rule("leaf", normalize=False),
        "leaf mean only": credit_rule("leaf", normalize=False, sqrt_count=False, terms="global"),
        "leaf parent baseline": credit_rule("leaf", normalize=False, sqrt_count=False, terms="local"),
        "tempo": credit_rule("tempo"),
        "shrunken out": out(1.0),
    }
    for policy in ("tabular", "shared"):
        for scale in (0.0, 1.0, 2.0, 3.0, 4.0, 6.0):
            setting = Setting(policy=policy, scale=scale)
            measured, found = judge_rules(setting, lambda _: chosen, args, "dr_grpo")
            name = f"{policy}: scale {scale:g}"
            yield {"condition": name, "setting": asdict(setting), **measured, "rules": found["completion_mean"]}


def boundaries(args):
    """Do boundaries before surprising tokens separate the values of what follows better than others?

    Per group and way of choosing B = 1 and B = 2 boundaries. `children`: at a boundary t, variance of the true value of
    the prefix through token t within each group of two or more that share the t tokens before, over all completions
    (0 for those alone). `nodes`: variance over completions of the true value of the prefix before t. Both in units of
    the reward's variance under the policy. `fires`: share of boundaries with such a group.
    """
    settings = {}
    for policy in ("tabular", "shared"):
        for scale in (1.0, 3.0):
            for aligned in (0.0, 1.0):
                name = f"{policy}: scale {scale:g}, aligned {aligned:g}"
                settings[name] = Setting(policy=policy, scale=scale, aligned=aligned)
        for decisive in (1, 4, 6):
            settings[f"{policy}: decisive {decisive}"] = Setting(policy=policy, decisive=decisive)
    for name, setting in settings.items():
        records = []
        for seed in range(args.worlds):
            world = World.draw(setting, seed)
            groups = world.sample(args.groups, generator(seed))
            random = torch.Generator().manual_seed(seed)
            records.append(_separation(world, groups, random))
        found = {}
        for choice in records[0]:
            found[choice] = {m: _interval([r[choice][m] for r in records]) for m in records[0][choice]}
            budget = choice.split("B=")[1]
            if not choice.startswith("random"):
                for m in ("children", "nodes", "fires"):
                    minus = [r[choice][m] - r[f"random B={budget}"][m] for r in records]
                    found[choice][f"{m} minus random"] = _interval(minus)
        yield {"condition": name, "setting": asdict(setting), "choices": found}


def _separation(world, groups, random):
    child, before = world.child_value(groups), world.own_value(groups)
    probs = world.flat_probs[groups.prefix]
    entropy = -(probs * probs.clamp_min(1e-300).log()).sum(-1)
    mass, value = world.mass[-1], world.value[-1]
    spread = (mass * (value - (mass * value).sum()).square()).sum()
    sums = {}
    for i, (tokens, lengths) in enumerate(zip(groups.tokens, groups.lengths, strict=True)):
        tree = PrefixTree.build(tokens, lengths)
        for budget in (1, 2):
            options = {"max_boundaries": budget}
            choices = {
                "surprisal": select_boundaries(groups.surprisal[i], lengths, **options),
                "entropy": entropy_boundaries(entropy[i], lengths, **options),
                "even": even_boundaries(lengths, **options),
                "random": random_boundaries(lengths, generator=random, **options),
            }
            for choice, cuts in choices.items():
                row = sums.setdefault(
                    f"{choice} B={budget}", {"children": [], "nodes": [], "fires": [], "position": []}
                )
                for t in cuts.tolist():
                    same = tree.prefix_group(t)[:, None] == tree.prefix_group(t)
                    size = same.sum(1).double()
                    after = child[i, :, t]
                    mean = (same * after).sum(1) / size
                    within = torch.where(size >= 2, (after - mean).square(), 0.0).mean()
                    row["children"].append(float(within / spread))
                    row["nodes"].append(float(before[i, :, t].var(correction=0) / spread))
                    row["fires"].append(float(size.max() >= 2))
                    row["position"].append(float(t))
    return {c: {m: sum(x) / len(x) for m, x in row.items()} for c, row in sums.items()}


EXPERIMENTS = {f.__name__: f for f in (rules, ablation, kappa, sharing_curve, boundaries)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("experiment", choices=EXPERIMENTS)
    parser.add_argument("--worlds", type=int, default=8)
    parser.add_argument("--groups", type=int, default=300)
    parser.add_argument("--only", default="", help="conditions of `rules` whose name holds this")
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    file = args.out or RESULTS / f"credit_lab_{args.experiment}.jsonl"
    machine = {"machine": f"2-core {platform.machine()} CPU, 1 thread", "torch": torch.__version__}
    command = f"python -m benchmarks.credit_lab {args.experiment} --worlds {args.worlds} --groups {args.groups}"
    with file.open("w") as lines:
        start = time.monotonic()
        for record in EXPERIMENTS[args.experiment](args):
            seconds = round(time.monotonic() - start, 1)
            run = {"command": command, **machine, "worlds": args.worlds, "groups": args.groups, "seconds": seconds}
            lines.write(json.dumps({**record, **run}) + "\n")
            lines.flush()
            print(record["condition"], f"{seconds} s", flush=True)
            start = time.monotonic()


if __name__ == "__main__":
    main()
