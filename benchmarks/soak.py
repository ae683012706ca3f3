"""Train a tiny model for thousands of steps while everything that can go wrong does, and check what is left.

    python -m benchmarks.soak [--steps 2000] [--kills 12] [--minutes 30] [--seed 0] [--folder runs/soak]

Faults (benchmarks/soak_faults.py): reward functions that raise, return NaN, None, a string or too few values; NaN
in loss or gradient; an allocation of 64 TiB in the update's forward, which the allocator refuses; six recordings of 120
that are garbage, empty, silent, NaN, cut off or 0.01 s long; and SIGKILL at random moments of the first half, each time
followed by the same `leaf train ... --resume`. The second half runs in one process, to see its memory.

Checked: the run finishes; every step is recorded once; every fault of the plan was met and survived; all weights are
finite; peak memory per step stays within 5 % from step 100 of the last process on. Results go to
benchmarks/results/soak.json.
"""

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.records import RESULTS, ROOT, machine, read
from benchmarks.soak_faults import fault_of
from leaf.data.rows import batch_indices
from tests.helpers import tiny

ROWS, COMPLETIONS, PROMPTS = 120, 4, 2
BROKEN = (7, 23, 44, 61, 88, 119)
WINDOW = 100  # steps over which memory is averaged


def prepare(folder, steps, seed):
    """Write model, recordings, manifest and recipe."""
    model, processor = tiny.tiny_model()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    draw = np.random.default_rng(seed)
    lines = []
    for i in range(ROWS + 6):
        time_axis = np.arange(16000 * (2 + i % 3) // 4) / 16000
        wave = 0.3 * np.sin(2 * np.pi * (200 + 10 * i) * time_axis) + 0.01 * draw.normal(size=len(time_axis))
        soundfile.write(folder / f"{i}.wav", wave, 16000)
        row = {"prompt": tiny.TEXTS[i % 4], "audio": f"{i}.wav", "reference": tiny.TEXTS[(i + 1) % 4]}
        lines.append(json.dumps(row | {"split": "train" if i < ROWS else "validation"}))
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    garbage, empty, silent, nan, cut, short = (folder / f"{i}.wav" for i in BROKEN)
    garbage.write_bytes(draw.bytes(5000))
    empty.write_bytes(b"")
    soundfile.write(silent, np.zeros(16000), 16000)
    soundfile.write(nan, np.full(16000, np.nan), 16000, subtype="FLOAT")
    cut.write_bytes(cut.read_bytes()[:30])
    soundfile.write(short, np.full(160, 0.1), 16000)
    recipe = {
        "model": "model",
        "task": "data.jsonl",
        "device": "cpu",
        "output_dir": "run",
        "seed": seed,
        "max_steps": steps,
        "plugins": [str(ROOT / "benchmarks/soak_faults.py")],
        "rewards": [f"{ROOT / 'benchmarks/soak_faults.py'}:vowels"],
        "tolerate": "skip",
        "prompts_per_rollout": PROMPTS,
        "num_completions": COMPLETIONS,
        "max_new_tokens": 12,
        "lora_r": 4,
        "learning_rate": 1.0e-4,
        "token_budget": 512,
        "save_every": 10,
        "eval_every": 100,
        "eval_items": 4,
        "record_every": 50,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def last_step(folder):
    """Return the last step recorded, 0 for none."""
    file = folder / "run/metrics.jsonl"
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    return json.loads(whole[-1])["step"] if whole else 0


def run(folder, steps, kills, seconds, seed):
    """Train with `--resume` until it ends, killed on the way; return exit code, steps at kills, step of last start."""
    draw = random.Random(f"{seed}/kills")
    at = sorted(draw.sample(range(2, steps // 2), kills))
    killed, began = [], time.perf_counter()
    with (folder / "log.txt").open("wb") as log:
        while True:
            command = [sys.executable, "-m", "leaf", "train", "recipe.yaml", "--resume"]
            child = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
            started = last_step(folder)
            try:
                while child.poll() is None:
                    time.sleep(0.05)
                    if time.perf_counter() - began > seconds:
                        return None, killed, started
                    if len(killed) < kills and last_step(folder) >= at[len(killed)]:
                        time.sleep(draw.uniform(0, 0.5))  # anywhere in a step or a save
                        child.kill()
                        killed.append(last_step(folder))
                        child.wait()
                        break
                else:
                    return child.returncode, killed, started
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()


def expected(steps, seed):
    """Return how often each fault meets `steps` steps, and what metrics.jsonl has to add up to."""
    faults = Counter(fault_of(seed, step, steps) for step in range(1, steps + 1))
    del faults[None]
    size = PROMPTS * COMPLETIONS
    whole = sum(faults[name] for name in ("reward raises", "reward returns one value too few"))
    single = faults["reward returns a string"]
    bad = sum(sum(i in BROKEN for i in batch_indices(ROWS, PROMPTS, step, seed)) for step in range(steps))
    sums = {
        "skipped_steps": faults["NaN in the loss"] + faults["NaN in the gradient"],
        "reward_errors": whole * size + single,
        "unscored": whole * size + single + faults["reward returns NaN"] + faults["reward returns None"],
        "bad_audio": bad,
    }
    faults["recording broken"] = bad
    return dict(faults), sums


def examine(folder, steps, seed, resumed):
    """Return what the finished run shows: checks by name, sums, and memory per window of the last process."""
    records = read(folder / "run/metrics.jsonl")
    done = len(records)
    faults, wanted = expected(steps, seed)
    sums = {name: sum(record[name] for record in records) for name in wanted}
    tensors = {name: tensor for file in folder.glob("run/**/*.safetensors") for name, tensor in load_file(file).items()}
    budgets = [512, *(record["token_budget"] for record in records)]
    peaks = [record["memory/peak_gb"] for record in records if record["step"] > resumed + WINDOW]
    windows = [statistics.median(peaks[i : i + WINDOW]) for i in range(0, len(peaks) - WINDOW + 1, WINDOW)]
    checks = {
        "every step once": [record["step"] for record in records] == list(range(1, steps + 1)),
        "faults met as planned": sums == wanted,
        "weights finite": all(
            bool(tensor.isfinite().all()) for tensor in tensors.values() if tensor.is_floating_point()
        ),
        "memory flat": bool(windows) and max(windows) <= 1.05 * windows[0] and min(windows) >= 0.95 * windows[0],
        "a smaller budget after each shortage": sorted(set(budgets), reverse=True) == list(dict.fromkeys(budgets))
        and len(set(budgets)) == 1 + faults["memory runs out"],
    }
    return {
        "steps": done,
        "checks": checks,
        "faults": faults,
        "sums": sums,
        "wanted": wanted,
        "peak_gb": windows,
        "budgets": list(dict.fromkeys(budgets)),
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=ROOT / "runs/soak")
    args = parser.parse_args()
    torch.set_num_threads(1)
    shutil.rmtree(args.folder, ignore_errors=True)
    args.folder.mkdir(parents=True)
    folder = args.folder.resolve()
    prepare(folder, args.steps, args.seed)
    began = time.perf_counter()
    code, killed, resumed = run(folder, args.steps, args.kills, 60 * args.minutes, args.seed)
    result = {
        "machine": machine(torch.get_num_threads()),
        "minutes": round((time.perf_counter() - began) / 60, 1),
        "exit code": code,
        "killed after steps": killed,
        "last process began at step": resumed,
        **examine(folder, args.steps, args.seed, resumed),
    }
    result["checks"]["finished"] = code == 0
    (RESULTS / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    sys.exit(0 if all(result["checks"].values()) else 1)


if __name__ == "__main__":
    main()
