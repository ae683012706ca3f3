"""Which items of a set of predictions the report shows, with their texts and recordings."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from leaf.data import TASKS
from leaf.data.audio import Audio, AudioWarning
from leaf.errors import AudioError, ConfigError, DataError
from leaf.evaluation.predictions import Predictions
from leaf.report.audio import ClipStore, Recordings


def text_of(number: int, systems: Sequence[Predictions]) -> dict[str, Any]:
    """Collect the texts of an item, its predictions by system and pass."""
    item = systems[0].items[number]
    columns = ("id", "kind", "prompt", "text", "reference", "references")
    shown = {key: item[key] for key in columns if item.get(key) is not None}
    shown["said"] = [[texts[number] for texts in one.passes] for one in systems]
    shown["cut"] = [[bool(cut[number]) for cut in one.truncated] for one in systems]
    return shown


def chosen_items(metrics: Sequence[Mapping[str, Any]], texts: Sequence[dict[str, Any]], text_bytes: int) -> list[int]:
    """Choose the most telling items whose texts fit into a number of bytes, at least one.

    Args:
        metrics: what was computed; the first one says which items are telling, unless it is neutral.
        texts: what the page shows of each item.
        text_bytes: how much room there is.

    Returns:
        Numbers of items, the most telling first.
    """
    chosen: list[int] = []
    for i in _telling(metrics, len(texts)):
        text_bytes -= len(json.dumps(texts[i], ensure_ascii=False).encode("utf-8", "surrogatepass"))
        if chosen and text_bytes < 0:
            break
        chosen.append(i)
    return chosen


def _telling(metrics: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Order all items: in turn the most improved, the most worsened, the worst and the best by the first metric."""
    if not metrics or metrics[0].get("neutral"):
        return list(range(count))
    sign = -1.0 if metrics[0]["less"] else 1.0
    scores = metrics[0]["items"]
    first, last = (sign * np.array(scores[system], dtype=float) for system in (0, -1))
    keys = [last, -last] if len(scores) == 1 else [first - last, last - first, last, -last]
    orders = [np.argsort(key, kind="stable").tolist() for key in keys]  # NaN last
    return list(dict.fromkeys(i for turn in zip_longest(*orders) for i in turn))


def clips_of(
    items: Sequence[dict[str, Any]],
    predictions: Predictions,
    recordings: Sequence[Recordings],
    store: ClipStore | None,
    say: Callable[[str], None],
) -> tuple[dict[str, int], dict[str, int]]:
    """Find and store the recordings of items, in their order.

    Args:
        items: rows of a prediction file.
        predictions: what they were read from; its meta data may name task and split.
        recordings: where the items may have their audio.
        store: takes the clips; None without recordings.
        say: takes a line about recordings that cannot be read.

    Returns:
        Id of an item → number of its clip, and the number of items without a clip by reason.
    """
    clips: dict[str, int] = {}
    lost = {"full": 0, "missing": 0, "unreadable": 0}
    if store is None:
        return clips, lost
    made_with = predictions.meta.get("made_with", {})
    task = made_with.get("task")
    usable = [one for one in recordings if task in (None, Path(one.task).name)]
    if not usable and task in TASKS:  # a task that comes with leaf needs no recipe
        usable = [Recordings(task)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AudioWarning)  # whoever trained on the recordings has been told
        for item in items:
            try:
                source = _find(item, usable, made_with.get("split"), say)
                number = None if source is None else store.add(source)
            except AudioError as error:
                if not lost["unreadable"]:
                    say(f"the report has no recording of {item['id']}, and perhaps of others: {error}")
                lost["unreadable"] += 1
                continue
            if number is None:
                lost["missing" if source is None else "full"] += 1
            else:
                clips[item["id"]] = number
    return clips, lost


def _find(
    item: dict[str, Any], usable: list[Recordings], split: str | None, say: Callable[[str], None]
) -> Audio | None:
    """Find an item's audio; sources whose rows cannot be read are taken out of `usable`.

    Raises:
        AudioError: the item's row has no recording, or several.
    """
    for one in list(usable):
        try:
            found = one.find(item, split)
        except AudioError:
            raise
        except (ConfigError, DataError) as error:
            say(f"the report has no recordings of {Path(one.task).name}: {error}")
            usable.remove(one)
            continue
        if found is not None:
            return found
    return None
