"""Train credit rules from one checkpoint over several seeds and compare held-out scores.

    python benchmarks/learning.py run --task qa --credit leaf --seed 0 [key=value ...]
    python benchmarks/learning.py run --task qa --credit none            # the starting checkpoint
    python benchmarks/learning.py run --credit leaf --name leaf-no-sqrt 'credit_options={"sqrt_count":false}'
    python benchmarks/learning.py search --task qa                       # learning rates, by validation
    python benchmarks/learning.py table --task qa
    python benchmarks/learning.py items --task qa --credit leaf --seed 0  # sentence BLEU by test row, of a past run
    python benchmarks/learning.py forks --task qa
    python benchmarks/learning.py repeats --task qa --set relatives
    python benchmarks/learning.py figure --task qa --out docs/images/learning_qa.svg

`run` trains recipes/qa.yaml (for the other tasks with their data) with the given rule and seed, scores the last adapter
on the test splits, greedily and in five sampled passes (T 0.9, top-p 0.9, seeds 42 to 46), and appends one line to
benchmarks/results/learning.jsonl, and the sentence BLEU of the test rows to learning_items.jsonl. Every rule sees the
same prompts in the same order and draws from the same sampling seeds. A run that was cut off goes on from its last
checkpoint. `table` prints means over seeds with Student 95 % intervals, differences to GRPO (or to `--base`) paired by
seed, how many seeds an interval of ±0.5 takes, how many completions each rule had sampled when its validation curve
first reached GRPO's final score, an interval over seeds and test rows both, and how rewards, forks and gradients
changed in training.
`figure` draws the rewards of the sampled completions (means of a tenth of the run) against completions sampled, and the
scores of every seed on both test splits. `forks` asks whether LEAF gains more over GRPO on prompts where the starting
model's forks are usable (resampling forkability --split test): rows by their number of usable boundaries, the
difference of sentence BLEU (percent, greedy, mean over seeds) with bootstrap intervals over rows, and with intervals
over seeds and rows. Splits of a run that were scored by two commands count as one run; of runs that differ in length
the longest are shown, or those of `--steps`. `--set` keeps runs that were made together apart from all others, and
`repeats` holds runs of a set against those of the same rule and seed outside it: what differs is the machine's last
bits, and what that grows to in training is noise. It prints differences to the base over the runs of both sets too,
unpaired and paired by set and seed.
"""

import argparse
import json
import platform
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from leaf.config import load_recipe
from leaf.data import load
from leaf.evaluation.bootstrap import mean_interval, seeds_for, student_quantile
from leaf.evaluation.evaluate import predict
from leaf.evaluation.registry import score
from leaf.model.demo import resolve_model
from leaf.model.policy import Policy
from leaf.rewards.functions import REWARDS
from leaf.runs.directory import RunDirectory
from leaf.train.trainer import LeafTrainer

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/learning.jsonl"
SEARCH = ROOT / "benchmarks/results/learning_search.jsonl"
ITEMS = ROOT / "benchmarks/results/learning_items.jsonl"
FORKS = ROOT / "benchmarks/results/resampling_forkability.jsonl"
METRICS = ("bleu", "exact_match", "chrf")
SPLITS = ("test", "test_heldout")
PASSES = range(42, 47)
COLORS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"]  # told apart by the colour-blind (Okabe and Ito)
RATES = (1e-4, 2e-4, 4e-4, 8e-4)
COURSE = ("zero_variance_groups", "tokens_shared", "fork_fire_rate", "usable_fork_rate", "length_mean", "grad_norm")
COURSE += ("kl", *(f"credit_mass/{fifth}" for fifth in range(5)))
SEARCH_SEED = 100  # not among the seeds that are reported


def append(file, record):
    file.parent.mkdir(exist_ok=True)
    with file.open("a") as lines:
        lines.write(json.dumps(record) + "\n")


