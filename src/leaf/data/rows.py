"""A row: one example of a data set, what may be asked of it, and which rows make up a step.

A row is a mapping with at least the columns

    prompt      what the model is asked: a text, with {audio} where the audio goes if that is not first, or messages as
                chat templates take them
    audio       what it hears: a file, a list of files to be joined, or a mapping: {"array", "sampling_rate"}, or
                {"bytes"} or {"path"} of an encoded file (leaf.data.audio)
    reference   the text that rewards and metrics compare a completion with; a data set without one goes with rewards
                and metrics that do without

and, where the data set has them,

    references  all texts that are right, where there are several; `reference` is the first of them
    id          what messages and prediction files call it
    utterance   its recording: rows of one recording stay in one split, and a bootstrap draws them together
    reference_language
                in which language the reference is, as zh-CN or ja: BLEU's tokenizer depends on it
    text        what is said in it, for judges and metrics that read the source
    offset, duration
                the stretch of its audio that is heard, in seconds
    seconds     the length of what is heard, a hint for batching; one that is over 1 % off is refused
    kind        what sort of question it is

Reward functions are given all columns by name.
"""

import math
import random
import re
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from leaf.errors import DataError, did_you_mean

Example = Mapping[str, Any]
AUDIO_PLACE = "{audio}"  # in a prompt's text, whatever placeholder the model has

# How models and frameworks mark the place of the audio in a prompt.
AUDIO_TAG = re.compile(
    r"<\|?/?(?:audio|sound|speech)[a-z_]*[0-9_]*\|?>|<SpeechHere>|\[AUDIO\]|<so_embedding>", re.IGNORECASE
)


def row_name(example: Example) -> str:
    """Name a row in a message: by its id, or else by how its prompt begins."""
    return str(example.get("id", str(example["prompt"])[:40]))[:80]


def prompt_text(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """Reduce a prompt to its text: messages become their text parts in order, a line each."""
    if isinstance(prompt, str):
        return re.sub(rf"\s*{re.escape(AUDIO_PLACE)}\s*", " ", prompt).strip() if AUDIO_PLACE in prompt else prompt
    texts = []
    for message in prompt:
        content = message["content"]
        if isinstance(content, str):
            texts.append(content)
        else:
            texts += [part["text"] for part in content if part.get("type") == "text"]
    return "\n".join(texts)


def stated_seconds(example: Example) -> float:
    """Read how long a row says its audio is, 0 where it does not."""
    try:
        seconds = float(example.get("seconds") or 0.0)
    except (TypeError, ValueError):  # a column of the user's own, in words or another unit
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0


def check_references(rows: Any, who: str, otherwise: str = "") -> None:
    """Refuse rows without a reference where something compares with it.

    Args:
        rows: a data set or list.
        who: asks for the reference, as the beginning of a sentence: "The reward bleu reads".
        otherwise: what else helps, as the end of a sentence.

    Raises:
        DataError: a row has none.
    """
    names = getattr(rows, "column_names", None)
    if names is not None and "reference" not in names:
        raise DataError(
            f"{who} `reference`, and the rows have only the columns {', '.join(names)}."
            f"{did_you_mean('reference', names)} Give every row a reference, or map its column with columns{otherwise}."
        )
    texts = rows["reference"] if names is not None else [row.get("reference") for row in rows]
    for i, text in enumerate(texts):
        if text is None or (isinstance(text, str) and not text.strip()):
            raise DataError(
                f"{who} `reference`, and the row {row_name(rows[i])!r} has none. Give every row a reference, or take "
                f"the row out{otherwise}."
            )


# -- the rows of a step ------------------------------------------------------------------------------------------------
def batch_indices(num_rows: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Choose the rows of one step: each epoch is a permutation of its own, and the epochs are cut into batches.

    The choice depends on the arguments alone. So the step number is the position in the data, and a resumed run needs
    no other state to continue with the same rows.
    """
    if num_rows < 1:
        raise DataError("The training split has no rows; give it at least one.")
    indices = []
    position = step * batch_size
    while len(indices) < batch_size:  # a batch at the end of an epoch continues in the next one
        epoch, offset = divmod(position + len(indices), num_rows)
        order = shuffled(num_rows, f"{seed}/{epoch}")
        indices += order[offset : offset + batch_size - len(indices)]
    return indices


# Two epochs meet in a batch, and a step with further rounds has an order of its own: 8 bytes a row each.
@lru_cache(maxsize=4)
def shuffled(count: int, seed: str) -> Sequence[int]:
    """Shuffle the numbers below `count` by a seed. The order is kept, since to make it takes a second a million."""
    order = array("q", range(count))
    random.Random(seed).shuffle(order)
    return order


def subset(count: int, size: int | None, seed: int | None = None) -> Sequence[int]:
    """Choose `size` of so many rows: the first ones, or with a seed some drawn at random, in their order.

    All of them where there are no more, or no size is given.
    """
    if size is None or size >= count or seed is None:
        return range(count if size is None else min(size, count))
    return sorted(random.Random(f"subset/{seed}").sample(range(count), size))


def take(rows: Any, indices: Sequence[int]) -> list[dict[str, Any]]:
    """Take rows out of a data set or list, as dictionaries."""
    return [dict(rows[i]) for i in indices]
