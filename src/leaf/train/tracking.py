"""Send a run to a tracker of Accelerate as TRL does: recipe, scalars under TRL's names, completions, one run on resume.

metrics.jsonl keeps leaf's own names; docs/metrics.md has both.
"""

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from torch import Tensor

from leaf.config import to_dict
from leaf.data.rows import prompt_text
from leaf.files import read_json, write_json
from leaf.runs.directory import RunDirectory
from leaf.train.records import figure
from leaf.train.rollout import Rollout
from leaf.visible import visible

PROJECT = "leaf"
# Figure of metrics.jsonl → what TRL calls it. Others keep their names.
TRL_NAMES = {
    "reward_mean": "reward",
    "reward_std": "reward_std",
    "zero_variance_groups": "frac_reward_zero_std",
    "length_mean": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "clip_fraction": "clip_ratio/region_mean",
    "seconds/step": "step_time",
}
_FILE = "tracker.json"  # of a run directory: what makes a resumed run the same one for its tracker


class Tracking:
    """A run's trackers; without any, everything here does nothing.

    Args:
        accelerator: made with the recipe's `track_with`, or with trackers of a script's own.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    @property
    def _on(self) -> bool:
        return bool(self.accelerator.log_with)

    def start(self, run: RunDirectory, step: int, say: Callable[[str], None]) -> None:
        """Start the trackers, or continue those of a resumed run behind the last step taken."""
        if not self._on:
            return
        accelerator, main = self.accelerator, self.accelerator.is_main_process
        file = run.path / _FILE
        known = read_json(file) or {}
        if not isinstance(known.get("id"), str):
            if file.exists() and main:
                say(f"{file} is damaged, so the trackers' runs begin anew")
            known = {}
        identity = known or {"id": uuid.uuid4().hex}
        names = [
            str(getattr(one, "name", one)) if isinstance(one, GeneralTracker) else str(one)
            for one in accelerator.log_with
        ]
        alone = [name for name in names if name in ("aim", "clearml", "dvclive")]
        if known and alone and main:
            say(f"{', '.join(alone)} cannot continue a run: this part of it is a run of its own there")
        accelerator.project_configuration.set_directories(str(run.path))
        accelerator.trackers = []
        options = _options(run.path.resolve().name, identity, step)
        # TensorBoard keeps the recipe in a run beside the curves, and would get one with every start.
        config = None if known and names == ["tensorboard"] else flat(to_dict(run.what_ran()))
        accelerator.init_trackers(PROJECT, config, options)
        if main:
            for tracker in accelerator.trackers:
                if tracker.name == "mlflow":
                    identity["mlflow"] = tracker.tracker.info.run_id
            write_json(file, identity)

    def step(self, step: int, record: Mapping[str, Any]) -> None:
        """Log the figures of a step."""
        figures = {TRL_NAMES.get(name, name): value for name, value in record.items() if name != "step"}
        self._log(step, figures)

    def validation(self, step: int, values: Mapping[str, float]) -> None:
        """Log the scores of a validation."""
        self._log(step, {f"eval/{name}": value for name, value in values.items()})

    def _log(self, step: int, figures: Mapping[str, Any]) -> None:
        if self._on:
            self.accelerator.log({name: value for name, value in figures.items() if value is not None}, step=step)

    def completions(self, step: int, rollout: Rollout, groups: int, tokenizer: Any) -> None:
        """Log the completions of the first groups as a table, with trackers that can hold one."""
        if not self._on:
            return
        columns, data = completions_table(step, rollout, groups, tokenizer)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_table"):
                tracker.log_table("completions", columns=columns, data=data, step=step)
            elif tracker.name == "tensorboard":
                tracker.tracker.add_text("completions", markdown(columns, data), step)
            elif tracker.name == "trackio":
                import pandas
                import trackio  # pyright: ignore[reportMissingImports]

                table = trackio.Table(dataframe=pandas.DataFrame(data, columns=pandas.Index(columns)))
                tracker.log({"completions": table}, step=step)

    def finish(self) -> None:
        """End the trackers' runs."""
        if self._on:
            self.accelerator.end_training()
            self.accelerator.trackers = []


def _options(name: str, identity: Mapping[str, Any], step: int) -> dict[str, dict[str, Any]]:
    """Give each kind of tracker, in its own words, the run's name and what makes a resumed run the same one."""
    number = identity["id"]
    mlflow = {"run_id": identity["mlflow"]} if "mlflow" in identity else {}
    return {
        # Steps behind the checkpoint are taken again.
        "tensorboard": {"purge_step": step + 1} if step else {},
        "wandb": {"name": name, "id": number, "resume": "allow"},
        # It knows a run by its name alone, and two folders may have one name.
        "trackio": {"name": f"{name}-{number[:8]}", "resume": "allow"},
        "swanlab": {"experiment_name": name, "id": number[:21], "resume": "allow"},
        "comet_ml": {"experiment_key": number},
        "mlflow": {"run_name": name, **mlflow},
    }


def flat(recipe: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Write a recipe as trackers take it: plain values, and JSON for lists and mappings; what is None is left out."""
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value, ensure_ascii=False)
        for key, value in recipe.items()
        if value is not None
    }


def completions_table(step: int, rollout: Rollout, groups: int, tokenizer: Any) -> tuple[list[str], list[list[Any]]]:
    """Make a table of the completions of some groups: the columns of TRL's, and the rows.

    The advantage is the mean over the completion's tokens, each of which has one of its own.
    """
    functions = list(rollout.by_function[0]) if rollout.by_function else []
    several = functions if len(functions) > 1 else []
    columns = ["step", "prompt", "completion", "reward", *several, "advantage"]
    data = []
    for i in range(min(groups, len(rollout.groups))):
        group, prompt = rollout.groups[i], prompt_text(rollout.rows[i]["prompt"])
        parts = [rollout.by_function[i][name] for name in several]
        for k, text in enumerate(group.texts(tokenizer)):
            length = int(group.lengths[k])
            advantage = float(rollout.advantages[i][k, :length].mean()) if length else 0.0
            values = [_value(rollout.rewards[i], k), *(_value(part, k) for part in parts)]
            data.append([step, prompt, text, *values, advantage])
    return columns, data


def _value(values: Tensor, k: int) -> float | None:
    value = float(values[k])
    return None if value != value else value


def markdown(columns: Sequence[str], data: Sequence[Sequence[Any]]) -> str:
    """Write a table for TensorBoard's text view, which reads markdown."""

    def cell(value: Any) -> str:
        text = figure(value) if value is None or isinstance(value, float) else visible(str(value))
        return text.replace("|", "\\|").replace("<", "&lt;")

    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in data)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
