"""Rollouts at the same cost: a study of tasks, methods, learning rates and seeds that may stop at any time.

For every task, each method first tries all rates (stage `search`, a seed of its own, scored on validation), and then
runs every seed at its best one (stage `seeds`, scored on both test splits). With the same seed all methods see the same
prompts in the same order. One run at a time is made, in a process of its own. A run that was stopped continues from its
last checkpoint.
"""

import re
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.learning.chosen import SPLITS
from benchmarks.recipe import task_recipe
from benchmarks.records import RESULTS, machine, read
from leaf.data import load
from leaf.data.fingerprint import rows_fingerprint
from leaf.errors import RunInterrupted
from leaf.evaluation.predict import Decoding, predict
from leaf.evaluation.registry import score
from leaf.files import append_row, replace_file
from leaf.model.demo import resolve_model
from leaf.model.policy import Policy, Prompt
from leaf.rewards.functions import built_in
from leaf.train.trainer import RLTrainer

STUDY = RESULTS / "study.jsonl"
TASKS = ("qa", "fr", "asr")
METHODS = {
    "grpo": ["credit=grpo"],
    "leaf": ["credit=leaf"],
    "unordered_set": ["rollout=distinct", "credit=unordered_set"],
    "rescaled_set": ["rollout=distinct", "credit=rescaled_set"],
    "grpo_k32": ["credit=grpo", "num_completions=32"],
    "shrunken": ["rollout=distinct", "credit=shrunken"],
    "distinct_leaf": ["rollout=distinct", "credit=leaf"],
    "distinct_tempo": ["rollout=distinct", "credit=tempo"],
}
DEFAULT_METHODS = ("grpo", "unordered_set", "leaf", "rescaled_set", "grpo_k32", "distinct_leaf")
RATES = (2e-4, 4e-4, 8e-4, 1.6e-3)
PASSES = range(42, 47)  # seeds of the sampled passes, which are at temperature 1 without top-p: the expected reward
STOPPED = 75  # how a run ends that a signal stopped
METRICS = {"asr": ("wer:normalise=basic", "exact_match")}
CURVES = {"rewards": ("reward_mean", 4), "seconds": ("seconds/step", 2), "tokens": ("tokens_decoded", 0)}
SUMS = ("completions", "tokens_decoded", "packed_tokens", "seconds/step", "seconds/sample", "seconds/update")
COURSE = ("zero_variance_groups", "entropy", "kl", "grad_norm", "set_mass", "different_completions", "length_mean")


@dataclass(frozen=True)
class Job:
    """One run: `stage` is start (no training), search or seeds."""

    task: str
    method: str
    stage: str
    rate: float
    seed: int
    steps: int
    overrides: tuple[str, ...] = ()

    @classmethod
    def of(cls, record):
        """Read which job a record is of."""
        return cls(**{name: record[name] for name in _NAMED}, overrides=tuple(record["overrides"]))

    @property
    def directory(self):
        """Name the run directory; a hyphen stands for whatever does not belong in a path."""
        parts = (self.task, self.method, self.stage, f"{self.rate:g}", self.seed, self.steps, *self.overrides)
        return "runs/study/" + re.sub(r"[^0-9A-Za-z_.]+", "-", " ".join(map(str, parts)))

    @property
    def arguments(self):
        """Write the job as the arguments of the command `job`."""
        words = [word for name in _NAMED for word in (f"--{name}", str(getattr(self, name)))]
        return [*words, "--overrides", *self.overrides]


_NAMED = ("task", "method", "stage", "rate", "seed", "steps")


def plan(args, records):
    """List the jobs that can be named so far: those of a task's stage `seeds` need all of its searches.

    Args:
        args: tasks, methods, rates, seeds, search_seeds, steps, search_steps and overrides.
        records: what was measured.
    """
    overrides, jobs = tuple(args.overrides), []
    done = {Job.of(record): record for record in records}
    for task in args.tasks:
        jobs.append(Job(task, "none", "start", 0.0, 0, 0, overrides))
        searches = {
            method: [
                Job(task, method, "search", rate, seed, args.search_steps, overrides)
                for rate in args.rates
                for seed in args.search_seeds
            ]
            for method in args.methods
        }
        if len(args.rates) > 1:
            jobs += [job for jobs_of_rate in zip(*searches.values(), strict=True) for job in jobs_of_rate]
        rates = {method: best_rate(args.rates, mine, done) for method, mine in searches.items()}
        jobs += [
            Job(task, method, "seeds", rate, seed, args.steps, overrides)
            for seed in args.seeds
            for method, rate in rates.items()
            if rate is not None
        ]
    return jobs


def best_rate(rates, searches, done):
    """Choose the rate of the greatest expected reward on validation over the search seeds; None if too early."""
    if len(rates) == 1:
        return rates[0]
    if not all(job in done for job in searches):
        return None

    def expected(rate):
        return statistics.fmean(done[job]["validation"]["expected_reward"] for job in searches if job.rate == rate)

    return max(rates, key=expected)


