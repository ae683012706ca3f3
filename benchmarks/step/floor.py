"""What an arm will need in memory, and the arithmetic below which no update and no step can go."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.step.arms import Work
from benchmarks.step.bench import Bench, Cell, Meter
from leaf.credit.tree import PrefixTree
from leaf.model.scoring import largest_batch

FLOOR = (
    "floor = FLOP / rate; FLOP = 6 · (packed tokens · weights of the language model's linear layers + head rows · "
    "weights of the head), which is 2 per row and weight for each of: reference forward, forward, backward to "
    "activations. The rate is measured in this process on those three products of all linear layers, one layer after "
    "another with the model's own weights, dtype and threads, rows as in the largest micro-batch. Embedding table, "
    "norms, LoRA, loss and optimiser are in no floor. "
    "With attention: a query sees the keys up to itself in the prompt, and a completion's token the prompt, its "
    "ancestors and itself (a sliding layer: the nearest of them). Such a pair costs 4 · heads · head width FLOP a "
    "layer forward (scores, and values of them) and 8 backward (gradients of queries, keys, scores and values), so 16 "
    "with the reference. Their rate is measured on those six batched products, without softmax, on a square of the "
    "longest prompt's length, for all heads of a layer. "
    "Step: to the update's floor with attention come the prompts' prefill, and the decoding of every distinct prefix "
    "once. Decoding is not at the rate above: with few rows it waits for the weights. So a forward of all linear "
    "layers and the head is timed at 1, 2, 4, ... rows, and every decoding step takes what its live rows take (between "
    "two of these: in proportion); its attention is at the rate above. Audio encoder, projector, cache and the draws "
    "are in no floor. `shared`: the same where the prompt's forward in the update is the sampler's prefill with its "
    "graph kept, so that the update runs the completions, the reference and the whole backward. An update that shares "
    "has less to do than floor_s says; its own floor is update_shared_s, and the honest comparison is the step's."
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


@dataclass(frozen=True)
class Counts:
    """Count what one update and its sampling need, over all groups.

    Attributes:
        prompt, inner: positions of the prompts, and of the prefix trees' inner nodes behind them.
        heads: rows of logits.
        prompt_pairs, inner_pairs: query-key pairs of one layer, the mean over layers.
        live: per decoding step, the distinct prefixes that go on.
    """

    prompt: int
    inner: int
    heads: int
    prompt_pairs: float
    inner_pairs: float
    live: list[int]


def count(trees: Sequence[PrefixTree], prompts: Sequence[int], windows: Sequence[int | None]) -> Counts:
    """Count the work on prefix trees behind prompts of these lengths; `windows` has one entry per layer."""
    inner = [tree.depth[~tree.is_leaf] for tree in trees]
    seen_by_prompts = torch.cat([torch.arange(1, length + 1) for length in prompts])
    seen_by_inner = torch.cat([length + depths + 1 for length, depths in zip(prompts, inner, strict=True)])

    def pairs(seen: Tensor) -> float:
        each = [float(seen.sum()) if w is None else float(seen.clamp_max(w).sum()) for w in windows]
        return statistics.mean(each)

    depths = torch.cat(inner)
    return Counts(
        prompt=sum(prompts),
        inner=len(depths),
        heads=sum(torch.unique(tree.parent).shape[0] for tree in trees),
        prompt_pairs=pairs(seen_by_prompts),
        inner_pairs=pairs(seen_by_inner),
        live=torch.bincount(depths).tolist(),
    )


def attention_rate(bench: Bench, length: int, repeats: int = 5) -> float:
    """Return FLOP/s of attention's six products on a square of `length`, all heads of a layer; see FLOOR."""
    config = bench.base.config.get_text_config(decoder=True)
    shape = (config.num_attention_heads, length, config.head_dim)
    device, dtype = torch.device(bench.args.device), getattr(torch, bench.args.dtype)
    rows = torch.randn(shape, device=device, dtype=dtype)
    square = torch.randn(shape[0], length, length, device=device, dtype=dtype)
    seconds = []
    for _ in range(repeats + 1):
        meter = Meter(device, memory=False)
        with meter.phase("attention"):
            for _ in range(2):  # scores, gradient of the scores
                torch.bmm(rows, rows.transpose(1, 2))
            for _ in range(2):  # output, gradient of the queries
                torch.bmm(square, rows)
            for _ in range(2):  # gradients of keys and values
                torch.bmm(square.transpose(1, 2), rows)
        seconds.append(meter.seconds["attention"])
    return 12 * rows.numel() * length / statistics.median(seconds[1:])


