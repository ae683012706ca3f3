"""Time the sampler: the same completions from decoders that keep their caches differently, in one process and in turns.

    python -m benchmarks.decoding [--cells 300,8,24 100,32,100] [--distinct 300,8,24] [--validation 100]

A cell is P, K, R: prompts of P tokens, K completions of R tokens each, which no end token ends. `--distinct` draws
completions without replacement, `--validation` answers rows of spoken QA greedily, 48 at once, as a run's validation
does. Prompts are embedded beforehand, but for validation.

paths   what leaf uses: each prompt's keys and values once, and each row's own path behind it
rows    a cache for each row, prompt included, with transformers' own masks and cache
before  the decoder of a file that `--before` names, such as `git show COMMIT:src/leaf/model/decoding.py` writes; its
        `TreeDecoder` is taken. Everything else is today's.

Seconds are CPU seconds of all threads: a first run, which also takes the peak of memory above what was in use (see
benchmarks.step), then `--rounds` rounds in turns. An arm whose first run takes over `--slow` seconds is not run again.
`rows_a_step` is how many prefixes are decoded at once, on average; `calls` counts torch's operations in a step at half
of the length.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.utils import logging

from benchmarks.records import RESULTS, machine
from benchmarks.step.bench import Bench, Meter, make_bench, summary
from benchmarks.step.prompts import make_rows
from leaf.data import load
from leaf.evaluation.predict import Decoding, predict
from leaf.model import distinct, sampling
from leaf.model.decoding import Decoder, PathDecoder, RowDecoder
from leaf.model.draws import step_generator

FILE = RESULTS / "decoding.json"
Make = Callable[..., Any]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="*", default=["300,8,24", "100,8,50", "300,64,24", "100,32,100"])
    parser.add_argument("--distinct", nargs="*", default=[])
    parser.add_argument("--validation", type=int, default=0, help="rows of spoken QA that are answered")
    parser.add_argument("--arms", nargs="+", choices=("paths", "rows", "before"), default=["paths", "rows"])
    parser.add_argument("--before", type=Path, help="a file with a TreeDecoder")
    parser.add_argument("--prompts", type=int, default=2)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--slow", type=float, default=60.0)
    parser.add_argument("--output", type=Path, default=FILE)
    return parser.parse_args()


def arms(args: argparse.Namespace) -> dict[str, Make]:
    """Return the decoders to compare."""
    made: dict[str, Make] = {"paths": PathDecoder, "rows": RowDecoder}
    if "before" in args.arms:
        spec = importlib.util.spec_from_file_location("before", args.before)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["before"] = module
        spec.loader.exec_module(module)
        made["before"] = module.TreeDecoder
    return {name: made[name] for name in args.arms}


class Calls(TorchDispatchMode):
    """Count torch's operations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class Watched:
    """A decoder that counts its rows, and the operations of one of its steps."""

    kept = entered = ()  # nothing is kept for an update

    def __init__(self, inner: Decoder, half: int):
        self.inner, self.half, self.rows, self.calls = inner, half, [], 0

    def start(self) -> torch.Tensor:
        return self.inner.start()

    def advance(self, parent: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        self.rows.append(len(parent))
        if len(self.rows) != self.half:
            return self.inner.advance(parent, token)
        with Calls() as counted:
            logits = self.inner.advance(parent, token)
        self.calls = counted.count
        return logits


def compare(args: argparse.Namespace, made: dict[str, Make], length: int, action: Callable[[], Any]) -> dict[str, Any]:
    """Run an action with every decoder in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in made}
    found: dict[str, dict[str, Any]] = {}
    first: Any = None
    for number in range(args.rounds + 1):
        for name in list(made) if number % 2 == 0 else list(made)[::-1]:
            if number and seconds[name][0] > args.slow:
                continue
            watched: list[Watched] = []

            half = max(length // 2, 1) if number == 0 else 0

            def decoder(
                policy: Any, prompts: Any, *, make=made[name], half=half, watched=watched, **options: Any
            ) -> Watched:
                watched.append(Watched(make(policy, prompts), half))
                return watched[-1]

            sampling.decoder = distinct.decoder = decoder
            meter = Meter(torch.device("cpu"), memory=number == 0)
            with meter.phase("sample"):
                result = action()
            seconds[name].append(meter.computed)
            print(f"  {name} {meter.computed:.2f} s", flush=True)
            if number == 0:
                first = result if first is None else first
                rows = [count for one in watched for count in one.rows]
                found[name] = {
                    "peak_mb": round(meter.peak["sample"] / 1e6, 1),
                    "calls": watched[0].calls,
                    "rows_a_step": round(sum(rows) / max(len(rows), 1), 1),
                    "same_as_first": result == first,
                }
    for name, taken in seconds.items():
        found[name] |= {"cpu_s": summary(taken[1:] or taken), "runs": len(taken)}
    return found


def cell_of(bench: Bench, text: str, *, without_replacement: bool) -> tuple[int, Callable[[], Any]]:
    """Return the length of a cell's completions, and what draws them."""
    size, completions, length = map(int, text.split(","))
    policy = bench.policy
    prompts = policy.embed(make_rows(bench, size))
    limits: dict[str, Any] = {"num_completions": completions, "max_new_tokens": length}

    def draw() -> list[Any]:
        if without_replacement:
            generators = [step_generator(0, i) for i in range(len(prompts))]
            groups = distinct.sample_distinct(policy, prompts, generators, **limits)
        else:
            groups = sampling.sample(policy, prompts, generator=step_generator(0, 0), **limits)
        return [group.tokens.tolist() for group in groups]

    return length, draw


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    made = arms(args)
    shared = {"model": "demo", "shape": None, "rank": 16, "token_budget": 768, "device": "cpu"}
    bench = make_bench(argparse.Namespace(**shared, dtype=args.dtype, prompts=args.prompts))
    ends = bench.base.generation_config.eos_token_id
    work = [(text, False) for text in args.cells] + [(text, True) for text in args.distinct]
    records = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else []

    def keep(**record: Any) -> None:
        record |= {"dtype": args.dtype, "prompts": args.prompts, "machine": machine(1)}
        records.append(record)
        args.output.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")

    _, warm = cell_of(bench, "50,2,3", without_replacement=False)
    for make in made.values():  # what a process takes once is in no arm's memory
        sampling.decoder = lambda policy, prompts, make=make, **options: Watched(make(policy, prompts), 0)
        warm()
    for text, without in work:
        print(f"{text} {'distinct' if without else 'independent'} {args.dtype}", flush=True)
        length, draw = cell_of(bench, text, without_replacement=without)
        keep(cell=text, distinct=without, arms=compare(args, made, length, draw))
    if args.validation:
        bench.policy.eos_token_ids = tuple(ends) if isinstance(ends, list) else (ends,)
        rows = list(load("asterisk_qa", "validation", limit=args.validation))
        decoding = Decoding(greedy=True, max_new_tokens=48, batch_size=48, seeds=(None,))
        print(f"validation of {len(rows)} rows {args.dtype}", flush=True)
        answers = compare(args, made, 8, lambda: [said.text for said in predict(bench.policy, rows, decoding)[0]])
        keep(validation=len(rows), arms=answers)


if __name__ == "__main__":
    main()
