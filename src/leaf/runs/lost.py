"""Say what of a run directory is lost or damaged. A run continues without it, but its user should know."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from leaf.checksums import damage
from leaf.model.projector import projector_damage
from leaf.runs.directory import LOGS, RunDirectory
from leaf.text import fold_whitespace


def lost_records(run: RunDirectory, state: Mapping[str, Any]) -> list[str]:
    """Say which records up to a checkpoint its run directory lacks.

    Args:
        run: its logs are cut back to the step of the checkpoint.
        state: of the checkpoint; `lines` is how many lines each log had. Version 0.1 did not note that.
    """
    said = []
    if run.versions() is None:
        said.append("versions.json is missing or damaged, so it is not known with which versions the run began")
    missing = set(range(1, state["step"] + 1)) - {record["step"] for record in run.lines("metrics.jsonl")}
    if missing:
        said.append(
            f"metrics.jsonl lacks {len(missing)} of {state['step']} steps, from step {min(missing)} on; they are lost"
        )
    for log in LOGS:
        had, has = state.get("lines", {}).get(log, 0), run.count(log)
        if log != "metrics.jsonl" and has < had:
            said.append(f"{log} lacks {had - has} of {had} lines; they are lost")
    return said


def lost_projector(file: Path) -> str | None:
    """Say of the projector of stage align that it is missing or damaged; None if it is whole."""
    if not file.is_file():
        return f"{file.name} is missing"
    try:
        wrong = projector_damage(file)
    except (SafetensorError, OSError) as error:
        wrong = fold_whitespace(str(error))
    return None if wrong is None else f"{file.name} is damaged ({wrong})"


def lost_adapter(folder: Path) -> str | None:
    """Say of best/ or last/ that it is missing or damaged; None if it is whole."""
    if not (folder / "adapter_config.json").is_file():
        return f"{folder.name}/ is missing"
    wrong = damage(folder)
    return None if wrong is None else f"{folder.name}/ is damaged ({wrong})"
