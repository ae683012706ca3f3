"""Say so when steps in a row teach nothing."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class Streaks:
    """Say so when steps in a row teach nothing, once per streak: the run goes on, but its user should know."""

    say: Callable[[str], None]
    patience: int = 10

    def __post_init__(self) -> None:
        self.lengths: dict[str, int] = {}

    def step(self, record: dict[str, Any]) -> None:
        """Look at the record of a step."""
        unscored = record["reward_mean"] is None
        met = {
            "no completion was scored, so there is nothing to learn from. Look at what the reward functions return": (
                unscored
            ),
            "the rewards within every group were all equal, so there is nothing to learn from. Use a reward with finer "
            "levels, a higher temperature or other rows": not unscored and record["zero_variance_groups"] == 1.0,
            "every completion reached max_new_tokens without ending. Raise it, or check that the prompt's template "
            "makes the model end its answers": record["truncated"] == 1.0,
        }
        for what, now in met.items():
            self.lengths[what] = self.lengths.get(what, 0) + 1 if now else 0
            if self.lengths[what] == self.patience:
                self.say(f"step {record['step']}: for {self.patience} steps {what}")
