"""The recorded groups of a run, found by their steps: a long run has gigabytes of them, and a page shows a few."""

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from leaf.errors import RunError
from leaf.runs.directory import RunDirectory, record_of

LOG = "groups.jsonl"
_PER_COMPLETION = ("token_ids", "tokens", "rewards", "surprisal", "advantages")
_STEP = re.compile(rb'\{"step": ?(\d+)[,}]')  # how leaf begins a line


class RecordedGroups:
    """Where the groups of each step are in a run's groups.jsonl. No line is parsed before it is asked for.

    Attributes:
        sizes: recorded step → bytes of its lines, in ascending order of steps.
        count: of all groups.

    Raises:
        RunError: a line does not say its step.
    """

    def __init__(self, run: RunDirectory):
        self._file = run.path / LOG
        self._places: dict[int, list[int]] = {}  # step → where its lines begin
        self.count, at = 0, 0
        sizes: dict[int, int] = {}
        for line in run.raw_lines(LOG):
            step = self._step_of(line)
            self._places.setdefault(step, []).append(at)
            sizes[step] = sizes.get(step, 0) + len(line)
            self.count, at = self.count + 1, at + len(line)
        self.sizes = dict(sorted(sizes.items()))

    def _step_of(self, line: bytes) -> int:
        if begins := _STEP.match(line):
            return int(begins[1])
        return self._parsed(line)["step"]

    def _parsed(self, line: bytes) -> dict[str, Any]:
        record = record_of(line)
        if record is None:
            raise RunError(f"{self._file} has a line that is no JSON object with a step; the file is damaged.")
        return record

    def of(self, steps: Collection[int]) -> Iterator[dict[str, Any]]:
        """Read the records of some steps, in the order of the steps."""
        if not steps:
            return
        with self._file.open("rb") as file:
            for step in sorted(steps):
                for place in self._places[step]:
                    file.seek(place)
                    yield whole_group(self._parsed(file.readline()), self._file)

    def spread(self, most: int) -> list[int]:
        """Choose steps, evenly spread, that have about `most` groups together; all where there are no more."""
        return (
            even(list(self.sizes), max(1, len(self.sizes) * most // self.count)) if self.count > most else [*self.sizes]
        )


def whole_group(record: dict[str, Any], file: Path) -> dict[str, Any]:
    """Check that a record has what is drawn of a group, one entry for each completion, and return it.

    Raises:
        RunError: it has not.
    """
    per_completion = [record.get(key) for key in _PER_COMPLETION]
    if not all(isinstance(one, list) and len(one) == len(per_completion[0] or ()) for one in per_completion):
        raise RunError(
            f"{file} has a group of step {record['step']} without {', '.join(_PER_COMPLETION)} of every completion; "
            "the file is damaged. Restore it from a copy, or remove that line."
        )
    return record


def even(values: Sequence[int], count: int) -> list[int]:
    """Choose `count` of the values, evenly spread, with the first and the last one; of one, the last."""
    if count >= len(values):
        return list(values)
    if count == 1:
        return [values[-1]]
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]
