"""Read what one asks of a row, and choose the rows of a step."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from leaf.errors import DataError


def prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """Return a prompt's text; of conversational messages, their text parts in order."""
    if isinstance(prompt, str):
        return prompt
    texts = []
    for message in prompt:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts += [part["text"] for part in parts if part.get("type") == "text"]
    return "\n".join(texts)


Example = Mapping[str, Any]


def row_name(example: Example) -> str:
    """Return what a row is called in messages: its id, or else how its prompt begins."""
    return str(example.get("id", str(example["prompt"])[:40]))[:80]


def stated_seconds(example: Example) -> float:
    """Return how long a row says its audio is, 0 where it does not; a hint that is never relied on."""
    try:
        seconds = float(example.get("seconds") or 0.0)
    except (TypeError, ValueError):  # a column of the user's own, in words or another unit
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


def batch_indices(num_rows: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Return the rows of one step: epoch after epoch of seeded permutations, cut into batches.

    A function of its arguments alone, so that the position in the data is the step number.
    """
    if num_rows < 1:
        raise DataError("The training split has no rows; give it at least one.")
    indices = []
    position = step * batch_size
    while len(indices) < batch_size:
        epoch, offset = divmod(position + len(indices), num_rows)
        order = list(range(num_rows))
        random.Random(f"{seed}/{epoch}").shuffle(order)
        indices += order[offset : offset + batch_size - len(indices)]
    return indices


def take(rows: Any, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Return rows of a data set (or list) as dictionaries."""
    return [dict(rows[i]) for i in indices]
