"""Run one part and write its result: `python -m benchmarks.gpu.part NAME [--device cuda] [--small] FILE`.

The result is written after every measurement in it, so that a part that is stopped leaves what it has.
"""

import argparse
import json
import platform
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# Dense bfloat16 TFLOPS by the makers' data sheets, of the boards that the names mean.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
    "RTX 4090": 165.2,
}
PARTS = ("equality", "attention", "granite", "step_1b", "step_3b")


class Result:
    """Collect what a part measured, one entry for each measurement, and keep the file up to date."""

    def __init__(self, file: Path, about: dict[str, Any]):
        self.file = file
        self.content: dict[str, Any] = {**about, "entries": []}
        self._write()

    def add(self, name: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Measure and note it; what goes wrong is noted as an error, and the next measurement goes on."""
        began = time.perf_counter()
        entry = dict(name)
        try:
            entry |= measure()
        except Exception as error:
            entry["error"] = f"{type(error).__name__}: {error}"[:500]
            entry["at"] = traceback.format_exc()[-1500:]
        entry["took_s"] = round(time.perf_counter() - began, 2)
        self.content["entries"].append(entry)
        self._write()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return entry

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The entries with an error."""
        return [entry for entry in self.content["entries"] if "error" in entry]

    def _write(self) -> None:
        new = self.file.with_suffix(".new")
        new.write_text(json.dumps(self.content, indent=1), encoding="utf-8")
        new.replace(self.file)


def about(device: torch.device, peak: float | None) -> dict[str, Any]:
    """Describe the machine."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else platform.machine()
    known = next((tflops for part, tflops in PEAK_TFLOPS.items() if part in name), None)
    made = {"device": name, "python": platform.python_version(), "peak_tflops": peak or known}
    if cuda:
        made["memory_gb"] = round(torch.cuda.get_device_properties(device).total_memory / 1e9, 1)
    return made | {name: metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("file", type=Path)
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU. Give --device cpu --small to try the script without one.")
    result = Result(args.file, about(device, args.peak_tflops))
    run(args.name, device, args.small, result)


def run(name: str, device: torch.device, small: bool, result: Result) -> None:
    """Run a part."""
    # Imported here: what one part needs may be missing, and the others go on.
    if name == "equality":
        from benchmarks.gpu.equality import equality

        equality(device, small, result)
    elif name == "attention":
        from benchmarks.gpu.attention import attention

        attention(device, small, result)
    elif name == "granite":
        from benchmarks.gpu.granite import granite

        granite(device, small, result)
    else:
        from benchmarks.gpu.steps import steps

        steps(name.removeprefix("step_"), device, small, result)


if __name__ == "__main__":
    main()
