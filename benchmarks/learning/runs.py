"""Train and score: one run, a search of learning rates, and the test rows of a past run."""

import re
import statistics
from pathlib import Path
from typing import cast

import torch

from benchmarks.learning.chosen import ITEMS, METRICS, RUNS
from benchmarks.recipe import qa_recipe
from benchmarks.records import RESULTS, machine
from leaf.data import load
from leaf.evaluation.predict import Decoding, predict
from leaf.evaluation.registry import score
from leaf.files import append_row
from leaf.model.demo import resolve_model
from leaf.model.policy import Policy
from leaf.rewards.functions import REWARDS
from leaf.runs.directory import RunDirectory
from leaf.train.trainer import RLTrainer

SEARCH = RESULTS / "learning_search.jsonl"
PASSES = range(42, 47)  # seeds of the sampled passes
RATES = (1e-4, 2e-4, 4e-4, 8e-4)
SEARCH_SEED = 100  # not among the seeds that are reported
COURSE = ("zero_variance_groups", "tokens_shared", "fork_fire_rate", "usable_fork_rate", "length_mean", "grad_norm")
COURSE += ("kl", *(f"credit_mass/{fifth}" for fifth in range(5)))


def train(task, credit, seed, threads, overrides, name=None, group=None):
    """Train one run, or load the starting checkpoint for credit "none"; return its record, policy and config.

    `name` is what the record calls the rule, `group` the set that the run belongs to.
    """
    torch.set_num_threads(threads)
    name = name or credit
    record = {"task": task, "credit": name, "seed": seed, "steps": 0, "overrides": overrides}
    record |= {} if group is None else {"set": group}
    record["machine"] = machine(threads)
    given = [f"task=asterisk_{task}", f"output_dir={run_directory(task, name, seed, group)}", f"seed={seed}"]
    given += [] if credit == "none" else [f"credit={credit}"]
    config = qa_recipe(given + overrides)
    if credit == "none":
        return record, Policy.load(resolve_model(config.model), dtype=config.dtype), config
    trainer = RLTrainer.from_recipe(config)
    directory = trainer.train(resume_from_checkpoint=Path(f"{config.output_dir}/checkpoints").exists())
    steps = list(directory.lines("metrics.jsonl"))
    record["steps"] = trainer.length.steps
    record["completions_per_step"] = config.prompts_per_rollout * config.num_completions
    record["rewards"] = [round(step["reward_mean"], 4) for step in steps]
    record["course"] = course(steps)
    record["validation"] = list(directory.lines("validation.jsonl"))
    record["seconds_per_step"] = statistics.median(step["seconds/step"] for step in steps)
    return record, trainer.policy, config


def run_directory(task, name, seed, group=None):
    """Name the directory of a run; a hyphen stands for whatever does not belong in a path."""
    return "runs/learning/" + re.sub(r"[^0-9A-Za-z_.]+", "-", f"{group or ''} {task} {name} {seed}".strip())


def course(steps):
    """Average every name of COURSE over the first and over the last ten steps."""
    both = {}
    for name in COURSE:
        values = [step[name] for step in steps if step.get(name) is not None]
        if values:  # a run without divergence has no kl
            both[name] = [round(statistics.fmean(part), 4) for part in (values[:10], values[-10:])]
    return both


def scored(policy, config, rows, *, sampled):
    """Score greedily, with `sampled` in five sampled passes too; return scores, and greedy sentence BLEU by row.

    All passes share a row's audio and prompt.
    """
    seeds = (None, *PASSES) if sampled else (None,)
    passes = predict(policy, rows, Decoding(max_new_tokens=config.max_new_tokens, batch_size=48, seeds=seeds))
    references = [row["reference"] for row in rows]
    values = [
        {name: one.value for name, one in score([one.text for one in said], references, METRICS).items()}
        | {"truncated": statistics.fmean(bool(one.truncated) for one in said)}
        for said in passes
    ]
    scores = {"items": len(rows), "greedy": values[0]}
    if sampled:
        scores["sampled"] = {name: statistics.fmean(one[name] for one in values[1:]) for name in values[0]}
    bleu = cast(list[float], REWARDS["bleu"]([one.text for one in passes[0]], references))
    return scores, {row["id"]: round(100 * value, 1) for row, value in zip(rows, bleu, strict=True)}


def run(args):
    """Train one rule with one seed and score it on the test splits."""
    record, policy, config = train(args.task, args.credit, args.seed, args.threads, args.overrides, args.name, args.set)
    for split in args.splits.split(","):
        rows = load(config.task, split, limit=args.items).to_list()
        record[split], bleu = scored(policy, config, rows, sampled=split in args.sampled.split(","))
        if split == "test":
            known = {key: record[key] for key in ("task", "credit", "seed", "steps", "set") if key in record}
            append_row(ITEMS, known | {"bleu": bleu})
        print(args.task, record["credit"], args.seed, split, record[split], flush=True)
    append_row(RUNS, record)


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
            append_row(SEARCH, record)


def items(args):
    """Record the greedy sentence BLEU of every test row under the last adapter of a past run (of the start: none)."""
    torch.set_num_threads(args.threads)
    config = qa_recipe([f"task=asterisk_{args.task}"])
    path = Path(run_directory(args.task, args.credit, args.seed, args.set))
    adapter, steps = None, 0
    if args.credit != "none":
        adapter, steps = path / "last", max(step["step"] for step in RunDirectory(path).lines("metrics.jsonl"))
    policy = Policy.load(resolve_model(config.model), adapter=adapter, dtype=config.dtype)
    rows = load(config.task, "test").to_list()
    _, bleu = scored(policy, config, rows, sampled=False)
    known = {"task": args.task, "credit": args.credit, "seed": args.seed, "steps": steps}
    append_row(ITEMS, known | ({} if args.set is None else {"set": args.set}) | {"bleu": bleu})
