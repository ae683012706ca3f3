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
    "torch.profiler's own time of every operation (of its kernels on CUDA), by names and shapes: `attention` and "
    "`head` are what runs inside of leaf's and torch's functions for these, forward and backward; `head` also what "
    "has a tensor as wide as the vocabulary. Of the other products, `adapters` are those with an operand as wide as "
    "the adapter's rank, and `linear` the rest. `casts` are copies between types and layouts, `elementwise` all "
    "other operations that compute. What is left of the wall time is `dispatch`: Python, autograd and the "
    "operators' own overhead, on CUDA time in which no kernel runs."
)
KINDS = ("linear", "attention", "adapters", "elementwise", "head", "casts", "dispatch")
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul")
_PRODUCTS += ("mkldnn::_linear_pointwise", "aten::mkldnn_linear", "aten::_addmm_activation")
# Parts of the names of functions, in lower case; what runs inside of one belongs to it.
_INSIDE = {"attention": ("attend", "attention", "flex"), "head": ("_read", "log_softmax", "logsumexp")}
_CASTS = ("aten::copy_", "aten::_to_copy", "aten::contiguous", "aten::clone")
# They compute nothing: views, allocation, and wrappers whose time is overhead.
_OVERHEAD = (
    "view",
    "_unsafe_view",
    "reshape",
    "transpose",
    "expand",
    "slice",
    "select",
    "empty",
    "as_strided",
    "resize",
)
_OVERHEAD += ("unsqueeze", "squeeze", "permute", "detach", "split", "alias", "narrow", "unbind", "to", "t", "item")


def kind_of(names: Sequence[str], shapes: Sequence[Sequence[int]], rank: int, vocabulary: int) -> str:
    """Tell of which kind an operation is, by its name, those of the functions around it, and its operands' shapes."""
    name, widths = names[0], {width for shape in shapes for width in shape}
    if not name.startswith(("aten::", "mkldnn::", "triton", "inductor")):
        return "dispatch"
    if name not in _CASTS and name.removeprefix("aten::").removesuffix("_strided") in _OVERHEAD:
        return "dispatch"
    for kind, parts in _INSIDE.items():
        if any(part in one.lower() for one in names for part in parts):
            return kind
    if vocabulary in widths:
        return "head"
    if name in _CASTS:
        return "casts"
    if name in _PRODUCTS:
        return "adapters" if rank in widths else "linear"
    return "elementwise"


def shares_of(
    operations: Iterable[tuple[Sequence[str], Sequence[Sequence[int]], float]], wall: float, rank: int, words: int
) -> dict[str, float]:
    """Add up seconds of (names, shapes, seconds) by kind, as shares of the wall time."""
    seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    for names, shapes, taken in operations:
        seconds[kind_of(names, shapes, rank, words)] += taken
    computed = sum(taken for kind, taken in seconds.items() if kind != "dispatch")
    seconds["dispatch"] = max(0.0, wall - computed)
    return {kind: round(taken / max(wall, computed), 6) for kind, taken in seconds.items()}


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
        time_of = "self_device_time_total" if cuda else "self_cpu_time_total"
        operations = [
            (_names(one), [shape for shape in one.input_shapes or () if isinstance(shape, list)], getattr(one, time_of))
            for one in watched.events() or ()
        ]
        operations = [(names, shapes, taken / 1e6) for names, shapes, taken in operations]
        found.append(shares_of(operations, walls[-1], bench.args.rank, vocabulary))
    shares = {kind: round(statistics.median(share[kind] for share in found), 6) for kind in KINDS}
    return {"seconds": round(statistics.median(walls), 4), "shares": shares}


def _names(event: Any) -> list[str]:
    """List the name of an operation and of all that it runs inside of."""
    names = []
    while event is not None:
        names.append(event.name)
        event = event.cpu_parent
    return names
