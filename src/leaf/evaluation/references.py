"""Several right references for one item: BLEU and chrF take all as sacreBLEU does, other metrics the best of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leaf.evaluation.bootstrap import Metric

References = Sequence[str | Sequence[str]]  # per item one reference, or all of them


def first_of(references: str | Sequence[str]) -> str:
    """Take the reference of an item, the first one where there are several."""
    return references if isinstance(references, str) else references[0] if references else ""


def all_of(item: Mapping[str, Any]) -> str | list[str]:
    """Read what an item is compared with: its `references`, or its `reference`."""
    return item.get("references") or item["reference"]


def has_several(references: References) -> bool:
    """Tell whether any item has more than one reference."""
    return any(not isinstance(one, str) and len(one) > 1 for one in references)


def statistics_of_several(
    metric: Metric, predictions: Sequence[str], references: Sequence[Sequence[str]], sources: Sequence[str] | None
) -> np.ndarray:
    """Compute the (items, statistics) array of a metric with a list of references for each prediction."""
    if metric.multi_items is not None:
        return metric.multi_items(predictions, references)
    value = metric.item_total or metric.total
    best: list[np.ndarray] = []
    for place in range(max(map(len, references))):
        chosen = [i for i, some in enumerate(references) if len(some) > place]
        sides = [[predictions[i] for i in chosen], [references[i][place] for i in chosen]]
        sides += [] if sources is None else [[sources[i] for i in chosen]]
        rows = metric.items(*sides)
        if not best:  # every item has a first reference
            best = list(rows)
            continue
        for i, row in zip(chosen, rows, strict=True):
            ours, theirs = value(row), value(best[i])
            if ours < theirs if metric.less_is_better else ours > theirs:
                best[i] = row
    return np.stack(best)


def signature_of(metric: Metric, lowercase: bool, references: References) -> str:
    """Write a metric's signature, with how many references the items have."""
    signature = metric.signature(lowercase)
    if not has_several(references):
        return signature
    counts = {1 if isinstance(one, str) else len(one) for one in references}
    number = str(counts.pop()) if len(counts) == 1 else "var"
    if metric.multi_items is not None:
        return signature.replace("nrefs:1", f"nrefs:{number}")
    return f"{signature}|best-of-refs:{number}"