def train(task, credit, seed, threads, overrides, name=None, group=None):
    """Return the record of one run so far and the policy it trained.

    `name` is what the record calls the rule, `group` the set that the run belongs to.
    """
    torch.set_num_threads(threads)
    name = name or credit
    record = {"task": task, "credit": name, "seed": seed, "steps": 0, "overrides": overrides}
    record |= {} if group is None else {"set": group}
    record["machine"] = f"{platform.machine()}, {threads} thread, torch {torch.__version__}"
    given = [f"task=asterisk_{task}", f"output_dir={run_directory(task, name, seed, group)}", f"seed={seed}"]
    given += [] if credit == "none" else [f"credit={credit}"]
    config = load_recipe(ROOT / "recipes/qa.yaml", given + overrides)
    checkpoint = resolve_model(config.model)
    if credit == "none":
        return record, Policy.load(checkpoint, dtype=config.dtype), config
    rows = load(config.task, config.train_split), load(config.task, config.eval_split)
    trainer = LeafTrainer(checkpoint, None, config, *rows, from_recipe=True)
    directory = trainer.train(resume_from_checkpoint=(Path(config.output_dir) / "checkpoints").exists())
    steps = list(directory.lines("metrics.jsonl"))
    record["steps"] = config.max_steps
    record["completions_per_step"] = config.prompts_per_rollout * config.num_completions
    record["rewards"] = [round(step["reward_mean"], 4) for step in steps]
    record["course"] = course(steps)
    record["validation"] = list(directory.lines("validation.jsonl"))
    record["seconds_per_step"] = statistics.median(step["seconds/step"] for step in steps)
    return record, trainer.policy, config


def run_directory(task, name, seed, group=None):
    """Return where a run lies; what of its names does not belong in a path becomes a hyphen."""
    return "runs/learning/" + re.sub(r"[^0-9A-Za-z_.]+", "-", f"{group or ''} {task} {name} {seed}".strip())


def course(steps):
    """Return for every name of COURSE its mean over the first and over the last ten steps."""
    both = {}
    for name in COURSE:
        values = [step[name] for step in steps if step.get(name) is not None]
        if values:  # a run without divergence has no kl
            both[name] = [round(statistics.fmean(part), 4) for part in (values[:10], values[-10:])]
    return both


def scored(policy, config, rows, *, sampled):
    """Return greedy scores, with `sampled` those of five sampled passes too, and greedy sentence BLEU by row.

    All passes share a row's audio and prompt.
    """
    seeds = [None, *PASSES] if sampled else [None]
    options = {"temperature": 0.9, "top_p": 0.9, "max_new_tokens": config.max_new_tokens, "batch_size": 48}
    passes = predict(policy, rows, seeds=seeds, **options)
    references = [row["reference"] for row in rows]
    values = [
        {name: one.value for name, one in score(texts, references, METRICS).items()}
        | {"truncated": statistics.fmean(cut)}
        for texts, cut in passes
    ]
    scores = {"items": len(rows), "greedy": values[0]}
    if sampled:
        scores["sampled"] = {name: statistics.fmean(one[name] for one in values[1:]) for name in values[0]}
    bleu = REWARDS["bleu"](passes[0][0], references)
    return scores, {row["id"]: round(100 * value, 1) for row, value in zip(rows, bleu, strict=True)}


def run(args):
    record, policy, config = train(args.task, args.credit, args.seed, args.threads, args.overrides, args.name, args.set)
    for split in args.splits.split(","):
        rows = load(config.task, split, limit=args.items).to_list()
        record[split], bleu = scored(policy, config, rows, sampled=split in args.sampled.split(","))
        if split == "test":
            known = {key: record[key] for key in ("task", "credit", "seed", "steps", "set") if key in record}
            append(ITEMS, known | {"bleu": bleu})
        print(args.task, record["credit"], args.seed, split, record[split], flush=True)
    append(RESULTS, record)


def search(args):
    """Try every learning rate with each rule alike, one seed, and score the whole validation split greedily."""
    for rate in args.rates:
        for credit in args.credits.split(","):
            given = [f"learning_rate={rate}", f"max_steps={args.steps}", "eval_every=0", "record_every=0"]
            given += [f"output_dir=runs/learning/search-{args.task}-{credit}-{rate}", *args.overrides]
            record, policy, config = train(args.task, credit, SEARCH_SEED, args.threads, given)
            rows = load(config.task, config.eval_split).to_list()
            record |= {"learning_rate": rate, "validation": scored(policy, config, rows, sampled=False)[0]}
            print(args.task, credit, rate, record["validation"], flush=True)
            append(SEARCH, record)


