"""Draw rewards against completions sampled, and the scores of every seed, with Vega-Lite."""

import statistics

from vl_convert import vegalite_to_svg

from benchmarks.learning.chosen import SPLITS, Chosen
from leaf.report.curves import band

# Told apart by the colour-blind (Okabe and Ito), in the order of the report: LEAF's and GRPO's first.
COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"]
AXIS = {"scale": {"zero": False}}


def figure(args):
    """Draw the rules of `--credits` as one SVG: a panel of rewards, and a panel of scores for each test split."""
    rules = args.credits.split(",")
    records = [record for record in Chosen.of(args).runs() if record["credit"] in rules]
    color = {"field": "rule", "scale": {"domain": rules, "range": COLORS}, "title": None}
    panels = [reward_panel(records, rules, color)]
    for split in SPLITS:
        scores = [
            {"rule": rule, "seed": record["seed"], "score": record[split]["greedy"][args.metric]}
            for rule in rules
            for record in records
            if record["credit"] == rule and split in record
        ]
        if scores:
            panels.append(score_panel(scores, rules, color, f"{args.metric}, {split}, greedy"))
    config = {"background": "white", "view": {"stroke": None}, "axis": {"titleFontWeight": "normal"}}
    spec = {"$schema": "https://vega.github.io/schema/vega-lite/v6.json", "hconcat": panels, "config": config}
    args.out.write_text(vegalite_to_svg(spec))


def reward_panel(records, rules, color):
    """Draw each rule's rewards, in means of a tenth of a run, with the band over its seeds."""
    sampled = []
    for rule in rules:
        curves = []
        for record in records:
            if record["credit"] == rule:
                size, width = record["completions_per_step"], max(1, len(record["rewards"]) // 10)
                # The same iterator `width` times: zip then yields stretches of that many steps.
                ends = zip(*[iter(record["rewards"])] * width, strict=False)
                curves.append({width * size * (i + 1): statistics.fmean(rewards) for i, rewards in enumerate(ends)})
        over_seeds = band(curves)
        sampled += [
            {"rule": rule, "completions": at, "reward": mean, "low": low, "high": high}
            for at, mean, low, high in zip(*(over_seeds[k] for k in ("step", "value", "low", "high")), strict=True)
        ]
    x = {"field": "completions", "type": "quantitative", "title": "completions sampled", **AXIS}
    area = {"y": {"field": "low", "type": "quantitative", **AXIS}, "y2": {"field": "high"}}
    line = {"y": {"field": "reward", "type": "quantitative", "title": "mean reward", **AXIS}}
    layer = [
        {"mark": {"type": "area", "opacity": 0.2}, "encoding": area},
        {"mark": {"type": "line", "strokeWidth": 2.5}, "encoding": line},
    ]
    return {"data": {"values": sampled}, "encoding": {"x": x, "color": color}, "layer": layer, "width": 340}


def score_panel(scores, rules, color, title):
    """Draw the score of every seed under each rule, seeds joined by lines, and the means."""
    y = {"field": "score", "type": "quantitative", "title": title, **AXIS}
    x = {"field": "rule", "title": None, "sort": None, "axis": {"labelAngle": 0}}
    line = {"type": "line", "color": "#999", "strokeWidth": 1}
    tick = {"type": "tick", "size": 40, "thickness": 3}
    layer = [
        {"mark": line, "encoding": {"x": x, "y": y, "detail": {"field": "seed"}}},
        {"mark": {"type": "point", "filled": True, "size": 60}, "encoding": {"x": x, "y": y, "color": color}},
        {"mark": tick, "encoding": {"x": x, "y": {**y, "aggregate": "mean"}, "color": color}},
    ]
    return {"data": {"values": scores}, "layer": layer, "width": 60 * len(rules)}
