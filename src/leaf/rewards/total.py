"""Rewards: call the reward functions on the completions of a rollout and add up what they give.

The functions have TRL's signature, `(completions, **columns) -> one float or None per completion`, so a function that
was written for TRL works here. `leaf.rewards.functions` has the built-in ones, `leaf.rewards.finding` finds the others.
"""

import inspect
import math
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from leaf.config import LeafConfig
from leaf.errors import ConfigError, DataError, RewardError, did_you_mean, raised_at, shown
from leaf.model.sampling import Group
from leaf.rewards.finding import BESIDE_COLUMNS, Found, find_reward
from leaf.rewards.functions import REWARDS, RewardFunction, check_languages
from leaf.text import unique_names
from leaf.waiting import wait_for

LARGEST = 1e30  # of a reward or a weight: sums and squares of their products stay finite


@dataclass(frozen=True)
class RewardResult:
    """What a batch of n completions earned.

    Attributes:
        totals: (n,) weighted sums, NaN = unscored.
        parts: reward function → (n,) its own values, without the weight.
        seconds: reward function → what its call took.
        failed: (n,) True where a function failed on a completion, which is then unscored.
        messages: what failed, one sentence for each function that did.
        extra: column → (n,) what the functions gave to `log_extra`.
        metrics: name → mean of what they gave to `log_metric`.
    """

    totals: np.ndarray
    parts: dict[str, np.ndarray]
    seconds: dict[str, float]
    failed: np.ndarray
    messages: list[str]
    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def by_group(self, sizes: Sequence[int]) -> tuple[list[dict[str, Tensor]], list[dict[str, list[Any]]]]:
        """Cut the functions' own values, and what they gave to `log_extra`, into groups of these sizes."""
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        cuts = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        parts = [{name: torch.from_numpy(values[cut]) for name, values in self.parts.items()} for cut in cuts]
        return parts, [{name: values[cut] for name, values in self.extra.items()} for cut in cuts]