def study(args):
    """Make the runs that are missing, one after the other, each within its time; repeat the command to continue."""
    ends = time.monotonic() + args.minutes * 60 if args.minutes else None
    given_up = set()
    while True:
        records = read(args.out)
        done = {Job.of(record) for record in records}
        missing = [job for job in plan(args, records) if job not in done]
        job = next((job for job in missing if job not in given_up), None)
        if job is None:
            break
        left = args.minutes_per_run * 60 if ends is None else min(args.minutes_per_run * 60, ends - time.monotonic())
        if left <= 0:
            print(f"the time is over, and {len(missing)} runs are missing; repeat the command to continue", flush=True)
            return
        print(time.strftime("%H:%M"), job.task, job.stage, job.method, f"{job.rate:g}", f"seed {job.seed}", flush=True)
        began = time.monotonic()
        code = run_job(job, args, left)
        took = time.monotonic() - began
        if code != 0:
            given_up.add(job)
            why = "stopped, and the next command continues it" if code == STOPPED else f"exit code {code}"
            print(f"  {took:.0f} s, not finished: {why}; see {job.directory}.log", flush=True)
        else:
            print(f"  {took:.0f} s", flush=True)
    if given_up:
        print(f"{len(given_up)} runs were not finished; repeat the command to continue them", flush=True)
    else:
        print(f"all runs are in {args.out}", flush=True)


def run_job(job, args, seconds):
    """Make one run in a process of its own and return its exit code; it is asked to stop when its time is over."""
    command = [sys.executable, "-m", "benchmarks.learning", "job", *job.arguments]
    command += ["--out", str(args.out), "--threads", str(args.threads)]
    command += [] if args.items is None else ["--items", str(args.items)]
    log = Path(job.directory + ".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as said:
        child = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)

        def stop(number, frame):
            raise _AskedToStop

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return child.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGTERM)
            return child.wait() and STOPPED
        except _AskedToStop:
            child.send_signal(signal.SIGTERM)
            child.wait()
            sys.exit(STOPPED)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _AskedToStop(Exception):
    """Leaves the wait for a run; the handler of a signal may not wait itself."""


def job(args):
    """Train and score one run of the study, and append its record."""
    one = Job(args.task, args.method, args.stage, args.rate, args.seed, args.steps, tuple(args.overrides))
    torch.set_num_threads(args.threads)
    # Between updates a run stops where nothing is half done. Before and after training there is nothing to save.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(STOPPED))
    try:
        record, policy, config = trained(one, args.threads)
    except RunInterrupted as stopped:
        print(stopped)
        sys.exit(STOPPED)
    began = time.monotonic()
    for split in {"search": (config.eval_split,), "seeds": SPLITS, "start": (config.eval_split, *SPLITS)}[one.stage]:
        rows = load(config.task, split, limit=args.items).to_list()
        embed_once(policy, rows, Path(Job(one.task, "embedded", split, 0.0, 0, 0, one.overrides).directory + ".pt"))
        record["validation" if split == config.eval_split else split] = scored(policy, config, one.task, rows)
    record["seconds_scoring"] = round(time.monotonic() - began, 1)
    append_row(args.out, record)


def trained(one, threads):
    """Train a run, or load the model as it starts; return its record, policy and config."""
    record = {**vars(one), "machine": machine(threads)}
    given = [f"output_dir={one.directory}", f"seed={one.seed}", "record_every=0", "keep_checkpoints=1", "save_every=10"]
    given += ["eval_every=0", *METHODS.get(one.method, []), *one.overrides]
    if one.stage == "start":
        config = task_recipe(one.task, given)
        return record, Policy.load(resolve_model(config.model), dtype=config.dtype), config
    config = task_recipe(one.task, [*given, f"learning_rate={one.rate}", f"max_steps={one.steps}"])
    trainer = RLTrainer.from_recipe(config)
    directory = trainer.train(resume_from_checkpoint=Path(config.output_dir or "").exists())
    steps = list(directory.lines("metrics.jsonl"))
    for name, (field, digits) in CURVES.items():
        record[name] = [None if step[field] is None else round(step[field], digits) for step in steps]
    record["sums"] = {name: round(sum(step[name] for step in steps), 1) for name in SUMS}
    record["course"] = {
        name: [statistics.fmean(values) for values in (known[:10], known[-10:])]
        for name in COURSE
        if (known := [step[name] for step in steps if step.get(name) is not None])
    }
    return record, trainer.policy, config


def embed_once(policy, rows, kept):
    """Let the policy take a split's embedded prompts from a file, which the first run writes: no run trains the tower.

    Embedding is a third of the scoring, and the same in every run.
    """
    mark = rows_fingerprint(rows)
    if not kept.exists() or (known := torch.load(kept, weights_only=True))["rows"] != mark:
        made = [prompt for at in range(0, len(rows), 48) for prompt in Policy.embed(policy, rows[at : at + 48])]
        prompts = {row["id"]: (one.embeddings, one.is_audio) for row, one in zip(rows, made, strict=True)}
        known = {"rows": mark, "prompts": prompts}
        replace_file(kept, lambda path: torch.save(known, path))
    policy.embed = lambda batch: [Prompt(*known["prompts"][row["id"]]) for row in batch]


def scored(policy, config, task, rows):
    """Score greedily and in five sampled passes; the expected reward is the mean over the sampled ones."""
    decoding = Decoding(
        max_new_tokens=config.max_new_tokens, batch_size=48, seeds=(None, *PASSES), temperature=1.0, top_p=1.0
    )
    references = [row["reference"] for row in rows]
    (name,) = config.rewards
    reward = built_in(name, **config.reward_options.get(name, {}))
    metrics = METRICS.get(task, ("bleu", "exact_match", "chrf"))
    passes = []
    for said in predict(policy, rows, decoding):
        texts = [one.text for one in said]
        found = {name: one.value for name, one in score(texts, references, metrics).items()}
        passes.append({"reward": statistics.fmean(reward(texts, references)), **found})
    sampled = {name: statistics.fmean(one[name] for one in passes[1:]) for name in passes[0]}
    return {"items": len(rows), "greedy": passes[0], "sampled": sampled, "expected_reward": sampled["reward"]}
