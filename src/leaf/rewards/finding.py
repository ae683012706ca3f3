"""Find a reward function by its name or import path, and see which columns of the data it needs."""

import inspect
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

from leaf.errors import CodeRefused, ConfigError, did_you_mean, raised_at, shown
from leaf.plugins import import_module
from leaf.rewards.functions import REWARDS, RewardFunction, built_in
from leaf.rewards.overlong import overlong_reward

# What a function is given besides the data's columns, under the names that TRL uses.
BESIDE_COLUMNS = ("completions", "prompts", "completion_ids", "trainer_state", "log_extra", "log_metric")
# And under names of ours: how many tokens a completion has, and whether the length limit cut it.
BESIDE_COLUMNS += ("completion_lengths", "truncated")


@dataclass(frozen=True)
class Found:
    """A reward function, ready to be called with keyword arguments.

    Attributes:
        name: what records call it.
        function: takes completions and columns.
        columns: columns that it takes by name and without a default.
        takes: every argument that it takes by name; None where it takes any (`**columns`).
        options: those that are bound to it. A column of the same name does not replace them.
    """

    name: str
    function: RewardFunction
    columns: tuple[str, ...] = ()
    takes: Set[str] | None = None
    options: Set[str] = frozenset()

    def arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Choose what the function takes of everything that could be given to it."""
        return {
            name: value
            for name, value in given.items()
            if name not in self.options and (self.takes is None or name in self.takes)
        }


def find_reward(function: str | RewardFunction, options: Mapping[str, Any]) -> Found:
    """Find a reward function and bind its options.

    Args:
        function: a name of `REWARDS` or `MADE`, an import path or a callable.
        options: keyword arguments for it.

    Raises:
        ConfigError: nothing is there under that name, it cannot be called as a reward is, or the options do not fit.
    """
    if not isinstance(options, Mapping):
        raise ConfigError(f"The options of the reward {function} are {options!r}; give key: value.")
    if isinstance(function, str) and function in MADE:
        return _with_signature(function, _made(function, options), {})
    if isinstance(function, str) and function in REWARDS:
        return _with_signature(function, built_in(function, **options) if options else REWARDS[function], {})
    found: Any = _import_path(function) if isinstance(function, str) else function
    if not callable(found):
        raise ConfigError(f"The reward {function!r} is a {type(found).__name__}, which cannot be called.")
    # An object with __call__ has no name of its own; its class has one.
    return _with_signature((found if hasattr(found, "__name__") else type(found)).__name__, found, options)


# Built-in rewards that are made with options alone → what these look like.
MADE = {"judge": "{url: http://localhost:8000/v1, model: name}", "overlong": "{max_length: 200, cache: 40}"}


def _made(name: str, options: Mapping[str, Any]) -> RewardFunction:
    """Make a reward of `MADE`."""
    make: Callable[..., RewardFunction] = overlong_reward
    if name == "judge":
        from leaf.rewards.judge import judge_reward as make  # brings an HTTP client, which other rewards do without
    takes = inspect.signature(make).parameters.values()
    missing = [one.name for one in takes if one.default is one.empty and one.kind is not one.VAR_KEYWORD]
    if missing := [option for option in missing if option not in options]:
        raise ConfigError(
            f"The reward {name} needs the options {' and '.join(missing)}, which the recipe does not give. Add "
            f"reward_options: {{{name}: {MADE[name]}}}."
        )
    try:
        return make(**options)
    except TypeError as error:
        raise ConfigError(
            f"The options of the reward {name} do not fit ({error}); give reward_options: {{{name}: {MADE[name]}}}, "
            f"and see {make.__module__}.{make.__name__} for more."
        ) from error


def _with_signature(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> Found:
    """Bind the options of a function, and read from its signature how it can be called.

    Raises:
        ConfigError: it takes no completions, takes them by position only, or does not take an option.
    """
    bound = partial(function, **options) if options else function
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C have none
        return Found(name, bound, options=frozenset(options))
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    takes = {p.name: p.default for p in parameters if p.kind in by_name}
    nameless = [p.name for p in parameters if p.kind is p.POSITIONAL_ONLY and p.default is p.empty]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    if nameless or not (takes_any or "completions" in takes):
        raise ConfigError(
            f"The reward function {name} cannot be given completions=...: it takes "
            f"({', '.join(str(p) for p in parameters)}). Write it as {name}(completions, **columns), with the columns "
            "that it needs by name."
        )
    unknown = [option for option in options if not takes_any and option not in takes]
    if unknown:
        raise ConfigError(
            f"The reward function {name} does not take the option {unknown[0]}.{did_you_mean(unknown[0], takes)} "
            f"It takes {', '.join(takes)}."
        )
    needed = [key for key, default in takes.items() if default is inspect.Parameter.empty and key not in options]
    columns = tuple(key for key in needed if key not in BESIDE_COLUMNS)
    return Found(name, bound, columns, None if takes_any else takes.keys(), frozenset(options))


def _import_path(path: str) -> Any:
    """Import what "package.module:name" or "path/to/file.py:name" names."""
    module_name, colon, attribute = path.rpartition(":")
    if not colon:
        names = [*REWARDS, *MADE]
        raise ConfigError(
            f"The reward function {shown(path)} is unknown.{did_you_mean(path, names)} Allowed are {', '.join(names)}, "
            "or an import path such as package.module:function or path/to/file.py:function."
        )
    try:
        return getattr(import_module(module_name), attribute)
    except CodeRefused:
        raise
    except (Exception, SystemExit) as error:  # the user's module may raise anything
        raise ConfigError(
            f"The reward function {shown(path)} cannot be imported ({type(error).__name__}: {str(error)[:500]})"
            f"{raised_at(error)}; give the path of a file, or a module that Python finds."
        ) from error
