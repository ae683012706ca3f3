"""Find rows whose audio the model can take."""

from collections.abc import Callable, Sequence
from typing import Any

from leaf.data.rows import row_name, take
from leaf.errors import AudioError, DataError
from leaf.model.policy import Policy
from leaf.model.prompts import check_length, waveform

MOST_UNUSABLE = 100  # rows in a row without usable audio; then it is the data set, not a row


def rows_with_audio(
    policy: Policy, rows: Any, indices: Sequence[int], say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], int]:
    """Return rows by index, each without usable audio replaced by the next one that has it, and how many were replaced.

    Raises:
        DataError: too many rows, one after the other, are unusable.
    """
    chosen, replaced = [], 0
    for index in indices:
        for offset in range(min(len(rows), MOST_UNUSABLE)):
            (row,) = take(rows, [(index + offset) % len(rows)])
            try:
                waveform(policy.family, policy.processor, row)
            except AudioError as error:
                say(f"left out, the next row takes its place: {error}")
                continue
            chosen.append(row)
            replaced += offset > 0
            break
        else:
            (row,) = take(rows, [index])
            raise DataError(
                f"From row {row_name(row)!r} on {min(len(rows), MOST_UNUSABLE)} rows, one after the other, have no "
                "usable audio. Check where the manifest points."
            )
    return chosen, replaced


def unusable_audio(policy: Policy, rows: Sequence[dict[str, Any]], *, decode: bool) -> dict[int, str]:
    """Return why rows, by number, have no usable audio: as their headers say or, with `decode`, as all of it says."""
    look, found = waveform if decode else check_length, {}
    for number, row in enumerate(rows):
        try:
            look(policy.family, policy.processor, row)
        except AudioError as error:
            found[number] = str(error)
    return found
