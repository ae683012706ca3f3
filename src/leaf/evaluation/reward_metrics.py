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

from leaf.config import SERVER_OPTIONS
from leaf.errors import ConfigError, DataError, did_you_mean
from leaf.evaluation.lengths import LENGTHS
from leaf.evaluation.metrics import METRICS
from leaf.evaluation.model_metrics import BUILDERS
from leaf.evaluation.predictions import Said
from leaf.evaluation.registry import REWARD, name_and_options
from leaf.files import file_mark
from leaf.rewards.functions import REWARDS
from leaf.rewards.total import Rewards
from leaf.runs.processes import Processes
from leaf.text import NUMBERS_KEPT

Arguments = Callable[[Sequence[str]], Mapping[str, Any]]
_OF_JUDGE = (*SERVER_OPTIONS, "cache")  # options of the judge that change no verdict
_OF_SERVER = ("url", "key_env")  # of any function: where a server is
_OF_TEXTS = (*METRICS, *BUILDERS, *LENGTHS)


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
    if name in _OF_TEXTS:
        return None
    short = name.removeprefix("rewards/").removesuffix("/mean")
    known = [*_OF_TEXTS, REWARD, *([] if rewards is None else rewards.functions)]
    if rewards is not None and not options:
        if name == REWARD:
            return RewardMetric(REWARD, rewards, None, f"{REWARD}|{_sum(rewards)}|leaf-speech:{_version()}")
        found = short if short in rewards.functions else rewards.given_as.get(name)
        if found is not None:
            given = next((one for one, its in rewards.given_as.items() if its == found), name)
            return RewardMetric(
                label_of(found), rewards, found, _signature(found, given, rewards.options.get(found, {}))
            )
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
    return RewardMetric(label_of(function), own, function, _signature(function, given, values))


def reward_metrics(metrics: Sequence[str], rewards: Rewards | None) -> dict[str, RewardMetric | None]:
    """Find the rewards among metrics, as `reward_metric` does each.

    Raises:
        ConfigError: see there; or two different functions have one name, so that the results of one would be lost.
    """
    found = {written: reward_metric(written, rewards) for written in metrics}
    named: dict[str, tuple[str, RewardMetric]] = {}
    for written, one in found.items():
        if one is None:
            continue
        other, first = named.setdefault(one.label, (written, one))
        if not _is_same(first, one):
            raise ConfigError(
                f"{other} and {written} are two reward functions with the one name {one.label}. Rename one of them, or "
                "score them one after the other, each into a folder of its own."
            )
    return found


def best_reward(written: str, rewards: Rewards | None) -> RewardMetric | None:
    """Find the reward that chooses the best adapter, beside the recipe's own; None for a metric that compares texts.

    Raises:
        ConfigError: as `reward_metrics`.
    """
    own = [] if rewards is None else map(label_of, rewards.functions)
    return reward_metrics([*own, written], rewards)[written]


def _is_same(one: RewardMetric, other: RewardMetric) -> bool:
    """Tell whether two metrics of one label are the same function with the same options."""
    if one.rewards is other.rewards or one.function is None or other.function is None:
        return one.function == other.function
    ours, theirs = (each.rewards.functions[str(each.function)].function for each in (one, other))
    bare = (getattr(each, "func", each) for each in (ours, theirs))
    return one.signature == other.signature and len({id(each) for each in bare}) == 1


def _signature(function: str, given: str, options: Mapping[str, Any]) -> str:
    return "|".join([label_of(function), *_parts(given, options), f"leaf-speech:{_version()}"])


def _sum(rewards: Rewards) -> str:
    """Write the weighted sum, with what reproduces each function in brackets behind it."""
    given_as = {name: given for given, name in rewards.given_as.items()}
    terms = []
    for name, weight in zip(rewards.functions, rewards.weights, strict=True):
        parts = _parts(given_as.get(name, name), rewards.options.get(name, {}))
        terms.append(f"{weight:g}*{name}({','.join(parts)})" if parts else f"{weight:g}*{name}")
    return "+".join(terms)


