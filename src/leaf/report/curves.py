"""The first section: what ran, how it ended, and every curve of the runs, the seeds of a method together."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from leaf.config import to_dict
from leaf.errors import ConfigError, install_extra
from leaf.evaluation.bootstrap import mean_interval
from leaf.evaluation.registry import is_reward, less_is_better
from leaf.report.page import Section, assets
from leaf.report.runs import ShownRun, colours, differences, rules_of, stage_seconds, told_apart

POINTS = 200  # of a curve; if a run has more steps, a point is the mean of several
# With fewer runs, Student's intervals are wider than the runs are apart (with two: thirteen times).
RUNS_FOR_INTERVAL = 4
# Title, what it is, column of metrics.jsonl.
PANELS = (
    ("Reward", "mean over a step's completions", "reward_mean"),
    ("Reward spread", "standard deviation within a group, mean over groups", "reward_std"),
    ("Groups without variance", "share of groups whose rewards are equal: nothing is learned", "zero_variance_groups"),
    ("Divergence from the reference", "KL, nats per token", "kl"),
    ("Entropy", "nats per token", "entropy"),
    ("Clip fraction", "share of tokens whose ratio left the clip range", "clip_fraction"),
    ("Gradient norm", "before clipping", "grad_norm"),
    ("Loss", "", "loss"),
    ("Length", "mean tokens of a completion", "length_mean"),
    ("Truncated", "share of completions cut by the length limit", "truncated"),
    ("Forks fire", "share of boundaries at which completions share a prefix", "fork_fire_rate"),
    ("Usable forks", "share of boundaries at which the rewards of such completions differ", "usable_fork_rate"),
    ("Tokens shared", "share of completion tokens that are in a prefix of another completion", "tokens_shared"),
    ("Tokens saved", "share of the tokens that padded copies would forward", "saved"),
    ("Learning rate", "", "learning_rate"),
    ("Peak memory", "GB", "memory/peak_gb"),
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
    "skipped_steps": "steps skipped because the loss or the gradient was not a number",
    "reward_errors": "rewards that failed",
    "bad_audio": "recordings that could not be read",
    "unscored": "completions without a reward",
}


def curves_section(runs: Sequence[ShownRun], notes: Sequence[str] = ()) -> Section:
    """Make the section; `notes` are sentences about what the page leaves out.

    Raises:
        ConfigError: the package that brings the plotting library is missing.
    """
    metrics = list(dict.fromkeys(name for run in runs for row in run.validations for name in _metrics_in(row)))
    validations, steps = ([(run, run.validations) for run in runs], [(run, run.steps) for run in runs])
    panels = [_panel(_curves(validations, name), f"Validation {name}", "") for name in metrics]
    panels += [_panel(_curves(steps, column), title, what) for title, what, column in (*PANELS, *_by_function(runs))]
    methods = rules_of(runs)
    data = {
        "runs": [_table_row(run) for run in runs],
        "metrics": metrics,
        "methods": list(methods),
        "colours": colours(list(methods.values())),
        "panels": [panel for panel in panels if panel["lines"]],
        "stages": _stages(runs),
        "settings": _settings(runs),
        "differences": differences([run.recipe for run in runs]),
        "notes": list(notes),
    }
    scripts = (*plotting(), *assets("curves/table.js", "curves/panel.js", "curves/curves.js"))
    return Section("curves", "Overview", data, scripts, assets("plots.css", "curves/curves.css"), evaluates=True)


def plotting() -> tuple[str, ...]:
    """Read the scripts with which sections plot: Vega-Lite as vl-convert brings it, and what we add.

    Raises:
        ConfigError: vl-convert is missing.
    """
    try:
        import vl_convert  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"The report draws its curves with Vega-Lite, which is not installed: {install_extra('report')}."
        ) from error
    return _vega(), *assets("plots.js")


@cache  # it takes seconds, and two sections ask for it
def _vega() -> str:
    from vl_convert import javascript_bundle

    return javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _by_function(runs: Sequence[ShownRun]) -> list[tuple[str, str, str]]:
    """Name the panels of single reward functions, where a run has several."""
    columns = [[name for name in (run.steps or [{}])[-1] if is_reward(name)] for run in runs]
    several = dict.fromkeys(name for names in columns if len(names) > 1 for name in names)
    named = [(name.removeprefix("rewards/").removesuffix("/mean"), name) for name in several]
    return [
        panel
        for function, mean in named
        for panel in (
            (f"Reward {function}", "its own values, without its weight: mean over a step's completions", mean),
            (f"Spread of {function}", "standard deviation over a step's completions", f"rewards/{function}/std"),
        )
    ]


# -- the table ---------------------------------------------------------------------------------------------------------
def _metrics_in(validation: dict[str, Any]) -> list[str]:
    """List the metrics of a line of validation.jsonl; `bleu/low` and `bleu/high` are the interval of `bleu`."""
    return [name for name in validation if name != "step" and ("/" not in name or is_reward(name))]


def _table_row(run: ShownRun) -> dict[str, Any]:
    rewards = [row["reward_mean"] for row in run.steps if row.get("reward_mean") is not None]
    tail = rewards[-max(1, len(rewards) // 10) :]
    seconds = [row["seconds/step"] for row in run.steps if "seconds/step" in row]
    since_start = [row["seconds"] for row in run.steps if "seconds" in row]  # what sft and align write instead
    accidents = {label: sum(row.get(key) or 0 for row in run.steps) for key, label in _ACCIDENTS.items()}
    return {
        "name": run.name,
        "method": run.method,
        "seed": run.recipe.seed,
        "steps": run.steps[-1]["step"] if run.steps else 0,
        "of": run.recipe.max_steps,
        "minutes": (sum(seconds) or max(since_start, default=0.0)) / 60,
        "reward": sum(tail) / len(tail) if tail else None,
        "scores": {name: _scores(run, name) for name in _metrics_in((run.validations or [{}])[0])},
        "accidents": {label: count for label, count in accidents.items() if count},
    }


def _scores(run: ShownRun, name: str) -> dict[str, Any]:
    """Collect the first, last and best score of a run; the best is never that of the untrained model, as in best/."""
    rows = [row for row in run.validations if name in row]
    top = top_score(name, [row[name] for row in rows if row["step"] > 0])
    return {"first": rows[0][name], "last": rows[-1][name], "top": top, "less": less_is_better(name)}


def top_score(name: str, values: Iterable[float]) -> float | None:
    """Choose the best of a metric's values; None without any."""
    return min(values, default=None) if less_is_better(name) else max(values, default=None)


