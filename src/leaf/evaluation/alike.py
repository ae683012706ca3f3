"""Compare the items of prediction files, and put the predictions of several systems over each other, item by item."""

from collections.abc import Mapping, Sequence
from typing import Any

from leaf.errors import some_of
from leaf.evaluation.predictions import Predictions
from leaf.evaluation.references import all_of
from leaf.text import composed


def difference_to_any(others: Sequence[Predictions], one: Predictions) -> str | None:
    """Say how a system's items differ from the first of others that has different ones, as `item_difference`."""
    return next(filter(None, (item_difference(other, one) for other in others)), None)


def item_difference(a: Predictions, b: Predictions) -> str | None:
    """Say how the items of two systems differ: ids, references, prompts or recordings; None where nothing does.

    The order may differ. Prompts and recordings are compared where both files state them.
    """
    ours, theirs = ({item["id"]: item for item in one.items} for one in (a, b))
    only = [
        f"{len(ids)} only in {one.system} ({some_of(ids)})"
        for ids, one in (
            (sorted(ours.keys() - theirs.keys()), a),
            (sorted(theirs.keys() - ours.keys()), b),
        )
        if ids
    ]
    if only:
        return "items differ: " + ", ".join(only)
    for what, texts_of in (("references", _references), ("prompts", _prompt)):
        sides = ((key, texts_of(item), texts_of(theirs[key])) for key, item in ours.items())
        if other := sorted(key for key, one, another in sides if one and another and one != another):
            return f"{what} differ for {len(other)} items ({some_of(other)})"
    sides = _recordings(a), _recordings(b)
    split = [_split_up(*sides), _split_up(*reversed(sides))]
    if all(split):  # else each recording of one file is within one of the other's, which `share_recordings` takes
        other = sorted({*split[0], *split[1]})
        return (
            f"recordings differ for {len(other)} items ({some_of(other)}): {a.system} and {b.system} disagree on which "
            "items share one; correct the column utterance in one of the files, or repeat `leaf evaluate` on the older"
        )
    return None


def _references(item: Mapping[str, Any]) -> list[str]:
    texts = all_of(item)
    return [composed(text) for text in ([texts] if isinstance(texts, str) else texts)]


def _prompt(item: Mapping[str, Any]) -> str:
    return composed(str(item.get("prompt") or ""))


def _recordings(one: Predictions) -> dict[str, str]:
    """Map each id to the name of its recording, which may be another one in another file."""
    return {item["id"]: group for item, group in zip(one.items, one.groups, strict=True)}


def _split_up(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """List the items whose recording of one file is several in the other: those outside the part of its first item."""
    part = {one[key]: other[key] for key in sorted(one, reverse=True)}
    return sorted(key for key in one if other[key] != part[one[key]])


def share_recordings(systems: Sequence[Predictions]) -> None:
    """Give all systems of the same items, in one order, the recordings of the one that has the fewest."""
    known = min(systems, key=lambda one: len(set(one.groups)))
    for one in systems:
        one.items = [{**item, "utterance": group} for item, group in zip(one.items, known.groups, strict=True)]


def in_order_of(b: Predictions, a: Predictions) -> Predictions:
    """Put the items of b into the order of a's."""
    place = {item["id"]: i for i, item in enumerate(b.items)}
    order = [place[item["id"]] for item in a.items]
    return Predictions(
        system=b.system,
        items=[b.items[i] for i in order],
        passes=[[one[i] for i in order] for one in b.passes],
        seeds=b.seeds,
        truncated=[[one[i] for i in order] for one in b.truncated],
        tokens=[[one[i] for i in order] for one in b.tokens],
        kept={name: [array[order] for array in arrays] for name, arrays in b.kept.items()},
        meta=b.meta,
        digest=b.digest,
    )
