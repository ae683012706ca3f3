"""The loop that all stages share, on a stage that only notes what it is asked for."""

import pytest

from leaf.config import RunConfig
from leaf.errors import ModelError, RunInterrupted, Unavailable
from leaf.runs.signals import StopRequested, StopSignals
from leaf.train.phases import phase, watched_by
from leaf.train.schedule import run_length
from leaf.train.steps import take_steps


class Noting:
    """Note steps, validations and saves as `step 1`, `validation 1` and `save 1`; a due validation is a `!`."""

    def __init__(self, asked_after=None, stopped_at=None, stops: type[Exception] | Exception = StopRequested, **config):
        self.config = RunConfig(**config)
        self.length = run_length(self.config, 0)
        self.stop = StopSignals()
        self.done, self.validation_due = 0, False
        self.asked_after, self.stopped_at, self.stops = asked_after, stopped_at, stops
        self.events = []

    def _note(self, event):
        if event == self.stopped_at:
            raise self.stops
        self.events.append(event)

    def step(self, number):
        self._note(f"step {number}")

    def validate(self):
        self._note(f"validation {self.done}")

    def save(self):
        self._note(f"save {self.done}" + "!" * self.validation_due)

    def asked_to_stop(self):
        return self.done == self.asked_after


def test_validations_and_saves_come_as_often_as_asked_for_and_at_the_end():
    stage = Noting(max_steps=5, eval_every=2, save_every=3)
    take_steps(stage)
    wanted = "step 1, step 2, validation 2, step 3, save 3, step 4, validation 4, step 5, validation 5, save 5"
    assert ", ".join(stage.events) == wanted
    never = Noting(max_steps=2, eval_every=0, save_every=9)
    take_steps(never)
    assert never.events == ["step 1", "step 2", "save 2"]


def test_a_validation_that_was_left_due_comes_first():
    stage = Noting(max_steps=2, eval_every=5, save_every=5)
    stage.done, stage.validation_due = 1, True
    take_steps(stage)
    assert stage.events == ["validation 1", "save 1", "step 2", "validation 2", "save 2"]


def test_a_run_that_is_asked_to_stop_is_saved_once():
    for save_every, events in ((9, "step 1, step 2, save 2"), (2, "step 1, step 2, save 2")):
        stage = Noting(asked_after=2, max_steps=5, eval_every=0, save_every=save_every)
        with pytest.raises(RunInterrupted, match="after step 2 of 5"):
            take_steps(stage)
        assert ", ".join(stage.events) == events
    asked_at_the_end = Noting(asked_after=5, max_steps=5, eval_every=0)
    take_steps(asked_at_the_end)  # there is nothing left to stop
    assert asked_at_the_end.done == 5


def test_what_is_given_up_is_done_again():
    step = Noting(stopped_at="step 3", max_steps=5, eval_every=0, save_every=2)
    with pytest.raises(RunInterrupted, match="after step 2 of 5"):
        take_steps(step)
    assert step.events == ["step 1", "step 2", "save 2"]  # saved already
    validation = Noting(stopped_at="validation 3", max_steps=3, eval_every=3, save_every=9)
    with pytest.raises(RunInterrupted, match="after step 3 of 3"):
        take_steps(validation)
    assert validation.events[-1] == "save 3!"


def test_where_a_server_stays_away_the_steps_since_the_last_save_are_saved():
    gone = Unavailable("No server answered for 9 s, so start one again (http://a; last: refused)")
    stage = Noting(stopped_at="step 4", stops=gone, max_steps=5, eval_every=0, save_every=9)
    with pytest.raises(RunInterrupted, match=r"refused\): the run is saved after step 3 of 5\. .*--resume"):
        take_steps(stage)
    assert stage.events == ["step 1", "step 2", "step 3", "save 3"]
    wrong = Noting(stopped_at="step 4", stops=ModelError("no"), max_steps=5, eval_every=0, save_every=9)
    with pytest.raises(ModelError):
        take_steps(wrong)
    assert wrong.events[-1] == "step 3"  # what may be wrong is not saved over what was right


def test_a_watcher_sees_phases_and_changes_nothing_about_them():
    seen = []

    class Watched:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            seen.append(self.name)

        def __exit__(self, *error):
            seen.append(f"/{self.name}")

    @phase("double")
    def double(value):
        """Double it."""
        return 2 * value

    assert double(2) == 4
    with watched_by(Watched):
        assert double(value=3) == 6
    assert double(4) == 8
    assert seen == ["double", "/double"]
    assert double.__doc__ == "Double it."
