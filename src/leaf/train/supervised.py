"""What the two supervised stages, sft and align, share. They run in one process and train on one loss per step."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from leaf.config import AlignConfig, SftConfig
from leaf.data.fingerprint import rows_fingerprint
from leaf.model.policy import Policy
from leaf.progress import EVERY, Busy
from leaf.runs.checkpoints import Checkpoints, check_space
from leaf.runs.directory import RunDirectory
from leaf.runs.signals import StopSignals
from leaf.runs.skipped import SkippedSteps
from leaf.train.schedule import build_optimizer, build_schedule, check_stage, run_length
from leaf.train.steps import take_steps


class SupervisedStage:
    """Optimiser, schedule, checkpoints and logs of a stage; subclasses give `learn`, `validate` and `save`.

    Args:
        config: the recipe.
        policy: the model; what it trains is unfrozen.
        run: the run directory.
        groups: parameter groups of the optimiser.
        trained: the trained parameters by name, for the checkpoints.
        rows: the training rows; a resumed run needs as many.
        say: takes every line meant for a person.

    Attributes:
        scores: of the last validation.
    """

    def __init__(
        self,
        config: SftConfig | AlignConfig,
        policy: Policy,
        run: RunDirectory,
        groups: Sequence[dict[str, Any]],
        trained: Mapping[str, Tensor],
        rows: Any,
        say: Callable[[str], None],
    ):
        check_stage(config)
        self.stop = StopSignals()
        say = self.stop.heard(say)
        self.config, self.policy, self.run, self.say = config, policy, run, say
        self.optimizer = build_optimizer(groups, config)
        self.length = run_length(config, len(rows))
        self.schedule = build_schedule(self.optimizer, config, self.length.cycle)
        self.checkpoints = Checkpoints(
            run,
            config,
            trained,
            self.optimizer,
            self.schedule,
            facts={"training rows": len(rows)},
            rows=rows_fingerprint(rows),
            say=say,
        )
        check_space(run.path, trained, config.keep_checkpoints, have=len(self.checkpoints.steps()))
        self.skips = SkippedSteps(policy.base.dtype, say)
        self.scores: dict[str, float] = {}
        self.done, self.validation_due = 0, False

    def train(self, *, resume: bool) -> dict[str, float]:
        """Train to the last step of the recipe and return the scores of the last validation.

        Args:
            resume: continue from the newest intact checkpoint, if there is one.

        Raises:
            RunInterrupted: the run was asked to stop (leaf.runs.signals), and it is saved.
        """
        self.began, self._said = time.perf_counter(), 0.0
        state = self.checkpoints.begin(resume)
        if state is None:
            self.save()
        else:
            self.restore(state)
            if self.done > 0 and (lost := self.lost()):
                self.say(f"{lost}; it is written again, from the checkpoint")
                self.write_trained()
        with self.stop:
            take_steps(self)
        return self.scores

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the position of the run from the state of a checkpoint."""
        self.done = state["step"]
        self.validation_due = state["validation_due"] and self.config.eval_every > 0

    def step(self, number: int) -> None:
        """Take a step, counted from 1, and log it. A long one says every half minute that it goes on."""
        with Busy(self.say, f"{self.config.stage} {number}/{self.length.steps}", quiet=True):
            self.learn(number)

    def learn(self, number: int) -> None:
        """Take a step."""
        raise NotImplementedError

    def validate(self) -> None:
        """Score the validation rows and log the scores."""
        raise NotImplementedError

    def write_trained(self) -> None:
        """Write what is trained, for use."""
        raise NotImplementedError

    def lost(self) -> str | None:
        """Say that what `write_trained` wrote is missing or damaged; None if it is whole."""
        raise NotImplementedError

    def save(self) -> None:
        """Write what is trained and the checkpoint of the last step taken."""
        if self.done > 0:
            self.write_trained()
        self.checkpoints.save(self.done, validation_due=self.validation_due, token_budget=self.policy.token_budget)

    def asked_to_stop(self) -> bool:
        """Tell whether the run was asked to stop."""
        return self.stop.asked

    def finish_step(
        self, number: int, loss: float, clipped: Sequence[nn.Parameter], rows: str, *, name: str, every: int
    ) -> None:
        """Clip the gradient, take the optimiser step or skip it, and log the step.

        Args:
            number: of the step.
            loss: whose gradient has been added up.
            clipped: parameters whose joint gradient norm is held to `max_grad_norm`.
            rows: which rows the step has; see `SkippedSteps.take`.
            name: what the loss is called in the line that is said of a step.
            every: so many steps a line is said, and after half a minute without one.
        """
        norm = float(nn.utils.clip_grad_norm_(clipped, self.config.max_grad_norm))
        taken = self.skips.take(self.optimizer, self.schedule, number, loss, norm, lambda: rows)
        record = {
            "step": number,
            "loss": loss if taken else None,
            "grad_norm": norm if taken else None,
            "skipped_steps": int(not taken),
            "seconds": self.seconds,
            "learning_rate": self.schedule.get_last_lr()[0],
        }
        self.run.append("metrics.jsonl", record)
        if number % every == 0 or self.seconds - self._said > EVERY:
            self.say_progress(number, f"{name} {loss:.3f}  {self.seconds:.0f} s")

    def count(self, busy: Busy, count: int) -> None:
        """Count rows that were validated; between two batches the run may stop."""
        busy.add(count)
        self.stop.check()

    @property
    def seconds(self) -> float:
        """Seconds since training began or was resumed."""
        return time.perf_counter() - self.began

    def log_scores(self, scores: Mapping[str, float], line: str) -> None:
        """Record the scores of a validation and say them in a line."""
        self.scores = dict(scores)
        self.run.append("validation.jsonl", {"step": self.done, **scores})
        self.say_progress(self.done, line)

    def say_progress(self, number: int, line: str) -> None:
        """Say a line about a step."""
        self._said = self.seconds
        self.say(f"{self.config.stage} {number}/{self.length.steps}  {line}")
