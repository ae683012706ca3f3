"""The section on forkability: do completions part where LEAF cuts, do rewards differ there, where does credit go?"""

import math
from collections.abc import Sequence
from typing import Any

import torch

from leaf.config import LeafConfig
from leaf.credit import Fork, credit_mass, credit_mass_by_position, fork_rates, fork_rates_by_position, forks
from leaf.report.curves import plotting
from leaf.report.drawn_group import GroupTree
from leaf.report.page import Section, asset
from leaf.report.runs import ShownRun

EDGES = (0, 2, 5, 10, 20, 50, 100)
FIFTHS = ("first", "second", "third", "fourth", "last")


def forks_section(runs: Sequence[ShownRun]) -> Section | None:
    """Return the section of all recorded groups, or None without any. Seeds of a method are counted together."""
    methods: dict[str, dict[str, Any]] = {}
    for run in runs:
        if not isinstance(run.recipe, LeafConfig):
            continue
        for record in run.directory.lines("groups.jsonl"):
            found = methods.setdefault(run.method, {"groups": 0, "forks": [], "credit": {}})
            _take(found, GroupTree(record, run.recipe), run.recipe.credit)
    if not methods:
        return None
    width = _width(max((s for found in methods.values() for fork in found["forks"] for s in fork.spreads), default=0.0))
    data = {
        "fifths": FIFTHS,
        "spreads": ["equal", *(f"to {width * number:.3g}" for number in range(1, 10))],
        "stretches": [_stretch(*edge) for edge in zip(EDGES, [*EDGES[1:], None], strict=True)],
        "methods": [{"method": name, **_counted(found, width)} for name, found in methods.items()],
    }
    return Section("forks", "Forks and credit", data, asset("forks.js"), "", plotting(), evaluates=True)


def _take(found: dict[str, Any], tree: GroupTree, own: str) -> None:
    found["groups"] += 1
    found["forks"] += forks(tree.prefixes, tree.rewards, torch.tensor(tree.boundaries, dtype=torch.long))
    for name, rule in ((f"{own}, as trained", None), ("leaf", "leaf"), ("grpo", "grpo")):
        if rule == own:
            continue
        advantages = tree.advantages(rule)
        if not bool(advantages.any()):
            continue
        sums = found["credit"].setdefault(name, [0, torch.zeros(len(FIFTHS)), torch.zeros(len(EDGES))])
        sums[0] += 1
        sums[1] = sums[1] + credit_mass(advantages, tree.prefixes.lengths)
        sums[2] = sums[2] + credit_mass_by_position(advantages, tree.prefixes.lengths, edges=EDGES)


def _counted(found: dict[str, Any], width: float) -> dict[str, Any]:
    every: list[Fork] = found["forks"]
    places = fork_rates_by_position(every, edges=(1, *EDGES[1:]))
    return {
        "groups": found["groups"],
        "whole": fork_rates(every),
        "places": [{"stretch": _stretch(*place), **rates} for place, rates in places.items() if rates["boundaries"]],
        "sizes": _histogram([size for fork in every for size in fork.sizes]),
        "spreads": _histogram([_stretch_of(spread, width) for fork in every for spread in fork.spreads]),
        "credit": [
            {"rule": name, "groups": n, "fifths": (fifths / n).tolist(), "stretches": (stretches / n).tolist()}
            for name, (n, fifths, stretches) in found["credit"].items()
        ],
    }


def _histogram(values: Sequence[int]) -> list[list[int]]:
    return [[value, values.count(value)] for value in sorted(set(values))]


def _width(most: float) -> float:
    """Return the round width of about five stretches up to a largest spread."""
    fifth = max(most, 1e-9) / 5
    power = 10.0 ** math.floor(math.log10(fifth))
    return power * next(times for times in (1, 2, 2.5, 5, 10) if times * power >= 0.999 * fifth)


def _stretch_of(spread: float, width: float) -> int:
    """Return the number of a spread's stretch of that width, from 1; of equal rewards 0."""
    return math.ceil(spread / width - 1e-9) if spread > 0 else 0


def _stretch(first: int, end: int | None) -> str:
    """Return a stretch of token positions [first, end) in words."""
    if end is None:
        return f"{first} on"
    return f"{first}" if end == first + 1 else f"{first} to {end - 1}"
