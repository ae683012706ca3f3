"""Reward functions in TRL's signature: `(completions, reference, **columns) -> one float or None per completion`.

The built-in ones can be handed to TRL's GRPOTrainer as they are; a function written for it works here.
"""

import inspect
import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from dataclasses import dataclass
from functools import partial
from itertools import islice
from numbers import Real
from typing import Any, Self, cast

import numpy as np
import torch

from leaf.config import LeafConfig, refuse_from_python
from leaf.errors import ConfigError, DataError, RewardError, shown
from leaf.plugins import import_module
from leaf.rewards.functions import REWARDS, RewardFunction

LARGEST = 1e30  # of a reward or a weight: sums and squares of their products stay finite
MOST_HANGING = 16  # calls past their time limit that may still be running; each holds a thread and what it was given
_BESIDE_COLUMNS = ("completions", "prompts", "completion_ids")  # what a function is given besides the data's columns


@dataclass(frozen=True)
class RewardResult:
    """Hold what a batch of completions earned.

    Attributes:
        totals: (n,) weighted sums, NaN = unscored.
        parts: reward function → (n,) its own values, without the weight.
        seconds: reward function → what its call took.
        failed: (n,) True where a function failed on a completion, which is then unscored.
        messages: what failed, one sentence for each function that did.
    """

    totals: np.ndarray
    parts: dict[str, np.ndarray]
    seconds: dict[str, float]
    failed: np.ndarray
    messages: list[str]


