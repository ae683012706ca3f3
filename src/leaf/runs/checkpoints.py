"""Checkpoints: everything that training needs to continue as if it had never stopped, in files that hold no code.

    checkpoints/step-000050/tensors.safetensors   trained parameters and the optimiser's tensors, by parameter name
                            state.json            step, schedule, best score, what fits memory, recipe, ...
                            manifest.json         size and SHA-256 of the two

No random state is kept, because data order, sampling and dropout are functions of seed and step.
"""

import json
import math
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from leaf.checksums import compare, listed, reason
from leaf.config import FROM_PYTHON, RunConfig, from_dict, of_version_0_1, to_dict
from leaf.errors import RunError
from leaf.fields import Resume, inner_without
from leaf.files import file_mark, remove_directory
from leaf.runs.directory import LOGS, RunDirectory
from leaf.runs.lost import lost_records

FORMAT = 1
_FILES = ("tensors.safetensors", "state.json")
# What has to stay the same beside the recipe, and the reason for the message.
FACTS = {
    "training rows": "their order depends on how many there are",
    "rewards": "they decide what is learned",
}


class Checkpoints:
    """Save and restore the state of one training run.

    Args:
        run: the run directory.
        config: the recipe as it is now.
        parameters: the trained parameters by name.
        optimizer, schedule: what trains them.
        facts: what a resumed run needs to have in common with the run beside the recipe: JSON values for keys of
            `FACTS`.
        script: names of what a script passed in place of the recipe's values, by key (leaf.runs.provenance).
        rows: fingerprint of the training rows. Rows may be mended under way; that they were is said.
        say: takes every line meant for a person.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: RunConfig,
        parameters: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        *,
        facts: Mapping[str, Any],
        script: Mapping[str, Any] | None = None,
        rows: str | None = None,
        say: Callable[[str], None] = print,
    ):
        self.run, self.config, self.parameters = run, config, dict(parameters)
        self.optimizer, self.schedule = optimizer, schedule
        self.facts, self.script, self.say = dict(facts), dict(script or {}), say
        self.rows = rows
        self.restored: str | None = None  # which checkpoint this process continues from, in words
        self.schedule_steps: int | None = None  # of a run of version 0.1 that laid its schedule out for other steps

    # -- writing -------------------------------------------------------------------------------------------------------
    def save(self, step: int, *, validation_due: bool, **extra: Any) -> None:
        """Write the checkpoint of a step and remove the oldest.

        Args:
            step: the last step taken.
            validation_due: whether the validation after that step is still to come.
            extra: further JSON values, which `restore` returns.
        """
        state = {
            "step": step,
            "validation_due": validation_due,
            "updates": self.schedule.last_epoch,
            "facts": self.facts,
            "script": self.script,
            "schedule_steps": self.schedule_steps,
            "rows": self.rows,
            "lines": {log: self.run.count(log) for log in LOGS},
            "recipe": to_dict(self.config),
            **extra,
        }

        def fill(path: Path) -> None:
            save_file(self._tensors(), path / "tensors.safetensors")
            (path / "state.json").write_text(json.dumps(state, indent=1, allow_nan=False) + "\n", encoding="utf-8")
            manifest = {"format": FORMAT, "files": listed(path, _FILES)}
            (path / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")

        self.run.sync_logs()  # no checkpoint may be newer than the records of its steps
        self.run.replace_directory(_name(step), fill)
        # Later ones are from before a damaged checkpoint was passed over. Their steps are being taken again.
        for other in self.steps():
            if other > step:
                remove_directory(self.run.path / _name(other))
        self._drop_oldest(step)

    def _drop_oldest(self, step: int) -> None:
        for other in [other for other in self.steps() if other <= step][: -self.config.keep_checkpoints]:
            remove_directory(self.run.path / _name(other))

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"parameter/{name}": parameter for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"{key}/{name}": value for key, value in state.items()}
        return {key: value.detach().cpu().contiguous() for key, value in tensors.items()}

    def steps(self) -> list[int]:
        """List the steps that have a checkpoint, in ascending order."""
        found = {path.name for path in (self.run.path / "checkpoints").glob("step-*")}
        numbers = sorted(int(number) for name in found if (number := name.removeprefix("step-")).isdecimal())
        return [number for number in numbers if Path(_name(number)).name in found]  # not a user's `step-7`

    # -- reading -------------------------------------------------------------------------------------------------------
    def begin(self, resume: bool, *, main: bool = True) -> dict[str, Any] | None:
        """Restore the run from its newest intact checkpoint, cut its logs back to that step and write its recipe.

        Args:
            resume: whether there may be a checkpoint to restore.
            main: whether this is the process that writes.

        Returns:
            The state of the checkpoint; None for a run that begins, which then has to `save` step 0.

        Raises:
            RunError: see `restore`.
        """
        state = self.restore() if resume else None
        if main:
            self._rewind_logs(state)
            self.run.write_recipe(self.config, self.script)
        if state is None:
            return None
        if main:
            self._drop_oldest(state["step"])  # a kill may have come before `save` did
            for line in lost_records(self.run, state):
                self.say(line)
            if state.get("rows") not in (None, self.rows):
                self.say("the training rows are as many as before, but not the same; the run goes on with those of now")
            if changes := self.run.other_versions():
                self.say(
                    f"changed since the run began: {'; '.join(changes)}. Results may match only up to floating-point "
                    "rounding"
                )
        self.say(f"resumed {self.run.path} after step {state['step']}")
        return state

    def restore(self) -> dict[str, Any] | None:
        """Load the newest intact checkpoint and return its state; None if the run was killed before its first one.

        A damaged checkpoint is named, and the one before it is used. Nothing on disk is changed.

        Raises:
            RunError: no checkpoint is intact, or it belongs to another recipe, data set or model.
        """
        steps = self.steps()
        if not steps:
            if next(self.run.lines("metrics.jsonl"), None) is not None:
                raise RunError(
                    f"{self.run.path} has recorded steps but no checkpoints/ to continue from. Start again in another "
                    "output_dir."
                )
            return None
        for step in reversed(steps):
            path = self.run.path / _name(step)
            try:
                state, tensors = read_checkpoint(path)
            except RunError as error:
                self.say(f"{error} The one before it is used.")
                continue
            self._check(state)
            self._load(state, tensors, path)
            self.restored = f"that of step {step} ({file_mark(path / 'manifest.json')})"  # checksums of all files
            return state
        raise RunError(
            f"No intact checkpoint is left in {self.run.path / 'checkpoints'} (steps {', '.join(map(str, steps))}). "
            "Restore one from a copy, or start again in another output_dir."
        )

    def _rewind_logs(self, state: Mapping[str, Any] | None) -> None:
        """Remove from the logs what will be done again: everything after the restored step, or all for None."""
        step, again = (-1, False) if state is None else (state["step"], state["validation_due"])
        for log in LOGS:
            unreadable = self.run.forget_after(log, step - (log == "validation.jsonl" and again))
            if unreadable:
                self.say(f"{unreadable} lines of {self.run.path / log} could not be read and were dropped")

    def _check(self, state: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of a run that would take another course from here on."""
        facts = _of_version_0_1(state["facts"])
        for key, value in self.facts.items():
            if facts.get(key, value) != value:
                raise RunError(
                    f"{self.run.path} was trained with {key}: {facts[key]!r}, now {value!r}, but "
                    f"{FACTS[key]}. Put back what differs, or start another run in another output_dir."
                )
        recipe, script = of_version_0_1(state["recipe"])
        was, now = from_dict(recipe), self.config
        self._keep_schedule(state)
        changed = changed_keys(self.run.path, was, now, state.get("script", script), self.script)
        if "max_steps" in changed and now.schedule != "constant" and self.schedule_steps is None:
            self.say(
                f"the learning rate now follows a {now.schedule} over {now.max_steps} steps instead of {was.max_steps}"
            )
        if "max_prompt_tokens" in changed:
            self.say(
                f"max_prompt_tokens is now {now.max_prompt_tokens} instead of {was.max_prompt_tokens}; every prompt "
                "that was accepted so far is still accepted"
            )
        if bits := sorted({field.name for field in fields(now) if field.metadata["resume"] == "bits"} & {*changed}):
            self.say(f"{', '.join(bits)} changed: results will match only up to floating-point rounding")

    def _keep_schedule(self, state: Mapping[str, Any]) -> None:
        """Keep the schedule of a run of version 0.1 that was laid out for another number of steps than it takes."""
        now, recipe = self.config, state["recipe"]
        settled = state.get("schedule_steps", recipe.get("schedule_steps"))
        if settled is None or recipe.get("epochs") is not None or not now.max_steps or settled == now.max_steps:
            return
        self.schedule_steps = settled
        factor: Any = self.schedule.lr_lambdas[0]  # the same for all groups of parameters (leaf.train.schedule)
        factor.total = factor.total // now.max_steps * settled
        self.say(f"the learning rate follows a {now.schedule} over {settled} steps, the schedule_steps of version 0.1")

    def _load(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> None:
        """Copy a checkpoint into parameters, optimiser and schedule."""
        wanted = {f"parameter/{name}": (p.dtype, p.shape) for name, p in self.parameters.items()}
        held = {key: (t.dtype, t.shape) for key, t in tensors.items() if key.startswith("parameter/")}
        if held != wanted:
            odd = next(key for key in sorted({*wanted, *held}) if wanted.get(key) != held.get(key))
            raise RunError(
                f"{path} does not fit what is trained here: {odd.removeprefix('parameter/')} is {wanted.get(odd)}, was "
                f"{held.get(odd)}. Resume with the same model and adapter settings."
            )
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"parameter/{name}"])
        # An optimiser numbers its parameters in the order of its groups; the files name them.
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        trained = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
        index = {names[id(parameter)]: i for i, parameter in enumerate(trained)}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            kind, _, name = key.partition("/")
            if kind != "parameter":
                # A copy: safetensors maps the file into memory, and the file will be removed.
                moments.setdefault(index[name], {})[kind] = tensor.clone()
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        # The learning rates follow from the number of updates, so that a longer max_steps takes effect at once.
        updates = state["updates"]
        pairs = zip(self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True)
        rates = [base * factor(updates) for base, factor in pairs]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        changes = {"last_epoch": updates, "_step_count": updates + 1, "_last_lr": rates}
        self.schedule.load_state_dict({**self.schedule.state_dict(), **changes})