def _settings(runs: Sequence[ShownRun]) -> dict[str, list[list[str]]]:
    """Write the settings of each run's recipe as texts, and what it was made with."""
    recipes = [to_dict(run.recipe) for run in runs]
    keys = dict.fromkeys([*_SETTINGS, *differences([run.recipe for run in runs])])
    texts = {key: told_apart([recipe.get(key) for recipe in recipes]) for key in keys}
    settings = {}
    for number, (run, recipe) in enumerate(zip(runs, recipes, strict=True)):
        versions = run.directory.versions() or {}
        shown = [[key, texts[key][number]] for key in keys if recipe.get(key) not in (None, {}, [])]
        made_with = ", ".join(f"{key} {value}" for key, value in versions.items())
        settings[run.name] = [*shown, ["made with", made_with]]
    return settings


# -- curves ------------------------------------------------------------------------------------------------------------
def _curves(lines: Sequence[tuple[ShownRun, list[dict[str, Any]]]], column: str) -> dict[str, dict[str, Any]]:
    """Collect a column of the runs' lines as method → run → rows (step, value, low, high), where there is a value."""
    curves: dict[str, dict[str, Any]] = {}
    for run, its_lines in lines:
        rows = [
            (row["step"], value, row.get(f"{column}/low"), row.get(f"{column}/high"))
            for row in its_lines
            if (value := _value(row, column)) is not None
        ]
        if rows:
            curves.setdefault(run.method, {})[run.name] = rows
    return curves


def _panel(curves: dict[str, dict[str, Any]], title: str, what: str) -> dict[str, Any]:
    """Draw up a panel: a thinned curve of each run, and for each method of several runs the mean with its band."""
    lines, bands, averaged = [], [], 1
    for method, its_runs in curves.items():
        for run, rows in its_runs.items():
            size = -(-len(rows) // POINTS)
            averaged = max(averaged, size)
            thin = thinned([(step, value) for step, value, _, _ in rows], size)
            steps, values = zip(*thin, strict=True)
            line = {"run": run, "method": method, "step": list(steps), "value": [_short(value) for value in values]}
            # The interval of a mean is not the mean of intervals: averaged points have none.
            if size == 1 and all(low is not None for _, _, low, _ in rows):
                line |= {"low": [_short(row[2]) for row in rows], "high": [_short(row[3]) for row in rows]}
            lines.append(line)
        if len(its_runs) > 1:
            by_step = [{step: value for step, value, _, _ in rows} for rows in its_runs.values()]
            bands.append({"method": method, **band(by_step)})
    return {"title": title, "what": what, "lines": lines, "bands": bands, "averaged": averaged}


def _value(row: dict[str, Any], column: str) -> float | None:
    if column == "saved":
        plain = row.get("plain_tokens")
        return 1 - row["packed_tokens"] / plain if plain else None
    return row.get(column)


def thinned(points: Sequence[tuple[int, float]], size: int) -> list[tuple[float, float]]:
    """Average each `size` points in turn; the last ones may be fewer."""
    parts = [points[at : at + size] for at in range(0, len(points), size)]
    return [(sum(s for s, _ in part) / len(part), sum(v for _, v in part) / len(part)) for part in parts]


def band(curves: Sequence[dict[int, float]]) -> dict[str, Any]:
    """Compute mean and band over curves (step → value) at the steps they all have, thinned as curves are.

    From `RUNS_FOR_INTERVAL` curves on, the band is Student's 95 % interval of the mean, and `interval` is true. With
    fewer curves it reaches from the lowest to the highest.
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
    """Compute the mean seconds of a step by stage for each run; means, and not medians, add up to the whole step."""
    stages = [(run.name, stage_seconds(run.steps)[1]) for run in runs]
    shown = [(name, {stage: _short(value) for stage, value in seconds.items()}) for name, seconds in stages if seconds]
    return [{"run": name, "seconds": seconds} for name, seconds in shown]


def _short(value: float) -> float:
    """Round to five digits, more than a plot can show: the page stays small."""
    return float(f"{value:.5g}")
