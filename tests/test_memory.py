"""What memory there is, and what happens when it runs out."""

import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from leaf import memory
from leaf.errors import ConfigError, RunError
from leaf.memory import available_bytes, is_out_of_memory, peak_bytes, reset_peak, within_memory


def limited(folder, group, *, limit, used, unused=0):
    at = folder / group
    at.mkdir(parents=True, exist_ok=True)
    (at / "memory.max").write_text(f"{limit}\n")
    (at / "memory.current").write_text(f"{used}\n")
    (at / "memory.stat").write_text(f"anon 5\ninactive_file {unused}\n")


def membership(folder, text):
    file = folder / "cgroup"
    file.write_text(text)
    return file


def test_the_tightest_control_group_above_counts(tmp_path):
    limited(tmp_path, "user", limit=1000, used=800, unused=100)
    limited(tmp_path, "user/job", limit="max", used=700)
    own = membership(tmp_path, "0::/user/job\n")
    assert memory._cgroup_left(own, tmp_path) == 300
    limited(tmp_path, "user/job", limit=750, used=700, unused=20)
    assert memory._cgroup_left(own, tmp_path) == 70
    limited(tmp_path, "user/job", limit=600, used=700)
    assert memory._cgroup_left(own, tmp_path) == 0


def test_a_container_sees_its_own_group_at_the_mount(tmp_path):
    limited(tmp_path, "", limit=500, used=300)
    assert memory._cgroup_left(membership(tmp_path, "0::/../other\n"), tmp_path) == 200


def test_groups_of_version_1_count_beside_those_of_version_2(tmp_path):
    for group, limit, used in ((".", 9223372036854771712, 900), ("job", 600, 500)):
        at = tmp_path / "memory" / group
        at.mkdir(parents=True, exist_ok=True)
        (at / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (at / "memory.usage_in_bytes").write_text(f"{used}\n")
        (at / "memory.stat").write_text("inactive_file 3\ntotal_inactive_file 50\n")
    own = membership(tmp_path, "9:cpu,cpuacct:/other\n4:memory:/job\n0::/unified\n")
    assert memory._cgroup_left(own, tmp_path) == 150
    limited(tmp_path, "unified", limit=90, used=50)
    assert memory._cgroup_left(own, tmp_path) == 40


def test_no_control_group_leaves_no_limit(tmp_path):
    assert memory._cgroup_left(tmp_path / "cgroup", tmp_path) is None
    assert memory._cgroup_left(membership(tmp_path, "0::/\n3:cpuset:/\n"), tmp_path) is None


def test_available_memory_is_the_smaller_of_system_and_group(monkeypatch):
    system = type("Memory", (), {"available": 1000})
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: system)
    for left, expected in ((None, 1000), (400, 400), (4000, 1000)):
        monkeypatch.setattr(memory, "_cgroup_left", lambda *_, left=left: left)
        assert available_bytes("cpu") == expected


def test_available_memory_of_this_machine_is_sensible():
    assert 10**7 < available_bytes(torch.device("cpu")) <= memory.psutil.virtual_memory().total


def test_cuda_counts_what_the_allocator_holds_unused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 170)
    reset = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    assert available_bytes("cuda:0") == 1200
    assert peak_bytes("cuda") == 170
    assert reset_peak("cuda")
    assert reset == [torch.device("cuda")]


@pytest.mark.parametrize("function", [available_bytes, peak_bytes, reset_peak])
def test_another_device_is_refused(function):
    with pytest.raises(ConfigError, match="memory of a meta device"):
        function("meta")


def test_the_peak_is_seen_and_reset():
    """In a process of its own: in this one the heap may already hold what is asked for."""
    code = """
import torch
from leaf.memory import peak_bytes, reset_peak
assert reset_peak("cpu")
before = peak_bytes("cpu")
block = torch.ones(50_000_000)  # 200 MB
assert peak_bytes("cpu") - before > 150e6
del block
assert peak_bytes("cpu") - before > 150e6
assert reset_peak("cpu")
assert peak_bytes("cpu") - before < 100e6
"""
    if not reset_peak("cpu"):
        pytest.skip("this kernel does not let a process reset its peak")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_peak_that_cannot_be_reset_is_said(monkeypatch):
    def refuse(self, text):
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "write_text", refuse)
    assert not reset_peak("cpu")