class RewardSum:
    """Call reward functions on a batch and add up their weighted values.

    A completion that one function leaves unscored (None or NaN) gets the sum of the others, as in TRL; left out by all,
    it is NaN and takes no part in training. True and False count as 1 and 0.

    Args:
        functions: names of `REWARDS`, import paths ("package.module:function" or "path/to/file.py:function") or
            callables; a single callable stands for a list of it.
        weights: one finite number per function; default all 1.
        timeout_s: seconds each function may take per batch, None = no limit. Python cannot end a thread: a function
            that took longer runs on beside the error until it returns or the process ends. A function that never lets
            go of the interpreter (one long call into C, as a regular expression may be) cannot be cut off.
        on_error: `stop` raises what goes wrong in a function. `skip` leaves unscored what it concerns: one completion
            whose value is no number, all of the batch where the function raised, hung or returned a wrong count. A
            completion without the value of a function that failed is unscored whatever the others gave: a sum that
            lacks a term is another reward.
        options: name of a function, as in `functions` → keyword arguments for it; `judge` needs url and model
            (leaf.rewards.judge.judge_reward).

    Raises:
        ConfigError: a function cannot be found or is a coroutine, or weights, limit or `on_error` are not as above.
    """

    def __init__(
        self,
        functions: Sequence[str | RewardFunction] | RewardFunction,
        *,
        weights: Sequence[float] | None = None,
        timeout_s: float | None = None,
        on_error: str = "stop",
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        functions = [functions] if callable(functions) else functions
        if isinstance(functions, str) or not functions:
            raise ConfigError(
                f"The reward functions are {shown(functions)}: there is no reward function; give a list of them."
            )
        self.functions: dict[str, RewardFunction] = {}
        options = options or {}
        unknown = [name for name in options if name not in functions]
        if unknown:
            raise ConfigError(f"There are reward options for {unknown[0]!r}, which is none of the rewards {functions}.")
        for given in functions:
            name, function = _resolve(given, options.get(given, {}) if isinstance(given, str) else {})
            self.functions[name if name not in self.functions else f"{name}#{len(self.functions) + 1}"] = function
        self.weights = [1.0] * len(functions) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(self.functions) or not all(abs(weight) <= LARGEST for weight in self.weights):
            raise ConfigError(
                f"{len(functions)} reward functions came with weights {shown(weights)}; give one number for each, "
                f"up to {LARGEST:g}."
            )
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            raise ConfigError(f"The time limit of a reward function is {timeout_s} s; allowed are None and above 0.")
        if on_error not in ("stop", "skip"):
            raise ConfigError(f"on_error is {on_error!r}; allowed are stop and skip.")
        self.timeout_s, self.on_error = timeout_s, on_error
        self._hanging: list[threading.Thread] = []
        # Columns that a function takes by name and without a default → that function's name.
        self.columns = {column: name for name, function in self.functions.items() for column in _required(function)}

    @classmethod
    def of(cls, config: LeafConfig, functions: Sequence[str | RewardFunction] | RewardFunction | None = None) -> Self:
        """Return the rewards of a recipe, or other functions with the weights, limit and options that it gives."""
        return cls(
            config.rewards if functions is None else functions,
            weights=config.reward_weights,
            timeout_s=config.reward_timeout,
            on_error=config.on_reward_error,
            options=config.reward_options,
        )

    def check_rows(self, rows: Any) -> None:
        """Refuse, before anything is sampled, rows that lack a column a function takes by name, or take its own names.

        A data set of `datasets` names its columns and a list is looked through; other sequences show their rows only
        as they are read, and a value that is missing there is given to the functions as None.

        Raises:
            DataError: a row lacks such a column, or has one of a name that is taken.
        """
        from datasets import Dataset  # slow to import, and no reward needs it

        named = isinstance(rows, Dataset)
        given = [rows.column_names] if named else rows if isinstance(rows, list | tuple) else []
        taken = next((column for row in given for column in (*_BESIDE_COLUMNS, "self") if column in row), None)
        if taken is not None:
            raise DataError(
                f"The training data has a column {taken!r}, a name under which reward functions are given what was "
                "sampled, or which Python takes itself. Rename the column."
            )
        for column, function in self.columns.items():
            for i, row in enumerate(given):
                if column in row and column != "prompt":
                    continue
                where = "the training data" if named else f"training row {i}, counted from 0,"
                hint = " The prompts come as `prompts`." if column == "prompt" else ""
                raise DataError(
                    f"The reward function {function} takes {column!r} by name, and {where} has only the columns "
                    f"{', '.join(map(str, row))}.{hint} Give every row that column, or give the argument a default."
                )

    def __call__(self, *, completions: Sequence[str], **columns: Any) -> RewardResult:
        """Return the rewards of a batch of completions; columns hold one value per completion.

        Raises:
            RewardError: a function failed, took too long, or returned something other than one number per completion,
                and `on_error` is stop; or calls that hang pile up.
        """
        size = len(completions)
        parts: dict[str, np.ndarray] = {}
        seconds: dict[str, float] = {}
        failed, messages = np.zeros(size, dtype=bool), []
        for name, function in self.functions.items():
            began = time.perf_counter()
            try:
                values = self._call(name, function, {"completions": list(completions), **columns})
                parts[name], problems = _checked(name, values, size)
            except RewardError as error:
                if self.on_error == "stop":
                    raise
                parts[name], problems = np.full(size, np.nan), dict.fromkeys(range(size), str(error))
            if problems:
                first = next(iter(problems))
                if self.on_error == "stop":
                    raise RewardError(problems[first])
                failed[list(problems)] = True
                messages.append(problems[first])
                if len(self._hanging) >= MOST_HANGING:
                    raise RewardError(
                        f"{len(self._hanging)} calls of reward functions still run after their time limit, "
                        f"{MOST_HANGING - 1} are allowed: {problems[first]}"
                    )
            seconds[name] = time.perf_counter() - began
        stacked = np.stack(list(parts.values()))
        weighted = np.array(self.weights)[:, None] * stacked
        unscored = np.isnan(stacked).all(0) | failed
        totals = np.where(unscored, np.nan, np.nansum(weighted, axis=0))
        return RewardResult(totals, parts, seconds, failed, messages)

    def _call(self, name: str, function: RewardFunction, arguments: dict[str, Any]) -> Any:
        """Return what the function gives, or raise its failure under its name."""
        outcome: dict[str, Any] = {}

        def run() -> None:
            try:
                values = function(**arguments)
                # An iterator runs the user's code: here, where its failure has a name and its time counts. One value
                # too many is enough to refuse it, so one without end is not waited for.
                endless = isinstance(values, Iterable) and not isinstance(values, Sized)
                outcome["values"] = list(islice(values, len(arguments["completions"]) + 1)) if endless else values
            except (Exception, SystemExit) as error:  # whatever it is, it is raised again below
                outcome["error"] = error

        if self.timeout_s is None:
            run()
        else:
            thread = threading.Thread(target=run, name=f"reward {name}", daemon=True)
            thread.start()
            thread.join(self.timeout_s)
            self._hanging = [other for other in (*self._hanging, thread) if other.is_alive()]
            if thread.is_alive():
                raise RewardError(
                    f"The reward function {name} took longer than {self.timeout_s:g} s (reward_timeout); it runs on in "
                    "its thread. Raise the limit, or find out what it waits for."
                )
        if "error" in outcome:
            error = outcome["error"]
            raise RewardError(
                f"The reward function {name} raised {type(error).__name__}: {str(error)[:1000]}"
            ) from error
        return outcome["values"]


def _required(function: RewardFunction) -> list[str]:
    """Return the columns that a function takes by name and without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some functions written in C have none
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    wanted = [p.name for p in parameters if p.kind in named and p.default is inspect.Parameter.empty]
    return [name for name in wanted if name not in _BESIDE_COLUMNS]


def _checked(name: str, values: Any, size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Return (size,) float64, NaN = unscored, and by completion what is wrong with its value.

    Raises:
        RewardError: the values are not a list with one for each completion.
    """
    try:
        # The length of a text and the order of a set or the keys of a mapping mean nothing here.
        listed = None if isinstance(values, str | bytes | Mapping | Set) else list(values)
    except TypeError:
        listed = None
    if listed is None:
        raise RewardError(
            f"The reward function {name} returned {shown(values)}; it must return {size} numbers in a list."
        )
    if len(listed) != size:
        raise RewardError(
            f"The reward function {name} returned {len(listed)} values for {size} completions; return one for each."
        )
    checked = np.full(size, np.nan)
    problems: dict[int, str] = {}
    for i, value in enumerate(listed):
        if value is None:
            continue
        # A scalar of torch or numpy is a number; an array of one value is not.
        scalar = isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0
        number: Any = value.item() if scalar else value
        # Real has no order against float in its stub. A huge int is compared before float() would fail on it.
        if not isinstance(number, Real) or abs(number) > LARGEST:  # pyright: ignore[reportOperatorIssue]
            problems[i] = (
                f"The reward function {name} returned {shown(value)} for completion {i}; allowed are finite numbers "
                f"up to {LARGEST:g}, and None or NaN for `could not be scored`."
            )
        else:
            checked[i] = float(number)
    return checked, problems


def _resolve(function: str | RewardFunction, options: Mapping[str, Any]) -> tuple[str, RewardFunction]:
    """Return name and function, with its options."""
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
    name, found = _found(function)
    return name, partial(found, **options) if options else found


def _found(function: str | RewardFunction) -> tuple[str, RewardFunction]:
    """Return name and function."""
    if isinstance(function, str) and function in REWARDS:
        return function, REWARDS[function]
    found: Any = _imported(function) if isinstance(function, str) else function
    if not callable(found):
        raise ConfigError(f"The reward {function!r} is a {type(found).__name__}, which cannot be called.")
    if inspect.iscoroutinefunction(found):
        raise ConfigError(f"The reward function {function!r} is a coroutine (async def); give a plain function.")
    named = found if hasattr(found, "__name__") else type(found)
    return named.__name__, cast(RewardFunction, found)


def _imported(path: str) -> Any:
    """Return what "package.module:name" or "path/to/file.py:name" stands for."""
    refuse_from_python("rewards", path)
    module_name, colon, attribute = path.rpartition(":")
    if not colon:
        raise ConfigError(
            f"The reward function {shown(path)} is unknown; allowed are {', '.join(REWARDS)}, judge, or an import path "
            "such as package.module:function or path/to/file.py:function."
        )
    try:
        return getattr(import_module(module_name), attribute)
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(
            f"The reward function {shown(path)} cannot be imported ({type(error).__name__}: {str(error)[:500]}); give "
            "the path of a file, or a module that Python finds."
        ) from error