def decode_seconds(bench: Bench, live: Sequence[int], repeats: int = 3) -> float:
    """Return the seconds that decoding steps of so many rows take in linear layers and head; see FLOOR."""
    device, dtype = torch.device(bench.args.device), getattr(torch, bench.args.dtype)
    weights = [*bench.linears, bench.base.get_output_embeddings().weight.detach()]
    widths = {weight.shape[1] for weight in weights}
    most = max(live, default=1)
    tried = [2**i for i in range(most.bit_length() + 1)]
    seconds = []
    for rows in tried:
        given = {width: torch.randn(rows, width, device=device, dtype=dtype) for width in widths}
        timed = []
        for _ in range(repeats + 1):
            meter = Meter(device, memory=False)
            with meter.phase("decode"):
                for weight in weights:
                    nn.functional.linear(given[weight.shape[1]], weight)
            timed.append(meter.seconds["decode"])
        seconds.append(statistics.median(timed[1:]))
    return float(np.interp(np.array(live, dtype=float), tried, seconds).sum())


def floor_record(bench: Bench, work: Work, took: dict[str, float]) -> dict[str, Any]:
    """Return the floors of a's update and step beside what they `took` (`update`, `step` and peak memory in MB)."""
    prompts, trees = [g.prompt for g in work.groups], [g.tree for g in work.groups]
    lengths = [prompt.length for prompt in prompts]
    config = bench.base.config.get_text_config(decoder=True)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    counted = count(trees, lengths, [bench.policy.attention.windows.get(kind) for kind in kinds])
    rows = largest_batch(bench.policy, prompts, trees)
    vocabulary, width = bench.base.get_output_embeddings().weight.shape
    linear = 6 * ((counted.prompt + counted.inner) * bench.weights + counted.heads * vocabulary * width)
    # Of a pair, forward, in all layers.
    pair = 4 * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    rate, by_pair = matmul_rate(bench, rows), attention_rate(bench, max(lengths))
    floor, attention = linear / rate, 4 * pair * (counted.prompt_pairs + counted.inner_pairs) / by_pair
    prefill = 2 * counted.prompt * bench.weights / rate + pair * counted.prompt_pairs / by_pair
    # The head's rows at the prompts' ends are those of a decoding step of so many prompts.
    decode = decode_seconds(bench, counted.live) + pair * counted.inner_pairs / by_pair
    decode += 2 * len(trees) * vocabulary * width / rate
    both = floor + attention
    seconds = {
        "floor_s": floor,
        "attention_s": attention,
        "update_shared_s": both - prefill,
        "prefill_s": prefill,
        "decode_s": decode,
        "step_s": both + prefill + decode,
        "step_shared_s": both + decode,
    }
    over = {
        "update_over_floor": took["update"] / floor,
        "update_over_floor_with_attention": took["update"] / both,
        "update_over_shared_floor": took["update"] / seconds["update_shared_s"],
        "step_over_floor": took["step"] / seconds["step_s"],
        "step_over_shared_floor": took["step"] / seconds["step_shared_s"],
    }
    return {
        "packed_tokens": counted.prompt + counted.inner,
        "prompt_tokens": counted.prompt,
        "head_rows": counted.heads,
        "pairs_per_layer": round(counted.prompt_pairs + counted.inner_pairs),
        "rows_of_largest_micro_batch": rows,
        "linear_weights": bench.weights,
        "head_weights": vocabulary * width,
        "tflop": round(linear / 1e12, 4),
        "attention_tflop": round(4 * pair * (counted.prompt_pairs + counted.inner_pairs) / 1e12, 4),
        "gflop_per_s": round(rate / 1e9, 1),
        "attention_gflop_per_s": round(by_pair / 1e9, 1),
        "peak_update_mb_per_token": round(took["peak_update_mb"] / rows, 3),
        **{name: round(value, 4) for name, value in seconds.items()},
        **{name: round(value, 3) for name, value in over.items()},
    }


def update_flop(bench: Bench, cell: Cell, arm: str, floor: dict[str, Any]) -> float:
    """Return the FLOP of the linear layers and head that an arm's update runs, counted as for the floor."""
    if arm == "leaf":
        return floor["tflop"] * 1e12
    rows = bench.args.prompts * cell.completions
    return 6.0 * rows * ((cell.prompt_tokens + cell.length) * bench.weights + cell.length * floor["head_weights"])
