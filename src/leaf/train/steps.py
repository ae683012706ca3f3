"""Take the steps of a run: the loop that all stages share."""

from collections.abc import Callable, Mapping
from typing import Any

from leaf.config import RunConfig
from leaf.runs.signals import StopSignals


def take_steps(
    config: RunConfig,
    state: Mapping[str, Any] | None,
    one_step: Callable[[int], None],
    validate: Callable[[int], None],
    save: Callable[[int, bool], None],
) -> None:
    """Take the steps that are left of a stage that runs in one process; validate and save as the recipe says.

    Args:
        config: the recipe.
        state: what `Checkpoints.begin` returned.
        one_step: takes a step (from 1) and logs it.
        validate: scores after a step and logs it.
        save: writes the adapter and the checkpoint of a step; its second argument is `validation_due`.

    Raises:
        RunInterrupted: a signal asked to stop, and the run is saved; a validation due is left to the resumed run.
    """
    done = 0 if state is None else int(state["step"])
    with StopSignals() as stop:
        if state is None:
            save(0, False)
        elif state["validation_due"] and config.eval_every:
            validate(done)
            save(done, False)
        for step in range(done + 1, config.max_steps + 1):
            one_step(step)
            last = step == config.max_steps
            due = config.eval_every > 0 and (last or step % config.eval_every == 0)
            if due and stop.received is None:
                validate(step)
                due = False
            if last or step % config.save_every == 0 or stop.received is not None:
                save(step, due)
            if stop.received is not None and (due or not last):
                raise stop.interrupted(step, config.max_steps)
