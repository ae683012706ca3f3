"""The first section: what ran, how it ended, and every curve of the runs, seeds of a method together."""

import json
from collections.abc import Sequence
from functools import cache
from typing import Any

from leaf.config import to_dict
from leaf.errors import ConfigError
from leaf.evaluation.bootstrap import mean_interval
from leaf.evaluation.registry import less_is_better
from leaf.report.page import Section, asset
from leaf.report.runs import ShownRun, told_apart

POINTS = 200  # of a curve; more steps than that are averaged in stretches of like length
# With fewer runs, Student's intervals are wider than the runs lie apart (of two: thirteen times).
RUNS_FOR_INTERVAL = 4
# title, what it is, columns of metrics.jsonl; several columns share a panel
PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("Reward", "mean over a step's completions", ("reward_mean",)),
    ("Reward spread", "standard deviation within a group, mean over groups", ("reward_std",)),
    ("Groups without variance", "share of groups with equal rewards: they teach nothing", ("zero_variance_groups",)),
    ("Divergence from the reference", "KL, nats per token", ("kl",)),
    ("Entropy", "nats per token", ("entropy",)),
    ("Clip fraction", "share of tokens whose ratio left the clip range", ("clip_fraction",)),
    ("Gradient norm", "before clipping", ("grad_norm",)),
    ("Loss", "", ("loss",)),
    ("Length", "tokens a completion, mean", ("length_mean",)),
    ("Truncated", "share of completions cut by the length limit", ("truncated",)),
    ("Forks fire", "share of boundaries where completions share a prefix", ("fork_fire_rate",)),
    ("Usable forks", "share of boundaries where such a group's rewards differ", ("usable_fork_rate",)),
    ("Tokens shared", "share of completion tokens that lie on a prefix of another completion", ("tokens_shared",)),
    ("Tokens saved", "share of what padded copies would forward", ("saved",)),
    ("Learning rate", "", ("learning_rate",)),
    ("Peak memory", "GB", ("memory/peak_gb",)),
)
_SETTINGS = (
    "stage",
    "model",
    "task",
    "credit",
    "credit_options",
    "rewards",
    "max_steps",
    "prompts_per_rollout",
    "num_completions",
    "learning_rate",
    "lora_r",
    "temperature",
    "top_p",
    "max_new_tokens",
    "kl_coef",
    "reduction",
    "batch_size",
    "dtype",
    "seed",
)
_ACCIDENTS = {
    "skipped_steps": "steps skipped for a loss or gradient that is no number",
    "reward_errors": "rewards that failed",
    "bad_audio": "recordings that could not be read",
    "unscored": "completions without a reward",
}


def curves_section(runs: Sequence[ShownRun], notes: Sequence[str] = ()) -> Section:
    """Return the section; `notes` are lines about what the page leaves out.

    Raises:
        ConfigError: the package that brings the plotting library is missing.
    """
    names = list(dict.fromkeys(name for run in runs for row in run.validations for name in row if _is_metric(name)))
    panels = [_panel(runs, "validations", f"Validation {name}", "", (name,)) for name in names]
    panels += [_panel(runs, "steps", *panel) for panel in PANELS]
    data = {
        "runs": [_row(run) for run in runs],
        "metrics": names,
        "methods": list(dict.fromkeys(run.method for run in runs)),
        "panels": [panel for panel in panels if panel["lines"]],
        "stages": _stages(runs),
        "settings": _settings(runs),
        "notes": list(notes),
    }
    return Section("curves", "Overview", data, asset("curves.js"), asset("curves.css"), plotting(), evaluates=True)


def plotting() -> tuple[str, ...]:
    """Return the scripts with which sections plot: Vega-Lite as vl-convert brings it, and what we add.

    Raises:
        ConfigError: vl-convert is missing.
    """
    try:
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "The report draws its curves with Vega-Lite, which is not installed: pip install 'leaf-speech[report]'."
        ) from error
    return _vega(), asset("plots.js")


@cache
def _vega() -> str:
    from vl_convert import javascript_bundle

    return javascript_bundle("window.vegaEmbed = vegaEmbed;")  # takes seconds


def _is_metric(name: str) -> bool:
    return name != "step" and "/" not in name


