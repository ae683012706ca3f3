"""Time one GRPO/LEAF training step done four ways: same weights, same prompts, and (a to c) the same tokens.

    python -m benchmarks.step [--prompt-tokens 100 300 750] [--completions 4 8 16 32] [--lengths 24 50] [--resume]

Every prompt has exactly P tokens: recorded speech (25 tokens per second), an instruction and filler text. Every
completion has exactly R tokens: an end token ends nothing. One step is N prompts with K completions each, sampled at
temperature 1 from the whole vocabulary, a reference forward and one optimiser step of LoRA (learning rate 0, so that
the weights stay) with the clipped loss and the k3 divergence. Rewards are random numbers: scoring texts is in no arm's
time. No arm uses gradient checkpointing.

a leaf       Prompts embedded once (processor, audio encoder, projector) and prefilled once, K completions decoded. The
             prefix tree and LEAF's credit. One tree-packed reference forward, then packed forward and backward in
             micro-batches of `--token-budget` tokens, as `LeafTrainer` does on-policy.
b stock      `generate(num_return_sequences=K)` with the audio. Then per prompt a batch of K copies, audio included:
             reference forward, forward and backward, logits at the completion's positions only. The processor runs
             once; its tensors serve sampling and update. A step is sampler plus update: its credit is not counted.
             peft as it comes: float32 adapters on inputs cast to float32 (leaf's policy may compute them otherwise).
c published  As b, but one completion per micro-batch: K reference forwards, K forwards and backwards per prompt. Its
             sampler is b's and is not run again.
d trl        `trl.GRPOTrainer` on the language model alone (the same tensors, the same adapter), a text prompt of P
             tokens, no audio, so d does less work than the others. Micro-batch K, N accumulated, beta above 0, other
             settings at their defaults (bf16 autocast with bfloat16 weights) but for gradient checkpointing, off.
             Its sampler is what passes in `_generate`; its update lasts from there to the end of the optimiser step.

The update of b and c runs on the tokens and advantages of a; the gradients of all three are compared.

Times: a first run of every arm, then `--repeats` rounds in which the arms take turns; medians with range. An arm whose
first run takes longer than `--slow` seconds is not run again; its first run then counts (`runs` in the record).
`busy` is the least share of its wall time that an arm computed, per thread: well below 1, others used the machine.
Peak memory: the first run's peak above what was in use just before the sampler, the update or the step. On the CPU it
is the resident high-water mark, reset through /proc/self/clear_refs after malloc_trim, so it includes what the
allocator wastes; on CUDA it is the peak of PyTorch's allocator.

Floors of a's update and step: see FLOOR in floor.py, and for `--profile` PROFILED in profile.py; both are written to
the results. Larger groups: `--prompt-tokens 300 --completions 64 --lengths 24 --arms leaf published`.
"""

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from benchmarks.records import RESULTS
from benchmarks.step.bench import ARMS, SHAPES, Cell, make_bench
from benchmarks.step.cells import run_cell
from benchmarks.step.floor import FLOOR
from benchmarks.step.profile import PROFILED, profile_update
from benchmarks.step.prompts import make_rows
from benchmarks.step.tables import key, tables


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="demo, base or a checkpoint of AudioFlamingo3")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="language model of this shape with random weights")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[100, 300, 750], help="P")
    parser.add_argument("--completions", type=int, nargs="+", default=[4, 8, 16, 32], help="K")
    parser.add_argument("--lengths", type=int, nargs="+", default=[24, 50], help="R")
    parser.add_argument("--prompts", type=int, default=4, help="N, prompts per step")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds after the first run")
    parser.add_argument("--slow", type=float, default=300.0, help="seconds of a first run beyond which it is the only")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16, help="of the adapter; alpha is twice that")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--token-budget", type=int, default=2048, help="padded tokens of one packed forward (arm a)")
    parser.add_argument("--memory-limit", type=float, default=12.0, help="GB an arm may need above the weights")
    parser.add_argument("--peak-tflops", type=float, help="of the device: also report the share of it that is used")
    parser.add_argument("--profile", action="store_true", help="also say where leaf's update spends its time")
    parser.add_argument("--output", type=Path, default=RESULTS / "step.json")
    parser.add_argument("--resume", action="store_true", help="keep the cells of the output file")
    args = parser.parse_args()
    args.arms = [arm for arm in ARMS if arm in args.arms]
    return args


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return what must be equal for cells to stand in one file."""
    names = (
        "model",
        "shape",
        "prompts",
        "dtype",
        "device",
        "threads",
        "rank",
        "top_p",
        "token_budget",
        "repeats",
        "slow",
        "memory_limit",
        "peak_tflops",
    )
    where = torch.cuda.get_device_name() if torch.device(args.device).type == "cuda" else platform.machine()
    return {name: getattr(args, name) for name in names} | {"machine": where, "torch": torch.__version__}


def _finished(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the cells of an earlier run of the same settings."""
    if not args.resume or not args.output.exists():
        return []
    earlier = json.loads(args.output.read_text(encoding="utf-8"))
    if earlier["settings"] != settings(args):
        raise SystemExit(f"{args.output} holds other settings: {earlier['settings']}. Name another --output.")
    return earlier["cells"]


def _write(args: argparse.Namespace, cells: list[dict[str, Any]]) -> None:
    result = {"settings": settings(args), "floor": FLOOR, "profile": PROFILED, "cells": cells}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    new = args.output.with_suffix(".part")
    new.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    new.replace(args.output)


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    cells = _finished(args)
    done = {tuple(key(cell)) for cell in cells if set(args.arms) <= cell["arms"].keys()}
    bench = make_bench(args)
    grid = [Cell(p, k, r) for r in args.lengths for p in args.prompt_tokens for k in args.completions]
    for cell in grid:
        if tuple(key(asdict(cell))) in done:
            continue
        print(f"{cell}", flush=True)
        record = run_cell(bench, cell)
        if args.profile:
            record["profile"] = profile_update(bench, cell, make_rows(bench, cell.prompt_tokens))
        cells = [old for old in cells if key(old) != key(record)] + [record]
        _write(args, cells)
    print(tables(cells))


if __name__ == "__main__":
    main()
