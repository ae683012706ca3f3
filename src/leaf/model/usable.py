"""Find the rows whose audio the model can take."""

from collections.abc import Callable, Sequence
from typing import Any

from leaf.data.rows import row_name, take
from leaf.errors import AudioError, DataError
from leaf.model.policy import Policy
from leaf.model.prompts import check_length, waveform

MOST_UNUSABLE = 100  # rows one after the other; if none of so many has usable audio, the data set is at fault


def rows_with_audio(
    policy: Policy, rows: Any, indices: Sequence[int], say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], int]:
    """Take rows by index; the next row with usable audio replaces one without.

    Args:
        policy: whose model has to take the audio.
        rows: the data set.
        indices: of the rows wanted.
        say: called with a line for every row left out.

    Returns:
        The rows, and how many of them are replacements.

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
                f"{min(len(rows), MOST_UNUSABLE)} rows, one after the other, have no usable audio, from "
                f"{row_name(row)!r} on. Check where the manifest points."
            )
    return chosen, replaced


def unusable_audio(policy: Policy, rows: Sequence[dict[str, Any]], *, decode: bool) -> dict[int, str]:
    """Say why rows have no usable audio, by number of the row.

    Only the headers of files are read; with `decode` all of the audio.
    """
    look, found = waveform if decode else check_length, {}
    for number, row in enumerate(rows):
        try:
            look(policy.family, policy.processor, row)
        except AudioError as error:
            found[number] = str(error)
    return found
