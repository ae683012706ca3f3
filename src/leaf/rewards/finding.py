"""Find a reward function by its name or import path, and see which columns of the data it needs."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any, cast

from leaf.config import refuse_from_python
from leaf.errors import ConfigError, did_you_mean, shown
from leaf.plugins import import_module
from leaf.rewards.functions import REWARDS, RewardFunction

BESIDE_COLUMNS = ("completions", "prompts", "completion_ids")  # what a function is given besides the data's columns


def find_reward(function: str | RewardFunction, options: Mapping[str, Any]) -> tuple[str, RewardFunction]:
    """Find a reward function and bind its options; its name comes along.

    Args:
        function: a name of `REWARDS`, judge, an import path or a callable.
        options: keyword arguments for it.

    Raises:
        ConfigError: nothing is there under that name, it cannot be called, or the options do not fit.
    """
    if not isinstance(options, Mapping):
        raise ConfigError(f"The options of the reward {function} are {options!r}; give key: value.")
    if function == "judge":
        from leaf.rewards.judge import judge_reward  # brings an HTTP client, which other rewards do without

        try:
            return "judge", judge_reward(**options)
        except TypeError as error:
            raise ConfigError(
                f"The options of the reward judge do not fit ({error}); give reward_options: {{judge: {{url: "
                "http://localhost:8000/v1, model: name}}, and see leaf.rewards.judge.judge_reward for more."
            ) from error
    if isinstance(function, str) and function in REWARDS:
        name, found = function, REWARDS[function]
    else:
        found: Any = _import_path(function) if isinstance(function, str) else function
        if not callable(found):
            raise ConfigError(f"The reward {function!r} is a {type(found).__name__}, which cannot be called.")
        if inspect.iscoroutinefunction(found):
            raise ConfigError(f"The reward function {function!r} is a coroutine (async def); give a plain function.")
        # An object with __call__ has no name of its own; its class has one.
        name = (found if hasattr(found, "__name__") else type(found)).__name__
    return name, cast(RewardFunction, partial(found, **options) if options else found)


def required_columns(function: RewardFunction) -> list[str]:
    """List the columns that a function takes by name and without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C have none
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [p.name for p in parameters if p.kind in named and p.default is inspect.Parameter.empty]
    return [name for name in needed if name not in BESIDE_COLUMNS]


def _import_path(path: str) -> Any:
    """Import what "package.module:name" or "path/to/file.py:name" names."""
    refuse_from_python("rewards", path)
    module_name, colon, attribute = path.rpartition(":")
    if not colon:
        names = [*REWARDS, "judge"]
        raise ConfigError(
            f"The reward function {shown(path)} is unknown.{did_you_mean(path, names)} Allowed are {', '.join(names)}, "
            "or an import path such as package.module:function or path/to/file.py:function."
        )
    try:
        return getattr(import_module(module_name), attribute)
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(
            f"The reward function {shown(path)} cannot be imported ({type(error).__name__}: {str(error)[:500]}); give "
            "the path of a file, or a module that Python finds."
        ) from error