def _parts(given: str, options: Mapping[str, Any]) -> list[str]:
    """Write what reproduces a function's values: its options, and a checksum of the file that it is from."""
    parts = _written(given, options)
    basic = given in ("wer", "cer") and options.get("normalise") == "basic"
    parts += [NUMBERS_KEPT] if basic or given in ("exact_match", "token_f1") else []
    file = Path(given.rpartition(":")[0]).expanduser()
    return parts + ([of_file] if file.is_file() and (of_file := _checksum_of(file)) else [])


def _written(given: str, options: Mapping[str, Any]) -> list[str]:
    """Write a function's options without where a server is; a file is its name and checksum, not its path."""
    left_out = _OF_JUDGE if given == "judge" else _OF_SERVER
    files = {key: _file_of(value) for key, value in options.items() if key not in left_out}
    return [f"{key}:{options[key] if file is None else file_mark(file)}" for key, file in files.items()]


def _file_of(value: Any) -> Path | None:
    """Take an option as the file that it names; None where it names none."""
    try:
        file = Path(value).expanduser() if isinstance(value, str | Path) else None
        return file if file is not None and file.is_file() else None
    except (OSError, RuntimeError, ValueError):  # a text that is too long for a name, or begins like somebody's home
        return None


def _checksum_of(file: Path) -> str | None:
    """Write the name and the checksum of a Python file, without the checksum where it is gone; None for a module."""
    if file.suffix != ".py":
        return None
    return f"file:{file_mark(file) if file.is_file() else file.name}"


def _version() -> str:
    return metadata.version("leaf-speech")


def reward_statistics(
    metrics: Sequence[RewardMetric],
    rows: Sequence[dict[str, Any]],
    passes: Sequence[Sequence[Said]],
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
    said = [[one[i] for i in positions] for one in passes]
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
    passes: Sequence[Sequence[Said]],
    arguments: Arguments,
) -> tuple[dict[str, list[np.ndarray]], list[str]]:
    arrays: dict[str, list[np.ndarray]] = {one.label: [] for one in metrics}
    messages: list[str] = []
    for rewards in {id(one.rewards): one.rewards for one in metrics}.values():
        for said in passes:
            lengths = {"truncated": [one.truncated for one in said], "completion_lengths": [one.tokens for one in said]}
            given = {**lengths, **arguments([one.text for one in said])}
            result = rewards.of_texts(rows, [[one.text] for one in said], **given)
            messages += result.messages
            for one in metrics:
                if one.rewards is rewards:
                    values = result.totals if one.function is None else result.parts[one.function]
                    scored = ~np.isnan(values)
                    arrays[one.label].append(np.stack([np.where(scored, values, 0.0), scored.astype(np.float64)], 1))
    return arrays, messages


def kept_name(written: str, kept: Mapping[str, str]) -> str:
    """Find under which name prediction files keep a metric: a reward function may be asked for as it was given.

    Args:
        written: as in a recipe. A name that a metric has as well is the metric, as in `reward_metric`.
        kept: name of what is kept → its signature.

    Raises:
        DataError: a function of this name is kept, and is from another file or has other options.
    """
    name, options = name_and_options(written)
    if name in _OF_TEXTS or written in kept:
        return written
    file, _, function = name.rpartition(":")
    label = label_of(function.removeprefix("rewards/").removesuffix("/mean"))
    if not file and not options:
        return label if label in kept else written
    # Of two functions of one name in a recipe, the second is called `name (2)`.
    named = {one: its for one, its in kept.items() if one == label or one.startswith(f"rewards/{function} (")}
    wanted = _written(function, {key: yaml.safe_load(value) for key, value in options.items()})
    same = {one: its for one, its in named.items() if {*wanted} <= {*its.split("|")}}
    if (of_file := _checksum_of(Path(file).expanduser())) is not None:
        same = {one: its for one, its in same.items() if f"|{of_file.partition('#')[0]}#" in its}
        if len(same) > 1:  # files of one name in different folders
            same = {one: its for one, its in same.items() if f"|{of_file}|" in its}
    if named and len(same) != 1:
        raise DataError(
            f"{written} was asked for, and what was scored under its name is {' and '.join(named.values())}. Score it "
            "with `leaf evaluate --metrics ...`, or ask for it by the name that the table gives it."
        )
    return next(iter(same), label)