@dataclass(frozen=True)
class Chosen:
    """Say which records are meant: a task's runs of one set with so many steps, of these seeds, and the start.

    `steps` None stands for as many as the longest runs have, `seeds` None for all, `set` None for runs without one.
    """

    task: str
    steps: int | None = None
    seeds: Sequence[int] | None = None
    set: str | None = None

    @classmethod
    def of(cls, args):
        return cls(args.task, args.steps, args.seeds, args.set)

    def lines(self, file):
        records = [record for record in map(json.loads, file.read_text().splitlines()) if record["task"] == self.task]
        start = [record for record in records if record["steps"] == 0]
        trained = [record for record in records if record["steps"] and record.get("set") == self.set]
        steps = self.steps or max((record["steps"] for record in trained), default=0)
        trained = [record for record in trained if record["steps"] == steps]
        return start + [record for record in trained if self.seeds is None or record["seed"] in self.seeds]

    def runs(self):
        """Return one record a run, what was scored by several commands put together."""
        found = {}
        for record in self.lines(RESULTS):
            found.setdefault((record["credit"], record["seed"]), record).update(record)
        return list(found.values())


def table(args):
    records = Chosen.of(args).runs()
    starts = [record for record in records if record["credit"] == "none"]
    rules = list(dict.fromkeys(record["credit"] for record in records if record["credit"] != "none"))
    for split in SPLITS:
        for mode in ("greedy", "sampled"):
            if not any(mode in record.get(split, {}) for record in records):
                continue
            title = (
                f"{args.task}, {split}, {mode}: mean over seeds ± 95 %, and difference to {args.base} paired by seed"
            )
            shown = Table(
                "", "seeds", *METRICS, *(f"Δ {name}" for name in METRICS), "seeds for Δ bleu ± 0.5", title=title
            )
            for start in [r for r in starts if mode in r.get(split, {})][:1]:
                values = start[split][mode]
                shown.add_row("start", "", *(f"{values[name]:.2f}" for name in METRICS), *[""] * 4)
            for rule in rules:
                mine, base = (
                    {r["seed"]: r[split][mode] for r in records if r["credit"] == one and mode in r.get(split, {})}
                    for one in (rule, args.base)
                )
                if mine:
                    shown.add_row(rule, str(len(mine)), *_cells(mine, base if rule != args.base else {}))
            Console(width=150).print(shown)
    _drawn(args)
    _reached(records, rules)
    _courses(args, records, rules)
    _strayed(records)


def _strayed(records):
    """Print how a run's divergence from the start in its last ten steps goes with its greedy BLEU, seed means off."""
    for split in SPLITS:
        runs = [r for r in records if "kl" in r.get("course", {}) and split in r]
        seeds = np.array([r["seed"] for r in runs])
        values = np.array([[r["course"]["kl"][1], r[split]["greedy"]["bleu"]] for r in runs])
        for seed in set(seeds):
            values[seeds == seed] -= values[seeds == seed].mean(0)
        if len(runs) > 2 and values.any(0).all():
            print(f"{split}: correlation of kl and BLEU over {len(runs)} runs {np.corrcoef(values.T)[0, 1]:.2f}")


def _drawn(args):
    """Print each rule's difference to the base in sentence BLEU, with an interval over seeds and test rows as drawn."""
    for rule, gaps in _gaps(args):
        values = np.array(list(gaps.values()))
        rows, seeds = values.shape
        if seeds > 1:
            mean, half = crossed_interval(values.T)
            print(f"{rule} - {args.base}, sentence BLEU, {seeds} seeds and {rows} rows: {mean:+.2f} ± {half:.2f}")


def _gaps(args):
    """Yield every rule with its differences to the base in sentence BLEU: test row → one per seed that both have."""
    scores = {(r["credit"], r["seed"]): r["bleu"] for r in Chosen.of(args).lines(ITEMS)}
    for rule in sorted({credit for credit, _ in scores} - {"none", args.base}):
        seeds = sorted({s for c, s in scores if c == rule} & {s for c, s in scores if c == args.base})
        if seeds:
            rows = scores[args.base, seeds[0]]
            yield rule, {i: [scores[rule, s][i] - scores[args.base, s][i] for s in seeds] for i in rows}


