"""The section on forkability: do completions part where LEAF cuts, do rewards differ there, where does credit go?"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from leaf.config import LeafConfig
from leaf.credit import Fork, credit_mass, credit_mass_by_position, fork_rates, fork_rates_by_position, forks
from leaf.credit.sets import shares_of_draw
from leaf.report.curves import plotting
from leaf.report.drawn_group import DrawnGroup
from leaf.report.page import Section, assets
from leaf.report.recorded import RecordedGroups
from leaf.report.runs import ShownRun, colours, rules_of

MOST = 1000  # groups of a run that are counted; more move no figure by what a reader could see
EDGES = (0, 2, 5, 10, 20, 50, 100)  # token positions at which a stretch begins; the last one is open
FIFTHS = ("first", "second", "third", "fourth", "last")


@dataclass
class CreditMass:
    """Credit of one rule, summed over the groups that have any: each group counts as 1."""

    groups: int = 0
    fifths: Tensor = field(default_factory=lambda: torch.zeros(len(FIFTHS)))
    stretches: Tensor = field(default_factory=lambda: torch.zeros(len(EDGES)))

    def add(self, advantages: Tensor, lengths: Tensor) -> None:
        """Add the credit of a group; without any, it has no say."""
        if bool(advantages.any()):
            self.groups += 1
            self.fifths = self.fifths + credit_mass(advantages, lengths)
            self.stretches = self.stretches + credit_mass_by_position(advantages, lengths, edges=EDGES)


@dataclass
class ForkCounts:
    """What is counted of the recorded groups of a method."""

    groups: int = 0
    forks: list[Fork] = field(default_factory=list)
    credit: dict[str, CreditMass] = field(default_factory=dict)

    def add(self, group: DrawnGroup, trained_with: str) -> None:
        """Count a group: its forks, and the credit of the rule that trained, with LEAF and an estimator beside it.

        The estimator is GRPO, which takes plain means, or the unordered-set estimator for distinct completions.
        """
        self.groups += 1
        cuts = torch.tensor(group.boundaries, dtype=torch.long)
        prompt = group.record.get("id") or self.groups  # the same one comes again in other steps and seeds
        self.forks += forks(group.tree, group.rewards, cuts, shares_of_draw(group.draw), prompt=prompt)
        beside = ("leaf", "grpo" if group.draw is None else "unordered_set")
        others = [(rule, rule) for rule in beside if rule != trained_with]
        for name, rule in ((f"{trained_with}, as trained", None), *others):
            advantages = group.advantages(rule)
            if group.shares is not None:
                advantages = advantages * group.shares[:, None]
            self.credit.setdefault(name, CreditMass()).add(advantages, group.tree.lengths)

    def as_json(self, width: float) -> dict[str, Any]:
        """Collect the counts for the page, reward spreads in stretches of a width."""
        places = fork_rates_by_position(self.forks, edges=(1, *EDGES[1:]))
        return {
            "groups": self.groups,
            "whole": fork_rates(self.forks),
            "places": [{"stretch": _named(*place), **rates} for place, rates in places.items() if rates["boundaries"]],
            "sizes": _histogram([size for fork in self.forks for size in fork.sizes]),
            "spreads": _histogram([_stretch_of(spread, width) for fork in self.forks for spread in fork.spreads]),
            "credit": [
                {
                    "rule": name,
                    "groups": mass.groups,
                    "fifths": (mass.fifths / mass.groups).tolist(),
                    "stretches": (mass.stretches / mass.groups).tolist(),
                }
                for name, mass in self.credit.items()
                if mass.groups
            ],
        }


def forks_section(runs: Sequence[ShownRun]) -> tuple[Section | None, list[str]]:
    """Make the section of the recorded groups, the seeds of a method together, and notes on what it leaves out.

    There is no section if no run recorded any group. Of a run with many, those of evenly spread steps are counted.
    """
    notes: list[str] = []
    methods: dict[str, ForkCounts] = {}
    for run in runs:
        if not isinstance(run.recipe, LeafConfig):
            continue
        recorded = RecordedGroups(run.directory)
        steps = recorded.spread(MOST)
        if len(steps) < len(recorded.sizes):
            notes.append(
                f"{run.name}: forks and credit are counted in the groups of {len(steps)} steps, evenly spread over the "
                f"{len(recorded.sizes)} that were recorded."
            )
        for record in recorded.of(steps):
            methods.setdefault(run.method, ForkCounts()).add(DrawnGroup(record, run.recipe), run.recipe.credit)
    if not methods:
        return None, notes
    rules = rules_of(runs)  # of all runs, so that a method has the colour of the other sections
    colour = dict(zip(rules, colours(list(rules.values())), strict=True))
    spreads = [spread for counts in methods.values() for fork in counts.forks for spread in fork.spreads]
    width = round_width(max(spreads, default=0.0))
    data = {
        "fifths": FIFTHS,
        "spreads": ["equal", *(f"to {width * number:.3g}" for number in range(1, 10))],
        "stretches": [_named(*edge) for edge in zip(EDGES, [*EDGES[1:], None], strict=True)],
        "methods": [
            {"method": name, "colour": colour[name], **counts.as_json(width)} for name, counts in methods.items()
        ],
    }
    scripts = (*plotting(), *assets("forks/forks.js"))
    styles = assets("plots.css", "forks/forks.css")
    return Section("forks", "Forks and credit", data, scripts, styles, evaluates=True), notes


def _histogram(values: Sequence[int]) -> list[list[int]]:
    return [[value, count] for value, count in sorted(Counter(values).items())]


def round_width(largest: float) -> float:
    """Choose a round width of which about five stretches reach up to the largest spread."""
    fifth = max(largest, 1e-9) / 5
    power = 10.0 ** math.floor(math.log10(fifth))
    return power * next(times for times in (1, 2, 2.5, 5, 10) if times * power >= 0.999 * fifth)


def _stretch_of(spread: float, width: float) -> int:
    """Compute the number of a spread's stretch of that width, from 1; of equal rewards 0."""
    # A spread on an edge belongs below it, whatever the last bit of the division.
    return math.ceil(spread / width - 1e-9) if spread > 0 else 0


def _named(first: int, end: int | None) -> str:
    """Write token positions [first, end) in words."""
    if end is None:
        return f"{first} on"
    return f"{first}" if end == first + 1 else f"{first} to {end - 1}"