def read_checkpoint(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the state and the tensors of a checkpoint directory.

    Raises:
        RunError: a file is missing, or is not what was written.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}, this version reads {FORMAT}")
        compare(manifest["files"], path, _FILES)
        return json.loads((path / "state.json").read_bytes()), load_file(path / "tensors.safetensors")
    except (OSError, KeyError, TypeError, AttributeError, ValueError, RecursionError, SafetensorError) as error:
        raise RunError(f"The checkpoint {path} is damaged: {reason(error, 'manifest.json')}.") from error


def space_needed(size: int, keep: int, have: int = 0) -> int:
    """Compute how many bytes a run takes on the disk beside what it already has there.

    A checkpoint holds the parameters and their two moments. While one is written there is one more than `keep`. best/,
    last/ and the copy that replaces one of them hold the parameters once each.

    Args:
        size: bytes of the trained parameters in float32.
        keep: checkpoints kept.
        have: how many of them are on the disk already.
    """
    return 3 * size * max(keep + 1 - have, 1) + 3 * size


def space_left(path: Path) -> int:
    """Read the free bytes of the disk that a path is on, or will be on."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def check_space(path: Path, parameters: Mapping[str, Tensor], keep: int, have: int = 0) -> None:
    """Refuse to train where the checkpoints do not fit on the disk.

    Args:
        path: the run directory, which need not exist yet.
        parameters: the trained parameters.
        keep: checkpoints kept.
        have: how many of them are on the disk already.

    Raises:
        RunError: there is too little room.
    """
    needed = space_needed(4 * sum(parameter.numel() for parameter in parameters.values()), keep, have)
    free = space_left(path)
    if free < needed:
        raise RunError(
            f"The run in {path} needs about {needed / 1e6:.0f} MB for {keep} checkpoints and its adapters, and its "
            f"disk has {free / 1e6:.0f} MB left. Free some space, lower keep_checkpoints, or choose another output_dir."
        )


def _name(step: int) -> str:
    return f"checkpoints/step-{step:06d}"


def _of_version_0_1(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Name reward functions as today: of two with one name, version 0.1 called the second `name#2`."""
    names = [re.sub(r"#(\d+)$", r" (\1)", name) for name in facts.get("rewards", [])]
    return {**facts, "rewards": names} if names else dict(facts)