def crossed_interval(gaps):
    """Return mean and 95 % half-width of gaps (S, N) where seeds and rows are both drawn.

    Two-way random effects: Var = (MS_seeds + MS_rows - MS_rest) / (S N), at the least what seeds or rows alone give,
    and Student's t at Satterthwaite's degrees of freedom, rounded down.
    """
    seeds, rows = gaps.shape
    mean, of_seed, of_row = gaps.mean(), gaps.mean(1), gaps.mean(0)
    rest = gaps - of_seed[:, None] - of_row + mean
    free = np.array([seeds - 1, rows - 1, (seeds - 1) * (rows - 1)])
    squares = [rows * ((of_seed - mean) ** 2).sum(), seeds * ((of_row - mean) ** 2).sum(), (rest**2).sum()]
    parts = np.array(squares) / free / gaps.size
    variance = max(parts[0] + parts[1] - parts[2], parts[0], parts[1])
    if variance == 0.0:
        return float(mean), 0.0
    freedom = max(1, int(variance**2 / (parts**2 / free).sum()))
    return float(mean), student_quantile(0.95, freedom) * float(np.sqrt(variance))


def _courses(args, records, rules):
    """Print how rewards, forks, gradients and credit changed from the first ten steps to the last ten."""
    shown = Table("", *rules, title=f"{args.task}, training: mean over seeds ± 95 %, first ten steps → last ten")
    ends = {
        rule: {
            r["seed"]: [statistics.fmean(r["rewards"][part]) for part in (slice(10), slice(-10, None))]
            for r in records
            if r["credit"] == rule and "rewards" in r
        }
        for rule in rules
    }
    shown.add_row("reward", *(_change(ends[rule].values()) for rule in rules))
    base = ends.get(args.base, {})
    gaps = {rule: np.array([np.subtract(ends[rule][s], base[s]) for s in ends[rule].keys() & base]) for rule in rules}
    shown.add_row("Δ reward", *("" if rule == args.base else _change(gaps[rule], signed=True) for rule in rules))
    for name in COURSE:
        known = [record for record in records if name in record.get("course", {})]
        pairs = {rule: [r["course"][name] for r in known if r["credit"] == rule] for rule in rules}
        shown.add_row(name, *(_change(pairs[rule]) for rule in rules))
    Console(width=150).print(shown)


def _change(pairs, *, signed=False):
    """Return means before and after, with their intervals where there are three seeds or more."""
    columns = [list(values) if len(values) > 2 else [statistics.fmean(values)] for values in zip(*pairs, strict=True)]
    return " → ".join(_interval(values, signed=signed, digits=3) for values in columns)


def _cells(mine, base):
    cells = []
    for name in METRICS:
        values = [scores[name] for scores in mine.values()]
        cells.append(_interval(values))
    pairs = {name: [mine[s][name] - base[s][name] for s in sorted(mine.keys() & base.keys())] for name in METRICS}
    cells += [_interval(pairs[name], signed=True) for name in METRICS]
    spread = pairs["bleu"]
    cells.append(str(seeds_for(spread)) if len(spread) > 1 else "")
    return cells


def _interval(values, *, signed=False, digits=2):
    if not values:
        return ""
    shape = f"{'+' if signed else ''}.{digits}f"
    if len(values) == 1:
        return f"{values[0]:{shape}}"
    mean, half = mean_interval(values)
    return f"{mean:{shape}} ± {half:.{digits}f}"


def _reached(records, rules):
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


