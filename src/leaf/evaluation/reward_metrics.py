"""Rewards as metrics: what reward functions give to predictions, in their own units, the mean over what they scored.

`reward` is the weighted sum of the recipe's functions, `rewards/NAME/mean` one of them; these are TRL's names. A metric
may also name a function by itself: `my_rewards.py:polite`, `rouge_l`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from transformers.trainer_callback import TrainerState

from leaf.errors import ConfigError, did_you_mean
from leaf.evaluation.metrics import METRICS
from leaf.evaluation.model_metrics import BUILDERS
from leaf.evaluation.registry import REWARD, is_reward, name_and_options
from leaf.files import file_mark
from leaf.rewards.functions import REWARDS
from leaf.rewards.total import Rewards
from leaf.runs.processes import Processes

Arguments = Callable[[Sequence[str]], Mapping[str, Any]]


@dataclass(frozen=True)
class RewardMetric:
    """A reward as a metric.

    Attributes:
        label: what results call it.
        rewards: the functions, called together.
        function: which of them; None for their weighted sum.
        signature: what reproduces it.
    """

    label: str
    rewards: Rewards
    function: str | None
    signature: str


def label_of(function: str) -> str:
    """Name the values of a reward function as TRL does."""
    return f"rewards/{function}/mean"


def reward_metric(written: str, rewards: Rewards | None) -> RewardMetric | None:
    """Find the reward that a metric names; None for a metric that compares texts.

    Args:
        written: as in a recipe. A name that a metric has as well is the metric; `rewards/bleu/mean` is the reward.
        rewards: of the recipe; None where there are none.

    Raises:
        ConfigError: neither a metric nor a reward has that name, or the function cannot be found.
    """
    name, options = name_and_options(written)
    if name in METRICS or name in BUILDERS:
        return None
    short = name.removeprefix("rewards/").removesuffix("/mean")
    known = [*METRICS, *BUILDERS, REWARD, *([] if rewards is None else rewards.functions)]
    if rewards is not None and not options:
        if name == REWARD:
            weighed = "+".join(
                f"{weight:g}*{one}" for one, weight in zip(rewards.functions, rewards.weights, strict=True)
            )
            return RewardMetric(REWARD, rewards, None, f"{REWARD}|{weighed}|leaf-speech:{_version()}")
        found = short if short in rewards.functions else rewards.given_as.get(name)
        if found is not None:
            return RewardMetric(label_of(found), rewards, found, _signature(found, name, rewards))
    if ":" not in name and short not in REWARDS:
        hint = did_you_mean(short, known)
        raise ConfigError(
            f"The metric {written!r} is unknown.{hint} Allowed are {', '.join(known)}, or a reward function such as "
            "path/to/file.py:function."
        )
    given = short if short in REWARDS else name
    values = {key: yaml.safe_load(value) for key, value in options.items()}
    own = Rewards(
        [given], options={given: values} if values else None, on_error="stop" if rewards is None else rewards.on_error
    )
    (function,) = own.functions
    return RewardMetric(label_of(function), own, function, _signature(function, given, own, values))


def _signature(function: str, given: str, rewards: Rewards, bound: Mapping[str, Any] | None = None) -> str:
    """Write what reproduces a function's values: its options, and a checksum of the file that it is from."""
    options = bound or rewards.options.get(function, {})
    parts = [f"{key}:{value}" for key, value in options.items() if key not in ("url", "key_env")]
    file = Path(given.rpartition(":")[0]).expanduser()
    if file.suffix == ".py" and file.is_file():
        parts.append(f"file:{file_mark(file)}")
    return "|".join([label_of(function), *parts, f"leaf-speech:{_version()}"])


def _version() -> str:
    return metadata.version("leaf-speech")


def reward_statistics(
    metrics: Sequence[RewardMetric],
    rows: Sequence[dict[str, Any]],
    passes: Sequence[Sequence[str]],
    *,
    arguments: Arguments | None = None,
    processes: Processes | None = None,
) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    """Call reward functions on predictions, each set of them once a pass.

    Args:
        metrics: which values are wanted.
        rows: with their columns, which the functions take.
        passes: one prediction per row.
        arguments: predictions → what the functions are given besides, by name.
        processes: share the rows; all of them have to call, and all get the values.

    Returns:
        Label → per pass, (rows, 2): the value, and 1; zeros where it was not scored. And what failed, a sentence each.

    Raises:
        RewardError: a function failed, and its rewards stop there.
    """
    positions = range(len(rows)) if processes is None else processes.positions(len(rows))
    mine = [rows[i] for i in positions]
    said = [[texts[i] for i in positions] for texts in passes]
    given = arguments or (lambda texts: {"trainer_state": TrainerState()})

    def values() -> tuple[dict[str, list[np.ndarray]], list[str]]:
        return _values(metrics, mine, said, given) if mine else ({}, [])

    if processes is None or processes.alone:
        return values()
    parts = processes.gather((positions, *processes.together(values)))
    arrays = {one.label: [np.zeros((len(rows), 2)) for _ in passes] for one in metrics}
    for theirs, found, _ in parts:
        for label, per_pass in found.items():
            for whole, part in zip(arrays[label], per_pass, strict=True):
                whole[list(theirs)] = part
    return arrays, [line for _, _, lines in parts for line in lines]


def _values(
    metrics: Sequence[RewardMetric],
    rows: Sequence[dict[str, Any]],
    passes: Sequence[Sequence[str]],
    arguments: Arguments,
) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    arrays: dict[str, list[np.ndarray]] = {one.label: [] for one in metrics}
    messages: list[str] = []
    for rewards in {id(one.rewards): one.rewards for one in metrics}.values():
        for texts in passes:
            result = rewards.of_texts(rows, [[text] for text in texts], **arguments(texts))
            messages += result.messages
            for one in metrics:
                if one.rewards is rewards:
                    values = result.totals if one.function is None else result.parts[one.function]
                    scored = ~np.isnan(values)
                    arrays[one.label].append(np.stack([np.where(scored, values, 0.0), scored.astype(np.float64)], 1))
    return arrays, messages


def kept_name(written: str, kept: Sequence[str]) -> str:
    """Find under which name a prediction file keeps a metric: a reward function may be asked for as it was given."""
    name = written.rpartition(":")[2]
    return next((one for one in (written, label_of(name)) if is_reward(one) and one in kept), written)
