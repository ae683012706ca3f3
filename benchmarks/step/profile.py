"""Where leaf's update spends its time: the operations of one update, sorted into kinds.

PROFILED says how. Shares are of the wall time of the profiled update, which is slower than one that nobody watches.
"""

import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.step.arms import Work, leaf_step, leaf_update
from benchmarks.step.bench import Bench, Cell, Meter

PROFILED = (
    "torch.profiler's own time of every operation (of its kernels on CUDA), by name and shapes: `attention` is "
    "scaled_dot_product_attention's kernels, their backward and flex attention; of the products, `head` are those with "
    "an operand as wide as the vocabulary, `adapters` those with an operand as wide as the adapter's rank and none as "
    "wide as the vocabulary, `linear` the others; elementwise operations on a tensor as wide as the vocabulary count "
    "as head too, `casts` are copies between types and layouts, `elementwise` all other operations that compute. What "
    "is left of the wall time is `dispatch`: Python, autograd and the operators' own overhead, on CUDA time in which no "
    "kernel runs."
)
KINDS = ("linear", "attention", "adapters", "elementwise", "head", "casts", "dispatch")
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul")
_PRODUCTS += ("mkldnn::_linear_pointwise", "aten::mkldnn_linear", "aten::_addmm_activation")
_ATTENTION = ("attention", "flex")
_CASTS = ("aten::copy_", "aten::_to_copy", "aten::contiguous", "aten::clone")
# They compute nothing: views, allocation, and wrappers whose time is overhead.
_OVERHEAD = ("view", "reshape", "transpose", "expand", "slice", "select", "empty", "as_strided", "unsqueeze", "squeeze")
_OVERHEAD += ("permute", "detach", "split", "alias", "aten::t", "aten::to", "resize", "narrow", "unbind", "record")


def kind_of(name: str, shapes: Sequence[Sequence[int]], rank: int, vocabulary: int) -> str:
    """Tell of which kind an operation is, by its name and the shapes of its operands."""
    if not name.startswith(("aten::", "mkldnn::", "triton", "Flex", "flex")):
        return "dispatch"
    widths = {width for shape in shapes for width in shape}
    if any(part in name.lower() for part in _ATTENTION):
        return "attention"
    if name in _CASTS:
        return "casts"
    if name == "aten::t" or any(name.startswith(f"aten::{part}") or name == part for part in _OVERHEAD):
        return "dispatch"
    if vocabulary in widths:
        return "head"
    if name in _PRODUCTS:
        return "adapters" if rank in widths else "linear"
    return "elementwise"


def shares_of(
    operations: Iterable[tuple[str, Sequence[Sequence[int]], float]], wall: float, rank: int, words: int
) -> dict[str, float]:
    """Add up seconds of (name, shapes, seconds) by kind, as shares of the wall time."""
    seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    for name, shapes, taken in operations:
        seconds[kind_of(name, shapes, rank, words)] += taken
    computed = sum(taken for kind, taken in seconds.items() if kind != "dispatch")
    seconds["dispatch"] = max(0.0, wall - computed)
    return {kind: round(taken / max(wall, computed), 4) for kind, taken in seconds.items()}


def profile_update(bench: Bench, cell: Cell, rows: list[dict[str, Any]], repeats: int = 3) -> dict[str, Any]:
    """Profile reference and update of arm a in a cell: medians of the shares over `repeats`, after a first run."""
    device = torch.device(bench.args.device)
    work: Work = leaf_step(bench, cell, rows, Meter(device, memory=False))
    vocabulary = bench.base.get_output_embeddings().weight.shape[0]
    cuda = device.type == "cuda"
    found, walls = [], []
    for _ in range(repeats):
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
        with profile(activities=activities, record_shapes=True) as watched:
            began = time.perf_counter()
            leaf_update(bench, work)
            if cuda:
                torch.cuda.synchronize()
            walls.append(time.perf_counter() - began)
        events = watched.key_averages(group_by_input_shape=True)
        time_of = "self_device_time_total" if cuda else "self_cpu_time_total"
        # On CUDA the kernels appear under their own names too, besides the operations that started them.
        operations = [
            (
                event.key,
                [shape for shape in event.input_shapes if isinstance(shape, list)],
                getattr(event, time_of) / 1e6,
            )
            for event in events
        ]
        found.append(shares_of(operations, walls[-1], bench.args.rank, vocabulary))
    shares = {kind: round(statistics.median(share[kind] for share in found), 4) for kind in KINDS}
    return {"seconds": round(statistics.median(walls), 4), "shares": shares}