def items(args):
    """Append the greedy sentence BLEU of every test row under the last adapter of a past run (the start: none)."""
    torch.set_num_threads(args.threads)
    config = load_recipe(ROOT / "recipes/qa.yaml", [f"task=asterisk_{args.task}"])
    run = Path(run_directory(args.task, args.credit, args.seed, args.set))
    adapter, steps = None, 0
    if args.credit != "none":
        adapter, steps = run / "last", max(step["step"] for step in RunDirectory(run).lines("metrics.jsonl"))
    policy = Policy.load(resolve_model(config.model), adapter=adapter, dtype=config.dtype)
    rows = load(config.task, "test").to_list()
    _, bleu = scored(policy, config, rows, sampled=False)
    known = {"task": args.task, "credit": args.credit, "seed": args.seed, "steps": steps}
    append(ITEMS, known | ({} if args.set is None else {"set": args.set}) | {"bleu": bleu})


def repeats(args):
    """Print how far runs of the same rule and seed in two sets end apart, and the deviation of one run from that."""
    first, again = (
        {(r["credit"], r["seed"]): r for r in Chosen(args.task, args.steps, args.seeds, name).runs() if r["steps"]}
        for name in (None, args.set)
    )
    both = sorted(first.keys() & again.keys())
    for split in SPLITS:
        gaps = [again[key][split]["greedy"]["bleu"] - first[key][split]["greedy"]["bleu"] for key in both]
        shown = ", ".join(f"{rule} {seed}: {gap:+.2f}" for (rule, seed), gap in zip(both, gaps, strict=True))
        print(f"{args.task}, {split}, greedy BLEU of {args.set} minus that of the first runs: {shown}")
        if gaps:
            one = (statistics.fmean(gap**2 for gap in gaps) / 2) ** 0.5
            print(f"standard deviation of one run about its rule and seed: {one:.2f} ({len(gaps)} pairs)")
        every = {
            rule: [r[split]["greedy"]["bleu"] for runs in (first, again) for (its, _), r in runs.items() if its == rule]
            for rule in dict.fromkeys(rule for rule, _ in (*first, *again))
        }
        for rule, values in every.items():
            if len(values) < 2 or len(every[args.base]) < 2:
                continue
            print(f"{rule}: {_interval(values)} over all {len(values)} runs")
            if rule == args.base:
                continue
            mean, half = unpaired(values, every[args.base])
            print(f"  minus {args.base}, unpaired: {mean:+.2f} ± {half:.2f}")
            gaps = [
                r[split]["greedy"]["bleu"] - runs[args.base, seed][split]["greedy"]["bleu"]
                for runs in (first, again)
                for (its, seed), r in runs.items()
                if its == rule and (args.base, seed) in runs
            ]
            if len(gaps) > 1:
                shown = f"{_interval(gaps, signed=True)} ({len(gaps)} pairs; {seeds_for(gaps)} for ± 0.5)"
                print(f"  minus {args.base}, paired by set and seed: {shown}")


def unpaired(ours, theirs):
    """Return the difference of two means and its 95 % half-width (Welch; degrees of freedom rounded down)."""
    parts = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    difference, variance = statistics.fmean(ours) - statistics.fmean(theirs), sum(parts)
    if variance == 0.0:
        return difference, 0.0
    freedom = variance**2 / sum(part**2 / (len(v) - 1) for part, v in zip(parts, (ours, theirs), strict=True))
    return difference, student_quantile(0.95, int(freedom + 1e-9)) * variance**0.5


def forks(args):
    facts = [json.loads(line) for line in FORKS.read_text().splitlines()]
    facts = [r for r in facts if (r["task"], r.get("split"), r["checkpoint"]) == (args.task, "test", "start")]
    usable = {record["id"]: sum(fork[2] for fork in record["forks"]) for record in facts}
    print(f"{len(usable)} rows of the test split with a group of the starting model")
    for rule, gaps in _gaps(args):
        columns = ("usable boundaries", "rows", f"{rule} - {args.base}, rows as drawn", "seeds and rows as drawn")
        shown = Table(*columns, title=f"{args.task}, {len(next(iter(gaps.values())))} seeds")
        for name, chosen in [*((str(n), {n}) for n in sorted(set(usable.values()))), ("all", set(usable.values()))]:
            values = np.array([gaps[i] for i in usable if usable[i] in chosen])
            drawn = "{:+.2f} ({:+.2f} to {:+.2f})".format(*_bootstrap(values.mean(1)))
            both = "{:+.2f} ± {:.2f}".format(*crossed_interval(values.T)) if min(values.shape) > 1 else ""
            shown.add_row(name, str(len(values)), drawn, both)
        Console(width=110).print(shown)
        pair = np.array([[usable[i], statistics.fmean(gaps[i])] for i in usable])
        print("correlation {:+.3f} ({:+.3f} to {:+.3f})".format(*_bootstrap(pair, lambda x: np.corrcoef(x.T)[0, 1])))


