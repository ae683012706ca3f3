"""Measure memory, in bytes, and do with less where it runs out."""

import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch

from leaf.errors import ConfigError, RunError

S = TypeVar("S")
T = TypeVar("T")


# -- what there is -----------------------------------------------------------------------------------------------------
def available_bytes(device: str | torch.device) -> int:
    """Return the memory this process can still take.

    CUDA: what the driver reports free and what the caching allocator holds unused. CPU: what the system reports
    available, or less where a memory limit of the process's control group (version 1 or 2) leaves less. Linux promises
    more memory than there is and kills a process that takes it at its word: no error can be caught there.

    Raises:
        ConfigError: the device is neither.
    """
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    _only_cpu(device)
    left = _cgroup_left(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    available = psutil.virtual_memory().available
    return available if left is None else min(available, left)


def _only_cpu(device: torch.device) -> None:
    if device.type != "cpu":
        raise ConfigError(
            f"The memory of a {device.type} device cannot be read; allowed are cpu and cuda. Set token_budget."
        )


def _cgroup_left(membership: Path, mount: Path) -> int | None:
    """Return the least that any control group above this process leaves of its limit, None where none has one.

    A group's usage counts cached files; those not in use (`inactive_file`) are given up under pressure and do not count
    here.

    Args:
        membership: file with lines `number:controllers:path`; version 2 has no controllers.
        mount: where the groups are mounted; inside a container the path may begin outside of what is mounted, and the
            container's own group is then the mount itself.
    """
    if not membership.is_file():
        return None
    left: list[int] = []
    for line in membership.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folder, limit, usage, unused = mount, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            folder, limit, usage = mount / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            unused = "total_inactive_file"
        else:
            continue
        names = [name for name in path.split("/") if name not in ("", "..")]
        for depth in range(len(names) + 1):
            group = folder.joinpath(*names[:depth])
            bound = (group / limit).read_text().strip() if (group / limit).is_file() else "max"
            if bound == "max":
                continue
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            used = int((group / usage).read_text()) - int(statistics[unused])
            left.append(max(int(bound) - used, 0))
    return min(left, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out: CUDA's, Python's, or that of torch's allocator on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    # Others raise a bare RuntimeError: torch on the CPU (the second wording is that of Windows), CUDA's libraries.
    wordings = (
        "DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: not enough memory",
        "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "CUDNN_STATUS_ALLOC_FAILED",
    )
    return isinstance(error, RuntimeError) and any(wording in str(error) for wording in wordings)


def peak_bytes(device: str | torch.device) -> int:
    """Return the most memory this process has held since `reset_peak`, or since it began.

    CUDA: bytes in tensors, without what the caching allocator holds unused. CPU: resident memory of the whole process,
    the interpreter and its libraries included (Linux: VmHWM; elsewhere what the system records).
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    _only_cpu(device)
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not there on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak(device: str | torch.device) -> bool:
    """Let `peak_bytes` begin anew, and tell whether that was possible.

    It is on CUDA, and on the CPU under Linux where the kernel lets a process clear its own mark; elsewhere the peak
    stays that of the process since it began.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    _only_cpu(device)
    if sys.platform != "linux":
        return False
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # a kernel built without it, or a sandbox that keeps it read-only
        return False
    return True


# -- doing with less ---------------------------------------------------------------------------------------------------
def within_memory(
    holder: Any, action: Callable[[], T], *, largest: Callable[[], int] | None = None, smallest: int = 64
) -> T:
    """Return `action()`; each time memory runs out, halve the holder's token budget and call it again.

    The action has to begin anew when called again: what it had accumulated is lost with the failed attempt.

    Args:
        holder: has a `token_budget` that the action obeys: a policy.
        action: called with nothing.
        largest: says how many tokens the action's largest batch has at the present budget; the next is half of that.
        smallest: budget at which to give up, in tokens.

    Raises:
        RunError: memory ran out at the smallest budget too.
    """

    def halve() -> RunError | None:
        if holder.token_budget <= smallest:
            return RunError(
                f"Memory ran out even at {holder.token_budget} tokens a forward, so a single prompt with its "
                "completions does not fit. Use gradient_checkpointing: true, fewer num_completions, a smaller "
                "max_new_tokens, shorter audio or a larger device."
            )
        failed = holder.token_budget if largest is None else min(holder.token_budget, largest())
        holder.token_budget = max(failed // 2, smallest)
        return None

    return _with_less(action, halve)


def in_parts(
    holder: Any,
    limit: str,
    items: Sequence[S],
    action: Callable[[Sequence[S]], list[T]],
    *,
    weight: int = 1,
    alone: str,
) -> list[T]:
    """Return `action` of all items, joined; each time memory runs out, halve how many it is given at once.

    Args:
        holder: a policy.
        limit: its attribute that is None or the most that fitted so far; it is kept there for the next call.
        items: prompts, to be embedded or continued.
        action: called with some of the items, returns one result for each.
        weight: what one item counts in that limit; at least one item is tried.
        alone: the sentence for one item that does not fit.

    Raises:
        RunError: memory ran out at a single item too.
    """

    def size() -> int:
        most = getattr(holder, limit)
        return max(len(items) if most is None else min(most // weight, len(items)), 1)

    def whole() -> list[T]:
        at_once = size()
        return [result for at in range(0, len(items), at_once) for result in action(items[at : at + at_once])]

    def halve() -> RunError | None:
        if size() == 1:
            return RunError(alone)
        setattr(holder, limit, size() * weight // 2)
        return None

    return _with_less(whole, halve)


def _with_less(action: Callable[[], T], halve: Callable[[], RunError | None]) -> T:
    """Return `action()`; each time memory runs out, `halve` what it takes at once, or raise what `halve` returns."""
    while True:
        try:
            return action()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if (refusal := halve()) is not None:
                raise refusal from error
        # Out here the error and the tensors its frames held are gone.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
