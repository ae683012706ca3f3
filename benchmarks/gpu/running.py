"""Run the parts one after the other, each in its own process and within its time, and write down what came of each."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SAID = 2000  # characters of what a failed part said last


def run_parts(commands: Mapping[str, list[str]], bounds: Mapping[str, float], seconds: float, output: Path) -> None:
    """Run the commands in order; each gets a file to write its result to as last argument.

    The record is written after every part, so that it is there even if this process is killed.

    Args:
        commands: name of a part → its command.
        bounds: name of a part → seconds that it may take.
        seconds: that all of them may take.
        output: file of the record.
    """
    began = time.monotonic()
    parts: dict[str, Any] = {name: {"error": "not run: the parts before it were not finished"} for name in commands}
    for name, command in commands.items():
        left = seconds - (time.monotonic() - began)
        parts[name] = {"error": "not run: no time was left"} if left <= 0 else _run(command, min(bounds[name], left))
        print(f"{name}: {parts[name].get('error', 'done')[:200]}", flush=True)
        output.parent.mkdir(parents=True, exist_ok=True)
        new = output.with_suffix(".part")
        new.write_text(json.dumps({"parts": parts}, indent=2) + "\n", encoding="utf-8")
        new.replace(output)


def _run(command: list[str], bound: float) -> dict[str, Any]:
    """Run one part; return its result, or why there is none, with the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        file, said = Path(folder) / "result.json", Path(folder) / "said.txt"
        began, late = time.monotonic(), False
        with said.open("wb") as log:
            # A session of its own, so that what the part has started ends with it.
            process = subprocess.Popen([*command, str(file)], stdout=log, stderr=log, start_new_session=True)
            try:
                process.wait(timeout=bound)
            except subprocess.TimeoutExpired:
                late = True
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        made: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1)}
        if file.exists():
            made["result"] = json.loads(file.read_text(encoding="utf-8"))
        if late:
            made["error"] = f"stopped after {bound:.0f} s"
        elif process.returncode != 0:
            made["error"] = f"ended with {process.returncode}"
        elif "result" not in made:
            made["error"] = "wrote no result"
        if "error" in made:
            made["said"] = said.read_text(encoding="utf-8", errors="replace")[-_SAID:]
        return made
