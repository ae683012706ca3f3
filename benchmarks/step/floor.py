"""What an arm will need in memory, and the arithmetic below which no update can go."""

import statistics
from typing import Any

import torch
from torch import nn

from benchmarks.step.arms import Work
from benchmarks.step.bench import Bench, Cell, Meter
from leaf.model.scoring import batches

FLOOR = (
    "floor = FLOP / rate; FLOP = 6 · (packed tokens · weights of the language model's linear layers + head rows · "
    "weights of the head), which is 2 per row and weight for each of: reference forward, forward, backward to "
    "activations. The rate is measured in this process on those three products of all linear layers, one layer after "
    "another with the model's own weights, dtype and threads, rows as in the largest micro-batch. Embedding table, "
    "attention, norms, LoRA, loss and optimiser are not in the floor."
)
# What the process grows by per byte of live tensors: glibc's heap keeps holes (measured here: 1.6 to 2.3).
WASTE = {"cpu": 2.3, "cuda": 1.1}


def estimate(bench: Bench, cell: Cell, arm: str) -> float:
    """Return the bytes an arm is expected to need above the weights: the larger of sampler and update.

    Update: saved activations of the largest micro-batch, and 12 bytes per logit (float32 logits, their log-softmax and
    their gradient). Sampler: the cache, and the widest layer's inputs and outputs while prefilling. Both times WASTE.
    """
    prompts, size, width = bench.args.prompts, cell.completions, cell.prompt_tokens + cell.length
    config = bench.base.config.get_text_config(decoder=True)
    item = torch.finfo(getattr(torch, bench.args.dtype)).bits // 8
    row = cell.prompt_tokens + size * cell.length  # no shared prefix: the worst case
    tokens = {
        "leaf": max(row, min(prompts * row, bench.args.token_budget)),
        "stock": size * width,
        "published": width,
        "trl": size * width,
    }[arm]
    heads = size * cell.length if arm in ("leaf", "stock") else cell.length
    update = tokens * bench.activation_bytes + 12 * heads * config.vocab_size
    cached = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * item
    prefilled = prompts * cell.prompt_tokens * (1 if arm == "leaf" else size)
    sampler = prompts * size * width * cached + prefilled * 4 * config.intermediate_size * item
    return max(update, sampler) * WASTE[torch.device(bench.args.device).type]


def matmul_rate(bench: Bench, rows: int, repeats: int = 5) -> float:
    """Return FLOP/s of two forward products and one backward to activations of all linear layers; see FLOOR."""
    device, dtype = torch.device(bench.args.device), getattr(torch, bench.args.dtype)
    widths = {width for weight in bench.linears for width in weight.shape}
    given = {width: torch.randn(rows, width, device=device, dtype=dtype) for width in widths}
    forward, backward = [], []
    for _ in range(repeats + 1):  # the first is a warm-up
        meter = Meter(device, memory=False)
        with meter.phase("forward"):
            for weight in bench.linears:
                nn.functional.linear(given[weight.shape[1]], weight)
        with meter.phase("backward"):
            for weight in reversed(bench.linears):
                torch.matmul(given[weight.shape[0]], weight)
        forward.append(meter.seconds["forward"])
        backward.append(meter.seconds["backward"])
    return 6 * rows * bench.weights / (2 * statistics.median(forward[1:]) + statistics.median(backward[1:]))


def floor_record(bench: Bench, work: Work, update_s: float) -> dict[str, Any]:
    """Return the arithmetic floor of a's update beside what it took."""
    lengths = [g.prompt.length + int((~g.tree.is_leaf).sum()) for g in work.groups]
    split = batches(bench.policy, [g.prompt for g in work.groups], [g.tree for g in work.groups])
    rows = max(len(batch) * max(lengths[i] for i in batch) for batch in split)
    head = sum(torch.unique(g.tree.parent).shape[0] for g in work.groups)
    vocabulary, width = bench.base.get_output_embeddings().weight.shape
    flop = 6 * (sum(lengths) * bench.weights + head * vocabulary * width)
    rate = matmul_rate(bench, rows)
    return {
        "packed_tokens": sum(lengths),
        "head_rows": head,
        "rows_of_largest_micro_batch": rows,
        "linear_weights": bench.weights,
        "head_weights": vocabulary * width,
        "tflop": round(flop / 1e12, 4),
        "gflop_per_s": round(rate / 1e9, 1),
        "floor_s": round(flop / rate, 4),
        "update_over_floor": round(update_s * rate / flop, 3),
    }


def update_flop(bench: Bench, cell: Cell, arm: str, floor: dict[str, Any]) -> float:
    """Return the FLOP of the linear layers and head that an arm's update runs, counted as for the floor."""
    if arm == "leaf":
        return floor["tflop"] * 1e12
    rows = bench.args.prompts * cell.completions
    return 6.0 * rows * ((cell.prompt_tokens + cell.length) * bench.weights + cell.length * floor["head_weights"])