def _bootstrap(rows, statistic=np.mean, rounds=4000):
    """Return a statistic of rows and its 95 % percentile interval."""
    generator = np.random.default_rng(0)
    drawn = [statistic(rows[generator.integers(len(rows), size=len(rows))]) for _ in range(rounds)]
    return statistic(rows), *np.percentile(drawn, [2.5, 97.5])


def figure(args):
    from vl_convert import vegalite_to_svg

    from leaf.report.curves import band

    records = [record for record in Chosen.of(args).runs() if record["credit"] in args.credits.split(",")]
    sampled, scores = [], []
    for rule in args.credits.split(","):
        mine = [record for record in records if record["credit"] == rule]
        curves = []
        for record in mine:
            size, width = record["completions_per_step"], max(1, len(record["rewards"]) // 10)
            ends = zip(*[iter(record["rewards"])] * width, strict=False)
            curves.append({width * size * (i + 1): statistics.fmean(rewards) for i, rewards in enumerate(ends)})
        shown = band(curves)
        sampled += [
            {"rule": rule, "completions": at, "reward": mean, "low": low, "high": high}
            for at, mean, low, high in zip(*(shown[k] for k in ("step", "value", "low", "high")), strict=True)
        ]
        scores += [
            {"rule": rule, "split": split, "seed": record["seed"], "score": record[split]["greedy"][args.metric]}
            for record in mine
            for split in SPLITS
            if split in record
        ]
    axis = {"scale": {"zero": False}}
    color = {"field": "rule", "scale": {"domain": args.credits.split(","), "range": COLORS}, "title": None}
    x = {"field": "completions", "type": "quantitative", "title": "completions sampled", **axis}
    curve = [
        {
            "mark": {"type": "area", "opacity": 0.2},
            "encoding": {"y": {"field": "low", "type": "quantitative", **axis}, "y2": {"field": "high"}},
        },
        {
            "mark": {"type": "line", "strokeWidth": 2.5},
            "encoding": {"y": {"field": "reward", "type": "quantitative", "title": "mean reward", **axis}},
        },
    ]
    panels = [{"data": {"values": sampled}, "encoding": {"x": x, "color": color}, "layer": curve, "width": 340}]
    for split in SPLITS:
        values = [score for score in scores if score["split"] == split]
        if not values:
            continue
        y = {"field": "score", "type": "quantitative", "title": f"{args.metric}, {split}, greedy", **axis}
        rules = {"field": "rule", "title": None, "sort": None, "axis": {"labelAngle": 0}}
        points = [
            {
                "mark": {"type": "line", "color": "#999", "strokeWidth": 1},
                "encoding": {"x": rules, "y": y, "detail": {"field": "seed"}},
            },
            {"mark": {"type": "point", "filled": True, "size": 60}, "encoding": {"x": rules, "y": y, "color": color}},
            {
                "mark": {"type": "tick", "size": 40, "thickness": 3},
                "encoding": {"x": rules, "y": {**y, "aggregate": "mean"}, "color": color},
            },
        ]
        panels.append({"data": {"values": values}, "layer": points, "width": 60 * len(args.credits.split(","))})
    config = {"background": "white", "view": {"stroke": None}, "axis": {"titleFontWeight": "normal"}}
    spec = {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", "hconcat": panels, "config": config}
    args.out.write_text(vegalite_to_svg(spec))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name, command in (
        ("run", run),
        ("search", search),
        ("table", table),
        ("figure", figure),
        ("items", items),
        ("repeats", repeats),
        ("forks", forks),
    ):
        one = commands.add_parser(name)
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
            one.add_argument("--steps", type=int, default=None, help="runs of this length; left out: of the longest")
            one.add_argument("--seeds", type=int, nargs="+", default=None, help="runs of these seeds; left out: of all")
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
