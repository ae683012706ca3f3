"""Try leaf on one GPU of a bare machine: Python 3.12, torch, transformers, accelerate, safetensors, and no network.

    make gpu-wheels                                                    # here: what is missing there, 3 MB
    python -m pip install --no-deps --no-index build/gpu-wheels/*.whl  # there
    PYTHONPATH=src:. python -m benchmarks.gpu                          # there; writes benchmarks/results/gpu.json
    python -m benchmarks.gpu --table                                   # the record as markdown

Weights are random and made on the spot. The parts, each in a process of its own with its own bound on time:

equality     Every family on its tiny model, float32 and bfloat16: the fast scorer against plain copies (log-probs),
             its gradient against the one of copies, the sampler against plain copies.
attention    The tree mask in sdpa against flex attention with a block mask of the tree, forward and backward.
granite      One rl step of Granite Speech 3.3 2B's shape: 30 s of audio, K = 8, LoRA r 64, under a limit of 16 GB.
step_1b      Sampler, reference and update at the shape of a 1B language model: leaf, stock transformers, and one
             completion per micro-batch; seconds, peak memory, and the share of the device's peak that the update uses.
step_3b      The same at 3B.

A part that fails or takes too long is recorded as failed, with what it said last, and the others go on.
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.gpu.running import run_parts
from benchmarks.gpu.table import table
from benchmarks.records import RESULTS

# Seconds that a part may take: 460 of 480 together.
BOUNDS = {"equality": 90, "attention": 60, "granite": 80, "step_1b": 100, "step_3b": 130}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", nargs="+", choices=BOUNDS, default=list(BOUNDS))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--peak-tflops", type=float, help="of the device in bfloat16, where its name is not known here")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to try the script on a CPU")
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--table", action="store_true", help="only print the record")
    args = parser.parse_args()
    if not args.table:
        given = ["--device", args.device, *(["--small"] if args.small else [])]
        given += ["--peak-tflops", str(args.peak_tflops)] if args.peak_tflops else []
        commands = {name: [sys.executable, "-m", "benchmarks.gpu.part", name, *given] for name in args.parts}
        run_parts(commands, BOUNDS, args.minutes * 60, args.output)
    record = json.loads(args.output.read_text(encoding="utf-8"))
    print(table(record))
    return int(any("error" in part for part in record["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
