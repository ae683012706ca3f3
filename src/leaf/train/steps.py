"""The loop that all stages share: take a step, validate and save when the recipe says so, stop when asked to."""

from typing import Protocol

from leaf.config import RunConfig
from leaf.errors import RunInterrupted, Unavailable
from leaf.runs.signals import StopRequested, StopSignals
from leaf.train.schedule import Length


class Stage(Protocol):
    """What the loop needs of a stage.

    Attributes:
        config: the recipe.
        length: how long the run is.
        stop: the signals that ask the run to stop.
        done: the last step taken, 0 for none.
        validation_due: whether the validation after that step is still to come.
    """

    @property
    def config(self) -> RunConfig:
        """The recipe."""
        ...

    length: Length
    stop: StopSignals
    done: int
    validation_due: bool

    def step(self, number: int) -> None:
        """Take a step, counted from 1, and log it."""
        ...

    def validate(self) -> None:
        """Score the validation rows and log the scores."""
        ...

    def save(self) -> None:
        """Write the adapter and the checkpoint of the last step taken."""
        ...

    def asked_to_stop(self) -> bool:
        """Tell whether the run is to stop; the answer is the same in all its processes."""
        ...


def take_steps(stage: Stage) -> None:
    """Take the steps that are left of a run whose checkpoint has been restored or, for a new one, written.

    A stage raises `StopRequested` or `Unavailable` in a step or a validation where nothing is half done yet. What was
    begun is then given up, and the resumed run does it again.

    Raises:
        RunInterrupted: a signal asked the run to stop, or a server that it needs stays away, and the run is saved.
    """
    config, steps = stage.config, stage.length.steps
    saved = True
    try:
        if stage.validation_due:
            _validate(stage)
            stage.save()
        for number in range(stage.done + 1, steps + 1):
            last = number == steps
            stage.step(number)
            saved = False
            # A checkpoint written before the validation, by a signal, says that it is still due.
            stage.done = number
            stage.validation_due = config.eval_every > 0 and (last or number % config.eval_every == 0)
            if stage.validation_due:
                _validate(stage)
            if last or number % config.save_every == 0:
                stage.save()
                saved = True
            if not last and stage.asked_to_stop():
                raise StopRequested
    except (StopRequested, Unavailable) as reason:
        if not saved:
            stage.save()
        why = str(reason) if isinstance(reason, Unavailable) else stage.stop.why()
        raise RunInterrupted(
            f"{why.rstrip('.')}: the run is saved after step {stage.done} of {steps}. Give the same command with "
            "`--resume` to continue (from Python: `train(resume_from_checkpoint=True)`)."
        ) from None


def _validate(stage: Stage) -> None:
    stage.validate()
    stage.validation_due = False