def changed_keys(
    path: Path, was: RunConfig, now: RunConfig, was_script: Mapping[str, Any], now_script: Mapping[str, Any]
) -> list[str]:
    """List the keys in which the recipe of a run differs from the one that is to continue it.

    Args:
        path: the run directory, for the message.
        was, now: the recipe that the run was trained with, and the one that is to continue it.
        was_script, now_script: what scripts passed in place of their values.

    Raises:
        RunError: one of them would alter the run.
    """
    if type(was) is not type(now):
        raise RunError(f"{path} is a run of stage {was.stage}, and the recipe is of stage {now.stage}.")
    keys = {field.name: field.metadata for field in fields(now)}
    old, new = to_dict(was), to_dict(now)
    passed = {*was_script, *now_script}
    changed = [
        key
        for key, about in keys.items()
        if key not in passed and _without(about, old[key]) != _without(about, new[key])
    ]
    refused = [key for key in changed if not _may_change(keys[key]["resume"], old[key], new[key])]
    refused += [key for key in keys if key in passed and was_script.get(key) != now_script.get(key)]
    if refused:
        old, new = ({key: _named(key, *one) for key in refused} for one in ((old, was_script), (new, now_script)))
        differences = "; ".join(f"{key} is {new[key]}, was {old[key]}" for key in refused)
        larger = [key for key, about in keys.items() if about["resume"] == "grow"]
        other = sorted(key for key, about in keys.items() if about["resume"] in ("free", "bits"))
        raise RunError(
            f"The recipe is not the one that {path} was trained with: {differences}. Put back what differs, or start "
            f"another run in another output_dir. Allowed are larger values of {', '.join(larger)} and other ones of "
            f"{', '.join(other)}."
        )
    return changed


def _named(key: str, recipe: Mapping[str, Any], script: Mapping[str, Any]) -> str:
    return f"{script[key]!r}{FROM_PYTHON}" if key in script else repr(recipe[key])


def _without(metadata: Mapping[str, Any], value: Any) -> Any:
    """Leave out of a field's value the inner options that a resumed run may change."""
    free = metadata["free_options"]
    if not free:
        return value
    return inner_without(value, free)


def _may_change(resume: Resume, was: Any, now: Any) -> bool:
    """Tell whether a resumed run may change a field from one value to another."""
    if resume == "grow":  # None stands for no limit
        return (math.inf if now is None else now) > (math.inf if was is None else was)
    return resume != "same"
