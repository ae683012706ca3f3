"""Part `attention`: the tree mask of one packed row in sdpa, against flex attention with a block mask of the tree."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.part import Result
from leaf.credit.tree import PrefixTree
from leaf.model.packing import pack

HEADS, KEYS, WIDTH = 32, 8, 64  # Granite Speech 3.3 2B


def attention(device: torch.device, small: bool, result: Result) -> None:
    """Measure both kernels on rows of several sizes."""
    sizes = [(40, 4, 8)] if small else [(320, 8, 50), (320, 32, 100), (1500, 8, 100), (1500, 64, 100)]
    for prompt, completions, length in sizes:
        given = {"prompt_tokens": prompt, "completions": completions, "length": length}
        result.add(given, lambda p=prompt, k=completions, r=length: compare(device, p, k, r, small))


def compare(device: torch.device, prompt: int, completions: int, length: int, small: bool) -> dict[str, Any]:
    """Time both kernels, forward and backward, on the row of a group whose completions share their first third."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 1000, (completions, length), generator=generator)
    tokens[:, : length // 3] = tokens[0, : length // 3]
    tree = PrefixTree.build(tokens, torch.full((completions,), length))
    row = pack(prompt, tree)
    # As in leaf.model.packing: of a prompt's position everything behind sees it, of a node its subtree.
    size = row.length
    first = torch.arange(size)
    start, end = first.clone(), torch.full((size,), size)
    start[prompt:], end[prompt:] = prompt + row.node, prompt + tree.subtree_end[row.node]
    start, end = start.to(device), end.to(device)

    def visible(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return (start[key] <= start[query]) & (start[query] < end[key])

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, size, WIDTH, device=device, dtype=dtype) for heads in (HEADS, KEYS, KEYS)
    )
    seen = (start[None] <= start[:, None]) & (start[:, None] < end[None])
    mask = torch.zeros(1, 1, size, size, device=device, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)

    def sdpa(*of: Tensor) -> Tensor:
        return scaled_dot_product_attention(*of, attn_mask=mask, enable_gqa=True)

    # Without torch.compile flex attention has no backward and builds all scores; on a CPU it is tried only.
    cuda = device.type == "cuda"
    kernel: Any = torch.compile(flex_attention) if cuda else flex_attention

    def block_mask() -> Any:
        return create_block_mask(visible, None, None, size, size, device=str(device))

    blocks = block_mask()

    def flex(*of: Tensor) -> Tensor:
        return kernel(*of, block_mask=blocks, enable_gqa=True)

    made: dict[str, Any] = {"row": size, "visible_share": round(float(seen.float().mean()), 3)}
    with torch.no_grad():
        made["largest_difference"] = float((sdpa(query, key, value) - flex(query, key, value)).abs().max())
    repeats = 2 if small else 10
    made["sdpa_ms"] = timed(sdpa, (query, key, value), repeats, backward=cuda)
    made["flex_ms"] = timed(flex, (query, key, value), repeats, backward=cuda)
    made["block_mask_ms"] = timed(lambda *of: block_mask(), (), repeats, backward=False)
    return made | {"backward": cuda, "flex_over_sdpa": round(made["flex_ms"] / made["sdpa_ms"], 3)}


def timed(run: Callable[..., Any], given: tuple[Tensor, ...], repeats: int, *, backward: bool) -> float:
    """Return the median of milliseconds, forward and backward, after two first runs."""
    leaves = tuple(tensor.detach().requires_grad_(backward) for tensor in given)
    taken = []
    for _ in range(repeats + 2):
        _wait()
        began = time.perf_counter()
        out = run(*leaves)
        if backward:
            torch.autograd.grad(out.sum(), leaves)
        _wait()
        taken.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(taken[2:]), 3)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
