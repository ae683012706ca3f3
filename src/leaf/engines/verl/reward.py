"""Rewards of leaf as verl's custom reward function.

reward.custom_reward_function.path=pkg://leaf.engines.verl.reward
reward.custom_reward_function.name=leaf_reward
+reward.custom_reward_function.reward_kwargs.functions=[bleu,exact_match]
+reward.custom_reward_function.reward_kwargs.weights=[1.0,0.5]
+reward.custom_reward_function.reward_kwargs.options.bleu.lowercase=true
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from leaf.errors import ConfigError
from leaf.plugins import load_plugins
from leaf.rewards.total import Rewards

# What verl itself puts into `extra_info`.
_OF_VERL = (
    "index",
    "split",
    "num_turns",
    "rollout_reward_scores",
    "tools_kwargs",
    "interaction_kwargs",
    "need_tools_kwargs",
)


def leaf_reward(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    functions: Sequence[str] | str | None = None,
    weights: Sequence[float] | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    plugins: Sequence[str] = (),
    **more: Any,
) -> dict[str, float]:
    """Score one completion by leaf's reward functions, as verl's reward managers call it.

    The functions get the columns of the row: `extra_info.columns`, as `leaf data export` writes them, or else what
    `extra_info` holds beside verl's own keys. `reference` is the ground truth.

    Args:
        data_source: of the row; not read.
        solution_str: the completion.
        ground_truth: the reference; None where there is none.
        extra_info: of the row.
        functions: names of leaf's rewards or import paths, as `rewards` of a recipe.
        weights: one per function; default all 1.
        options: name of a function → its keyword arguments, as `reward_options` of a recipe.
        plugins: modules or Python files to import before.
        more: what verl gives besides; not read.

    Returns:
        `score`, the weighted sum, and every function's own value. NaN is "could not be scored": the trainers of
        leaf.engines.verl leave such a completion out, and verl's own do not.

    Raises:
        ConfigError: no functions are named, or they do not fit.
        DataError: the row lacks a column that a function takes by name.
        RewardError: a function failed. verl then drops the prompt.
    """
    if not functions:
        raise ConfigError(
            "No reward functions are named. Set "
            "+reward.custom_reward_function.reward_kwargs.functions=[bleu] or others."
        )
    names = [functions] if isinstance(functions, str) else list(functions)
    rewards = _rewards(json.dumps([names, _plain(weights), _plain(options), _plain(plugins)]))
    info = dict(extra_info or {})
    columns = info.get("columns") or {name: value for name, value in info.items() if name not in _OF_VERL}
    row = {"prompt": "", **columns} | ({} if ground_truth is None else {"reference": ground_truth})
    rewards.check_rows([row], "parquet")
    result = rewards.of_texts([row], [[solution_str]])
    return {"score": float(result.totals[0])} | {name: float(values[0]) for name, values in result.parts.items()}


@lru_cache
def _rewards(settings: str) -> Rewards:
    """Make the rewards once for all completions of a process."""
    functions, weights, options, plugins = json.loads(settings)
    load_plugins(plugins or ())
    return Rewards(functions, weights=weights, options=options)


def _plain(value: Any) -> Any:
    """Turn lists and mappings of omegaconf into Python's own."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return value
