"""Draw the study's curves: the reward that a method expects, against completions decoded and against seconds."""

import itertools
import statistics

from vl_convert import vegalite_to_svg

from benchmarks.learning.figure import AXIS
from benchmarks.learning.study_table import by_method
from benchmarks.records import read
from leaf.report.curves import band

COLORS = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]  # Okabe and Ito
STRETCHES = 10  # of a run; a point is the mean of one


def study_figure(args):
    """Draw one SVG for a task: all methods of stage `seeds`, mean and 95 % band over seeds, on two axes."""
    found = by_method([record for record in read(args.out) if record["task"] == args.task], "seeds")
    color = {"field": "method", "scale": {"domain": [*found], "range": COLORS[: len(found)]}, "title": None}
    panels = [
        panel([point for method, records in found.items() for point in points(method, records, cost)], color, title)
        for cost, title in ((completions, "completions sampled"), (seconds, "seconds of training"))
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


def points(method, records, cost):
    """Compute a method's curve: at what cost so far, the median over seeds, which mean reward, with its band."""
    at, curves = [], []
    for record in records:
        width = max(1, record["steps"] // STRETCHES)
        spent = [*itertools.accumulate(cost(record))]
        ends = range(width, record["steps"] + 1, width)
        at.append([spent[end - 1] for end in ends])
        curves.append({end: statistics.fmean(record["rewards"][end - width : end]) for end in ends})
    over_seeds = band(curves)
    costs = [statistics.median(one) for one in zip(*at, strict=True)]
    values = (over_seeds[key] for key in ("value", "low", "high"))
    return [
        {"method": method, "at": where, "reward": mean, "low": low, "high": high}
        for where, mean, low, high in zip(costs, *values, strict=True)
    ]


def panel(values, color, title):
    """Draw one axis."""
    x = {"field": "at", "type": "quantitative", "title": title, **AXIS}
    area = {"y": {"field": "low", "type": "quantitative", **AXIS}, "y2": {"field": "high"}}
    line = {"y": {"field": "reward", "type": "quantitative", "title": "expected reward of the rollouts", **AXIS}}
    layer = [
        {"mark": {"type": "area", "opacity": 0.15}, "encoding": area},
        {"mark": {"type": "line", "strokeWidth": 2.5}, "encoding": line},
    ]
    return {"data": {"values": values}, "encoding": {"x": x, "color": color}, "layer": layer, "width": 340}
