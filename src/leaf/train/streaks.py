"""Say so when steps in a row teach nothing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SENTENCES = {
    "unscored": "no completion was scored, so there is nothing to learn from. Look at what the reward functions return",
    "flat": (
        "the rewards within every group were all equal, so there is nothing to learn from. Use a reward with finer "
        "levels, a higher temperature or other rows"
    ),
    "truncated": (
        "every completion reached max_new_tokens without ending. Raise it, or check that the prompt's template makes "
        "the model end its answers"
    ),
}
# Checkpoints of version 0.1 have the sentences as keys; they began like this.
_KEYS_OF_0_1 = {"no completion": "unscored", "the rewards within": "flat", "every completion": "truncated"}


@dataclass
class Streaks:
    """Count steps in a row that teach nothing, and say so once per streak. The run continues, but its user should know.

    Attributes:
        say: takes the line.
        patience: length of a streak at which it is said.
        lengths: how long each streak of `SENTENCES` is now.
    """

    say: Callable[[str], None]
    patience: int = 10

    def __post_init__(self) -> None:
        self.lengths = dict.fromkeys(SENTENCES, 0)

    def step(self, record: Mapping[str, Any]) -> None:
        """Look at the record of a step."""
        unscored = record["reward_mean"] is None
        now = {
            "unscored": unscored,
            "flat": not unscored and record["zero_variance_groups"] == 1.0,
            "truncated": record["truncated"] == 1.0,
        }
        for key, going_on in now.items():
            self.lengths[key] = self.lengths[key] + 1 if going_on else 0
            if self.lengths[key] == self.patience:
                self.say(f"step {record['step']}: for {self.patience} steps {SENTENCES[key]}")

    def restore(self, lengths: Mapping[str, int]) -> None:
        """Take the lengths from a checkpoint."""
        for name, length in lengths.items():
            old = (key for beginning, key in _KEYS_OF_0_1.items() if name.startswith(beginning))
            self.lengths[next(old, name)] = length