def _row(run: ShownRun) -> dict[str, Any]:
    """Return a run's line of the table."""
    best = getattr(run.recipe, "best_metric", None)
    rewards = [row["reward_mean"] for row in run.steps if row.get("reward_mean") is not None]
    tail = rewards[-max(1, len(rewards) // 10) :]
    seconds = [row["seconds/step"] for row in run.steps if "seconds/step" in row]
    # sft and align count the seconds since they began
    since = [row["seconds"] for row in run.steps if "seconds" in row]
    return {
        "name": run.name,
        "method": run.method,
        "seed": run.recipe.seed,
        "steps": run.steps[-1]["step"] if run.steps else 0,
        "of": run.recipe.max_steps,
        "minutes": (sum(seconds) or max(since, default=0.0)) / 60,
        "reward": sum(tail) / len(tail) if tail else None,
        "best_metric": best,
        "scores": {name: _scores(run, name) for name in (run.validations or [{}])[0] if _is_metric(name)},
        "accidents": {
            label: count for key, label in _ACCIDENTS.items() if (count := sum(row.get(key) or 0 for row in run.steps))
        },
    }


def _scores(run: ShownRun, name: str) -> dict[str, Any]:
    """Return a metric's first, last and best score; the best, as best/, is never that of the untrained model."""
    rows = [row for row in run.validations if name in row]
    top = _top(name, [row[name] for row in rows if row["step"] > 0])
    return {"first": rows[0][name], "last": rows[-1][name], "top": top, "less": less_is_better(name)}


def _top(name: str, values: Sequence[float]) -> float | None:
    return min(values, default=None) if less_is_better(name) else max(values, default=None)


def _settings(runs: Sequence[ShownRun]) -> dict[str, list[list[str]]]:
    """Return by run the settings of its recipe as texts, and what it was made with."""
    recipes = [to_dict(run.recipe) for run in runs]
    texts = {key: told_apart([recipe.get(key) for recipe in recipes]) for key in _SETTINGS}
    settings = {}
    for number, (run, recipe) in enumerate(zip(runs, recipes, strict=True)):
        file = run.directory.path / "versions.json"
        versions = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        shown = [[key, texts[key][number]] for key in _SETTINGS if recipe.get(key) not in (None, {}, [])]
        made_with = ", ".join(f"{key} {value}" for key, value in versions.items())
        settings[run.name] = [*shown, ["made with", made_with]]
    return settings


# -- curves ------------------------------------------------------------------------------------------------------------
def _panel(runs: Sequence[ShownRun], source: str, title: str, what: str, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return a panel: per run a thinned curve, per method of several runs the mean with its band."""
    (key,) = keys
    lines, bands, averaged = [], [], 1
    for method in dict.fromkeys(run.method for run in runs):
        curves = []
        for run in runs:
            rows = getattr(run, source)
            points = [(row["step"], value) for row in rows if (value := _value(row, key)) is not None]
            if run.method != method or not points:
                continue
            size = -(-len(points) // POINTS)
            averaged = max(averaged, size)
            thin = thinned(points, size)
            curves.append(dict(points))
            line = {
                "run": run.name,
                "method": method,
                "step": [s for s, _ in thin],
                "value": [_short(v) for _, v in thin],
            }
            spans = [(row.get(f"{key}/low"), row.get(f"{key}/high")) for row in rows if _value(row, key) is not None]
            if size == 1 and all(low is not None for low, _ in spans):
                line |= {"low": [_short(low) for low, _ in spans], "high": [_short(high) for _, high in spans]}
            lines.append(line)
        if len(curves) > 1:
            bands.append({"method": method, **band(curves)})
    return {"title": title, "what": what, "lines": lines, "bands": bands, "averaged": averaged}


def _value(row: dict[str, Any], key: str) -> float | None:
    if key == "saved":
        plain = row.get("plain_tokens")
        return 1 - row["packed_tokens"] / plain if plain else None
    return row.get(key)


def thinned(points: Sequence[tuple[int, float]], size: int) -> list[tuple[float, float]]:
    """Return the means of stretches of `size` points, the last one shorter."""
    parts = [points[at : at + size] for at in range(0, len(points), size)]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]


def band(curves: Sequence[dict[int, float]]) -> dict[str, Any]:
    """Return mean and band over curves, at the steps they all have, thinned as curves are.

    The band is Student's 95 % interval of the mean (`interval` is true) from `RUNS_FOR_INTERVAL` curves on; of fewer it
    reaches from the lowest to the highest.
    """
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    size = max(1, -(-len(steps) // POINTS))
    thin = [thinned([(step, curve[step]) for step in steps], size) for curve in curves]
    points = [[values[i][1] for values in thin] for i in range(len(thin[0]))]
    interval = len(curves) >= RUNS_FOR_INTERVAL
    if interval:
        ends = [(mean - half, mean + half) for mean, half in map(mean_interval, points)]
    else:
        ends = [(min(values), max(values)) for values in points]
    return {
        "step": [s for s, _ in thin[0]],
        "value": [_short(sum(values) / len(values)) for values in points],
        "low": [_short(low) for low, _ in ends],
        "high": [_short(high) for _, high in ends],
        "interval": interval,
    }


def _stages(runs: Sequence[ShownRun]) -> list[dict[str, Any]]:
    """Return per run the seconds of a step by stage, medians being for others: here the mean, which adds up."""
    shown = []
    for run in runs:
        rows = [row for row in run.steps if "seconds/step" in row]
        names = dict.fromkeys(k for row in rows for k in row if k.startswith("seconds/") and k != "seconds/step")
        means = {name.removeprefix("seconds/"): sum(row.get(name, 0.0) for row in rows) / len(rows) for name in names}
        if rows:
            whole = sum(row["seconds/step"] for row in rows) / len(rows)
            means["other"] = max(whole - sum(means.values()), 0.0)
            shown.append({"run": run.name, "seconds": {name: _short(value) for name, value in means.items()}})
    return shown


def _short(value: float) -> float:
    return float(f"{value:.5g}")