class Rewards:
    """Call reward functions on completions and add up their weighted values.

    A completion that one function leaves unscored (None or NaN) gets the sum of the others, as in TRL. If all functions
    leave it unscored, its total is NaN and it takes no part in training. True and False count as 1 and 0.

    Args:
        functions: names of `REWARDS`, import paths ("package.module:function" or "path/to/file.py:function") or
            callables; a single callable may come without a list.
        weights: one finite number per function; default all 1.
        on_error: `stop` raises what goes wrong in a function. `skip` leaves the completions unscored that the failure
            concerns: one completion if its value is no number, the whole batch if the function raised or returned a
            wrong count. Such a completion is unscored whatever the other functions gave, because a sum that lacks a
            term is another reward.
        options: name of a function, as in `functions` → keyword arguments for it; `judge` needs url and model
            (leaf.rewards.judge.judge_reward).

    Raises:
        ConfigError: a function cannot be found or called, or weights or `on_error` are not as above.
    """

    def __init__(
        self,
        functions: Sequence[str | RewardFunction] | RewardFunction,
        *,
        weights: Sequence[float] | None = None,
        on_error: str = "stop",
        options: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        functions = [functions] if callable(functions) else functions
        if isinstance(functions, str) or not functions:
            raise ConfigError(
                f"The reward functions are {shown(functions)}: there is no reward function; give a list of them."
            )
        options = options or {}
        unknown = [name for name in options if name not in functions]
        if unknown:
            hint = did_you_mean(unknown[0], [name for name in functions if isinstance(name, str)])
            raise ConfigError(
                f"There are reward options for {unknown[0]!r}, which is none of the rewards {shown(functions)}.{hint}"
            )
        if on_error not in ("stop", "skip"):
            raise ConfigError(f"on_error is {on_error!r}; allowed are stop and skip.")
        self.on_error = on_error
        found = [find_reward(one, options.get(one, {}) if isinstance(one, str) else {}) for one in functions]
        names = unique_names([one.name for one in found])
        self.functions = dict(zip(names, found, strict=True))
        # As a recipe names it → name; name → options.
        self.given_as = {one: name for one, name in zip(functions, names, strict=True) if isinstance(one, str)}
        self.options = {name: options.get(one, {}) for one, name in self.given_as.items()}
        # Built-in functions that were given by name → their options.
        self.built_in = {one: options.get(one, {}) for one in functions if isinstance(one, str) and one in REWARDS}
        self.weights = [1.0] * len(found) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(found) or not all(abs(weight) <= LARGEST for weight in self.weights):
            raise ConfigError(
                f"{len(found)} reward functions came with weights {shown(weights)}; give one number for each, "
                f"up to {LARGEST:g}."
            )
        # Columns that a function takes by name and without a default → that function's name.
        self.columns = {column: name for name, one in self.functions.items() for column in one.columns}

    def of(
        self, rows: Sequence[Mapping[str, Any]], groups: Sequence[Group], tokenizer: Any, *, trainer_state: Any = None
    ) -> tuple[list[Tensor], RewardResult]:
        """Score the groups of a rollout, with one call of each function.

        Args:
            rows: one row of data per group, with its `prompt`.
            groups: K completions each.
            tokenizer: decodes the completions.
            trainer_state: reaches the functions under this name; see `leaf.train`.

        Returns:
            Per group its rewards (K,) in float64, NaN = unscored; and the result over all completions.
        """
        result = self.of_texts(
            rows,
            [group.texts(tokenizer) for group in groups],
            completion_ids=[
                tokens[:length].tolist()
                for group in groups
                for tokens, length in zip(group.tokens, group.lengths.tolist(), strict=True)
            ],
            completion_lengths=[length for group in groups for length in group.lengths.tolist()],
            truncated=[cut for group in groups for cut in group.truncated.tolist()],
            trainer_state=trainer_state,
        )
        return list(torch.from_numpy(result.totals).split([len(group.lengths) for group in groups])), result

    def of_texts(self, rows: Sequence[Mapping[str, Any]], texts: Sequence[Sequence[str]], **more: Any) -> RewardResult:
        """Score the completions of some rows.

        A function gets all completions in order. Columns of the data come along, each value repeated for the
        completions of its row, as in TRL. What a row lacks is None. Where a prompt is messages, so are its completions:
        each is one message of the assistant, as in TRL.

        Args:
            rows: with a `prompt` each.
            texts: per row its completions.
            more: further arguments, such as completion_ids.
        """
        names = dict.fromkeys([*(key for row in rows for key in row), *self.columns])
        columns = {name: [row.get(name) for row, some in zip(rows, texts, strict=True) for _ in some] for name in names}
        prompts = columns.pop("prompt")
        flat = [text for some in texts for text in some]
        completions = [
            text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
            for prompt, text in zip(prompts, flat, strict=True)
        ]
        return self(completions=completions, prompts=prompts, **more, **columns)

    def __call__(self, completions: Sequence[Any], **columns: Any) -> RewardResult:
        """Score a batch of completions; columns hold one value per completion.

        Raises:
            RewardError: a function raised, or returned something other than one number per completion, and `on_error`
                is stop.
        """
        size = len(completions)
        parts: dict[str, np.ndarray] = {}
        seconds: dict[str, float] = {}
        failed, messages = np.zeros(size, dtype=bool), []
        notes = Notes(size)
        # TRL passes these, too. A function that does not name them and has no **columns does not get them.
        columns = {"trainer_state": None, "log_extra": notes.log_extra, "log_metric": notes.log_metric, **columns}
        for name, found in self.functions.items():
            began = time.perf_counter()
            try:
                # A list for each function: one that empties its list does not empty it for the next one.
                values = _call(name, found, {"completions": list(completions), **columns})
                parts[name], problems = _as_numbers(name, values, size)
            except RewardError as error:
                if self.on_error == "stop":
                    raise
                parts[name], problems = np.full(size, np.nan), dict.fromkeys(range(size), str(error))
            seconds[name] = time.perf_counter() - began
            if problems:
                first = next(iter(problems.values()))
                if self.on_error == "stop":
                    raise RewardError(first)
                failed[list(problems)] = True
                messages.append(first)
        stacked = np.stack(list(parts.values()))
        weighted = np.array(self.weights)[:, None] * stacked
        # nansum gives 0, not NaN, where no function gave a value.
        unscored = np.isnan(stacked).all(0) | failed
        totals = np.where(unscored, np.nan, np.nansum(weighted, axis=0))
        metrics = {name: float(np.mean(values)) for name, values in notes.metrics.items()}
        return RewardResult(totals, parts, seconds, failed, messages, notes.extra, metrics)

    def check_rows(self, rows: Any, kind: str = "training") -> None:
        """Refuse rows that lack a column a function needs, or that have one named like an argument of ours.

        This runs before anything is sampled. A data set of `datasets` names its columns, and a list is searched. Other
        sequences show a row only when it is read; a value that is missing there reaches the functions as None.

        Args:
            rows: the rows.
            kind: what a message calls them.

        Raises:
            ConfigError: the reward bleu lacks a package for the language of a row.
            DataError: a row lacks such a column, or has one of a name that is taken.
        """
        names = getattr(rows, "column_names", None)
        named = names is not None
        given: Any = [names] if named else rows if isinstance(rows, list | tuple) else []
        taken = next((column for row in given for column in (*BESIDE_COLUMNS, "self") if column in row), None)
        if taken is not None:
            raise DataError(
                f"The {kind} data has a column {taken!r}, a name that reward functions get from leaf or from Python. "
                "Rename the column."
            )
        if "bleu" in self.built_in:
            column = "reference_language"
            table: Any = rows
            cells = table[column] if named and column in names else [] if named else [row.get(column) for row in given]
            check_languages(cells, **self.built_in["bleu"])
        for name, found in self.functions.items():
            both = next((option for row in given for option in sorted(found.options) if option in row), None)
            if both is not None:
                raise DataError(
                    f"The reward function {name} has the option {both!r} in reward_options, and the {kind} data has "
                    "a column of that name. Rename the column, or leave the option out."
                )
        for column, function in self.columns.items():
            for i, row in enumerate(given):
                if column in row and column != "prompt":
                    continue
                where = f"the {kind} data" if named else f"{kind} row {i}, counted from 0,"
                hint = "The prompts come as `prompts`. " if column == "prompt" else ""
                or_else = "give the argument a default"
                if function in self.built_in:
                    or_else = f"name the one that has it in the recipe (`columns: {{{column}: ...}}`)"
                raise DataError(
                    f"The reward function {function} takes {column!r} by name, and {where} has only the columns "
                    f"{', '.join(map(str, row))}. {hint}Give every row that column, or {or_else}."
                )


def rewards_from(
    config: LeafConfig, functions: Sequence[str | RewardFunction] | RewardFunction | None = None
) -> Rewards:
    """Make the rewards of a recipe, or of other functions with the recipe's weights and options."""
    return Rewards(
        config.rewards if functions is None else functions,
        weights=config.reward_weights,
        on_error=config.tolerate,
        options=config.reward_options,
    )


class Notes:
    """Collect what reward functions log beside their values, by the two functions that TRL gives them."""

    def __init__(self, size: int):
        self.size = size
        self.extra: dict[str, list[Any]] = {}
        self.metrics: dict[str, list[float]] = {}

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        """Note one value per completion, which the recorded groups show."""
        values = list(values)
        if len(values) != self.size:
            raise ValueError(f"log_extra({column!r}, ...) got {len(values)} values for {self.size} completions")
        self.extra[str(column)] = values

    def log_metric(self, name: str, value: float) -> None:
        """Note a number of the step; several of one name are averaged."""
        if not math.isfinite(value):
            raise ValueError(f"log_metric({name!r}, ...) got {value}; give a finite number")
        self.metrics.setdefault(str(name), []).append(float(value))


def _call(name: str, found: Found, given: Mapping[str, Any]) -> Any:
    """Call a reward function, and raise its failure under its name."""
    try:
        values: Any = found.function(**found.arguments(given))
        if inspect.isawaitable(values):  # an async def
            values = wait_for(values)
        # A generator runs the user's code only when it is read: here, where a failure gets the function's name.
        return list(values) if isinstance(values, Iterator) else values
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and must not end the run unsaid
        raise RewardError(
            f"The reward function {name} raised {type(error).__name__}: {str(error)[:1000]}{raised_at(error)}"
        ) from error


def _as_numbers(name: str, values: Any, size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Convert what a function returned to (size,) float64, NaN = unscored, and say by completion what is wrong.

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
    numbers = np.full(size, np.nan)
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
            numbers[i] = float(number)
    return numbers, problems
