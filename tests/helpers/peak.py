"""What torch's allocator hands out while something runs."""

import json

import torch


def peak_of_tensors(work, folder):
    """Return the peak of what torch's CPU allocator handed out while `work` ran, beyond what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = sorted(
        (e["ts"], e["args"]["Total Allocated"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]"
    )
    return max(held for _, held, _ in events) - (events[0][1] - events[0][2])
