"""Train the embedded model on spoken QA from a server of vLLM and from its own sampler, and compare what was learned.

    python -m benchmarks.vllm_learning run [--seeds 5] [--steps 24] [--rate 4e-4]
    python -m benchmarks.vllm_learning table

Both ways have the same recipe, seeds, rows and steps, in float32 on both sides, so a pair of runs differs in who draws
and in its random numbers. The training rows are eight that the model answers badly: there a few steps show. All
adapters are scored by the local sampler, greedily, on validation rows. Every finished run is a line of
benchmarks/results/vllm_learning.jsonl, and `run` continues with what is missing, an unfinished run from its checkpoint.
"""

import argparse
import statistics
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch

from benchmarks.learning.runs import scored
from benchmarks.recipe import qa_recipe
from benchmarks.records import RESULTS, machine, read
from benchmarks.vllm_embedded import serving
from leaf.data import load
from leaf.evaluation.bootstrap import mean_interval
from leaf.files import append_row
from leaf.model.demo import resolve_model
from leaf.model.policy import Policy
from leaf.train.making import parts_from_recipe
from leaf.train.trainer import RLTrainer

FILE = RESULTS / "vllm_learning.jsonl"
LOOKED_AT, BADLY, ROWS = 60, 60.0, 8  # training rows that are tried; sentence BLEU of a bad answer; rows to train on
DIFFERENCE = "sampling/sampling_logp_difference/"


def recipe(args, seed: int, url: str | None):
    """Take the recipe of spoken QA, with a server where there is an address."""
    where = [] if url is None else ["sampler=vllm", f"sampler_options={{url: '{url}'}}"]
    name = f"runs/vllm-learning/{args.rate:g}-{args.steps}-{seed}-{'local' if url is None else 'vllm'}"
    given = [
        f"output_dir={name}",
        f"seed={seed}",
        "credit=leaf",
        "dtype=float32",
        "device=cpu",
        f"max_steps={args.steps}",
    ]
    given += [f"learning_rate={args.rate:g}", f"prompts_per_rollout={args.prompts}"]
    given += ["eval_every=0", "record_every=0", "save_every=6"]
    return qa_recipe(given + where)


def validation(config, args) -> list[dict]:
    return load(config.task, config.eval_split, limit=args.items).to_list()


def start(args) -> dict:
    """Score the embedded model before any step, and choose training rows."""
    config = recipe(args, 0, None)
    policy = Policy.load(resolve_model(config.model), dtype=config.dtype)
    rows = load(config.task, config.train_split, limit=LOOKED_AT).to_list()
    bleu = scored(policy, config, rows, sampled=False)[1]
    chosen = [row["id"] for row in rows if bleu[row["id"]] < BADLY][:ROWS]
    return {"sampler": "none", "rows": chosen} | scored(policy, config, validation(config, args), sampled=False)[0]


def one(args, seed: int, url: str | None, chosen: list[str]) -> dict:
    """Train with a seed from a server or, without its address, from the policy itself; return the record."""
    config = recipe(args, seed, url)
    parts = parts_from_recipe(config, None, None, print)
    rows = load(config.task, config.train_split, limit=LOOKED_AT).to_list()
    trainer = RLTrainer(**parts | {"train_rows": [row for row in rows if row["id"] in chosen], "eval_rows": None})
    run = trainer.train(resume_from_checkpoint=Path(f"{config.output_dir}/checkpoints").exists())
    steps = list(run.lines("metrics.jsonl"))
    record = {"sampler": config.sampler, "seed": seed, "steps": len(steps), "learning_rate": args.rate}
    record |= {"prompts_per_step": args.prompts, "completions": config.num_completions, "lora_r": config.lora_r}
    record["rewards"] = [round(step["reward_mean"], 4) for step in steps]
    for which in ("mean", "max"):
        if url is not None:
            record[f"difference_{which}"] = [float(f"{step[DIFFERENCE + which]:.3g}") for step in steps]
    record["seconds_per_step"] = round(statistics.median(step["seconds/step"] for step in steps), 1)
    record |= scored(trainer.policy, config, validation(config, args), sampled=False)[0]
    return record | {"machine": machine(torch.get_num_threads())}


def run(args) -> None:
    torch.set_num_threads(args.threads)
    with ExitStack() as stack:
        url = None
        if not read(FILE):
            append_row(FILE, start(args))
        known = {(one["sampler"], one.get("seed")) for one in read(FILE)}
        chosen = read(FILE)[0]["rows"]
        for seed in range(args.first, args.seeds):
            for sampler in ("local", "vllm"):
                if (sampler, seed) in known:
                    continue
                if sampler == "vllm" and url is None:
                    url = stack.enter_context(serving(recipe(args, 0, None))).url
                append_row(FILE, one(args, seed, url if sampler == "vllm" else None, chosen))
    table(args)


def table(args) -> None:
    """Print means over seeds of either sampler, and of the paired differences, with 95 % intervals over seeds."""
    records = read(FILE)
    by = {which: {one["seed"]: one for one in records if one["sampler"] == which} for which in ("local", "vllm")}
    seeds = sorted(by["local"].keys() & by["vllm"].keys())
    before = next(one for one in records if one["sampler"] == "none")["greedy"]
    print(f"{len(seeds)} pairs of runs; before: {before}")

    def third(one: dict, *, last: bool) -> float:
        rewards, part = one["rewards"], len(one["rewards"]) // 3
        return statistics.fmean(rewards[-part:] if last else rewards[:part])

    figures = {f"reward, {which} third": partial(third, last=which == "last") for which in ("first", "last")}
    figures |= {name: lambda one, name=name: one["greedy"][name] for name in before}
    for name, read_off in figures.items():
        ours, theirs = ([read_off(by[which][seed]) for seed in seeds] for which in ("vllm", "local"))
        shown = {"local": theirs, "vllm": ours, "vllm - local": [a - b for a, b in zip(ours, theirs, strict=True)]}
        print(name, {what: mean_interval(values) for what, values in shown.items()})
    for which in ("mean", "max"):
        largest = max(max(by["vllm"][seed][f"difference_{which}"]) for seed in seeds)
        print(f"largest {which} difference of a step: {largest}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--rate", type=float, default=4e-4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    {"run": run, "table": table}[args.command](args)


if __name__ == "__main__":
    main()
