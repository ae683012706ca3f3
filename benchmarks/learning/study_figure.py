"""Draw the study's curves: the reward that a method expects, against completions decoded and against seconds."""

import itertools
import math
import statistics
import sys

from vl_convert import vegalite_to_svg

from benchmarks.learning.figure import AXIS
from benchmarks.learning.study import METHODS
from benchmarks.learning.study_table import by_method
from benchmarks.records import read
from leaf.report.curves import band

COLORS = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]  # Okabe and Ito
COMPLETIONS = {
    "title": "completions sampled",
    "scale": {"type": "log", "nice": False},
    "axis": {"values": [300, 1000, 3000, 10_000]},
}
STRETCHES = 10  # of a run; a point is the mean of one


def study_figure(args):
    """Draw one SVG for a task: all methods of stage `seeds`, mean and 95 % band over seeds, on two axes.

    The bands leave out what the seeds' prompts add to all methods alike.
    """
    records = [record for record in read(args.out) if (record["task"], record["steps"]) == (args.task, args.steps)]
    found = by_method(records, "seeds")
    # Runs at another rate or with overrides come last, so that a method has one colour in all figures.
    found = {name: found[name] for name in sorted(found, key=lambda name: [*METHODS, name].index(name))}
    color = {"field": "method", "scale": {"domain": [*found], "range": COLORS[: len(found)]}, "title": None}
    common = shared_by_methods(found) if found else {}
    if not common:
        sys.exit(f"{args.out} has no seed of {args.task} with {args.steps} steps that every method has run yet.")
    panels = [
        panel(
            [one for name, mine in found.items() for one in points(name, mine, cost, common, len(found))],
            color,
            AXIS | x,
        )
        for cost, x in ((completions, COMPLETIONS), (seconds, {"title": "seconds of training"}))
    ]
    config = {"background": "white", "view": {"stroke": None}, "axis": {"titleFontWeight": "normal"}}
    spec = {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", "hconcat": panels, "config": config}
    args.svg.write_text(vegalite_to_svg(spec))


def completions(record):
    """Give the completions that each step sampled."""
    return [record["sums"]["completions"] / record["steps"]] * record["steps"]


def seconds(record):
    """Give the seconds that each step took."""
    return record["seconds"]


def stretches(record):
    """Compute the mean reward of each tenth of a run, by the step that ends it."""
    width = max(1, record["steps"] // STRETCHES)
    ends = range(width, record["steps"] + 1, width)
    return {end: statistics.fmean(record["rewards"][end - width : end]) for end in ends}


def shared_by_methods(found):
    """Compute how far each seed's prompts lift all methods alike: seed → step → reward above the mean of the seeds.

    All methods of a seed see the same prompts. So what their curves have in common says how hard those are, and a band
    that contained it would hide the differences between methods. Only seeds that every method has are returned. Of one
    method alone nothing is known to be in common.
    """
    runs = [{record["seed"]: stretches(record) for record in records} for records in found.values()]
    seeds = set.intersection(*(set(one) for one in runs))
    if len(runs) == 1:
        return {seed: dict.fromkeys(runs[0][seed], 0.0) for seed in seeds}
    mean = {seed: {end: statistics.fmean(one[seed][end] for one in runs) for end in runs[0][seed]} for seed in seeds}
    return {
        seed: {end: value - statistics.fmean(one[end] for one in mean.values()) for end, value in mine.items()}
        for seed, mine in mean.items()
    }


def points(method, records, cost, common, methods):
    """Compute a method's curve: at what cost so far, the median over seeds, which mean reward, with its band.

    `common` is what the prompts of each seed add to all `methods`; runs of other seeds are left out. It has a part of
    each method's own noise in it, which the band gets back (Morey 2008).
    """
    records = [record for record in records if record["seed"] in common]
    wider = math.sqrt(methods / (methods - 1)) if methods > 1 else 1.0
    curves = [stretches(record) for record in records]
    spent = [[*itertools.accumulate(cost(record))] for record in records]
    costs = [statistics.median(one[end - 1] for one in spent) for end in curves[0]]
    lifted = (common[record["seed"]] for record in records)
    over_seeds = band([{end: one[end] - add[end] for end in one} for one, add in zip(curves, lifted, strict=True)])
    values = (over_seeds[key] for key in ("value", "low", "high"))
    return [
        {
            "method": method,
            "at": where,
            "reward": mean,
            "low": mean - (mean - low) * wider,
            "high": mean + (high - mean) * wider,
        }
        for where, mean, low, high in zip(costs, *values, strict=True)
    ]


def panel(values, color, x):
    """Draw one panel; `x` is its title and scale."""
    x = {"field": "at", "type": "quantitative", **x}
    area = {"y": {"field": "low", "type": "quantitative", **AXIS}, "y2": {"field": "high"}}
    line = {"y": {"field": "reward", "type": "quantitative", "title": "expected reward of the rollouts", **AXIS}}
    layer = [
        {"mark": {"type": "area", "opacity": 0.15}, "encoding": area},
        {"mark": {"type": "line", "strokeWidth": 2.5}, "encoding": line},
    ]
    return {"data": {"values": values}, "encoding": {"x": x, "color": color}, "layer": layer, "width": 340}