STARVE = """
import resource, torch
from leaf.memory import is_out_of_memory
torch.set_num_threads(1)
model = torch.nn.Sequential(*[torch.nn.Linear(500, 500) for _ in range(4)])
model(torch.randn(100, 500)).sum().backward()
size = next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmSize:"))
resource.setrlimit(resource.RLIMIT_AS, (size + 200 * 2**20, resource.RLIM_INFINITY))
kept = []
def fill_python():
    while True: kept.append([0] * 100_000)
def fill_torch():
    while True: kept.append(model(torch.randn(5000, 500)))
for fill in (fill_torch, fill_python):
    try:
        fill()
    except Exception as error:
        kept.clear()
        print(type(error).__name__, is_out_of_memory(error))
"""


def test_running_out_inside_torch_and_python_is_recognised():
    done = subprocess.run([sys.executable, "-c", STARVE], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split("\n")[:2] == ["RuntimeError True", "MemoryError True"]


def test_only_running_out_of_memory_is_recognised():
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    assert is_out_of_memory(MemoryError())
    with pytest.raises(RuntimeError) as caught:
        nn.Linear(2, 3)(torch.zeros(1, 5))
    assert not is_out_of_memory(caught.value)
    for error in (RuntimeError("CUDA error: device-side assert triggered"), ValueError("can't allocate memory")):
        assert not is_out_of_memory(error)
    assert not is_out_of_memory(OSError("DefaultCPUAllocator: can't allocate memory"))
    assert not is_out_of_memory(KeyboardInterrupt())


class Holder:
    def __init__(self, budget):
        self.token_budget = budget


def test_the_budget_is_halved_until_it_fits_and_stays():
    holder, seen = Holder(1000), []

    def action():
        seen.append(holder.token_budget)
        if holder.token_budget > 300:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return "done"

    assert within_memory(holder, action) == "done"
    assert seen == [1000, 500, 250]
    assert holder.token_budget == 250


def test_the_next_budget_is_half_of_the_batch_that_failed():
    holder, seen = Holder(32768), []

    def action():
        seen.append(holder.token_budget)
        if len(seen) < 3:
            raise MemoryError
        return "done"

    assert within_memory(holder, action, largest=lambda: min(holder.token_budget, 900)) == "done"
    assert seen == [32768, 450, 225]


def test_memory_that_never_suffices_is_an_error_of_ours():
    holder, seen = Holder(100), []

    def action():
        seen.append(holder.token_budget)
        raise MemoryError

    with pytest.raises(RunError, match="even at 64 tokens") as caught:
        within_memory(holder, action)
    assert seen == [100, 64]
    assert isinstance(caught.value.__cause__, MemoryError)


def test_other_errors_pass_through_untouched():
    holder = Holder(100)

    def action():
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        within_memory(holder, action)
    assert holder.token_budget == 100


def test_a_failed_attempt_holds_no_memory_when_the_next_begins():
    holder, kept = Holder(1000), []

    def action():
        if kept:
            return kept[0]() is None
        tensor = torch.ones(10)
        kept.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    assert within_memory(holder, action)


def test_parts_are_halved_by_what_an_item_weighs_until_one_is_left():
    holder, seen = SimpleNamespace(at_once=None), []

    def parts(items, most, weight):
        def action(some):
            seen.append(len(some))
            if len(some) > most:
                raise MemoryError
            return list(some)

        return memory.in_parts(holder, "at_once", items, action, weight=weight, alone="One is too large.")

    assert parts(range(7), 7, 10) == list(range(7))
    assert holder.at_once is None
    assert parts(range(7), 2, 10) == list(range(7))
    assert seen[1:] == [7, 3, 1, 1, 1, 1, 1, 1, 1]
    assert holder.at_once == 15
    seen.clear()
    assert parts(range(7), 5, 3) == list(range(7))  # lighter ones
    assert parts(range(2), 5, 99) == [0, 1]  # and heavier ones: at least one is tried
    assert seen == [5, 2, 1, 1]
    with pytest.raises(RunError, match="One is too large"):
        parts(range(2), 0, 1)
    assert parts([], 0, 1) == []
