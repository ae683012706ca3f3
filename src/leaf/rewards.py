"""Reward functions in TRL's signature: `(completions, reference, **columns) -> one float or None per completion`.

The built-in ones can be handed to TRL's GRPOTrainer as they are; a function written for it works here.
"""

import inspect
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any, cast

import numpy as np
import torch
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from leaf.errors import ConfigError, DataError, RewardError
from leaf.metrics import edits, exact_match, fold_whitespace, rouge_f, token_f1
from leaf.plugins import import_module

RewardFunction = Callable[..., Sequence[float | None]]

# Sentence BLEU as sacrebleu.sentence_bleu: nrefs:1|case:mixed|eff:yes|tok:13a|smooth:exp.
_BLEU = BLEU(effective_order=True)
# Sentence chrF as sacrebleu.sentence_chrf: nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no.
_CHRF = CHRF()


def _built_in(name: str, score: Callable[[str, str], float]) -> RewardFunction:
    """Return the reward function that scores each completion against its reference, white space folded on both."""

    def function(completions: Sequence[str], reference: Sequence[str], **columns: Any) -> list[float]:
        if len(completions) != len(reference):
            raise DataError(f"{len(completions)} completions came with {len(reference)} references; give one for each.")
        for i, theirs in enumerate(reference):
            if not isinstance(theirs, str) or not theirs.strip():
                raise DataError(f"Reference {i} is {theirs!r}; every completion needs a text to be compared with.")
        pairs = zip(completions, reference, strict=True)
        return [score(fold_whitespace(ours), fold_whitespace(theirs)) for ours, theirs in pairs]

    function.__name__ = function.__qualname__ = name  # TRL logs a reward under this name
    return function


def _sacrebleu(metric: BLEU | CHRF, completion: str, reference: str) -> float:
    return min(metric.sentence_score(completion, [reference]).score / 100, 1.0)  # a copy may be 1 + 4e-16


def _accuracy(completion: str, reference: str, *, characters: bool) -> float:
    wrong, length = edits(completion, reference, characters=characters)
    return max(0.0, 1.0 - wrong / length)


# All lie in [0, 1]. `wer` and `cer` are 1 minus the error rate, clipped at 0: more is better, as for the others.
REWARDS: dict[str, RewardFunction] = {
    name: _built_in(name, score)
    for name, score in {
        "bleu": partial(_sacrebleu, _BLEU),
        "chrf": partial(_sacrebleu, _CHRF),
        "rouge_l": partial(rouge_f, "rougeL"),
        "wer": partial(_accuracy, characters=False),
        "cer": partial(_accuracy, characters=True),
        "exact_match": exact_match,
        "token_f1": token_f1,
    }.items()
}


@dataclass(frozen=True)
class RewardResult:
    """Hold what a batch of completions earned.

    Attributes:
        totals: (n,) weighted sums, NaN = unscored.
        parts: reward function → (n,) its own values, without the weight.
        seconds: reward function → what its call took.
    """

    totals: np.ndarray
    parts: dict[str, np.ndarray]
    seconds: dict[str, float]


class RewardSum:
    """Call reward functions on a batch and add up their weighted values.

    A completion that one function leaves unscored (None or NaN) gets the sum of the others, as in TRL; left out by all,
    it is NaN and takes no part in training. True and False count as 1 and 0.

    Args:
        functions: names of `REWARDS`, import paths ("package.module:function" or "path/to/file.py:function") or
            callables.
        weights: one finite number per function; default all 1.
        timeout_s: seconds each function may take per batch, None = no limit. Python cannot end a thread: a function
            that took longer runs on beside the error until it returns or the process ends.

    Raises:
        ConfigError: a function cannot be found or is a coroutine, or weights or limit are not as above.
    """

    def __init__(
        self,
        functions: Sequence[str | RewardFunction],
        *,
        weights: Sequence[float] | None = None,
        timeout_s: float | None = None,
    ):
        if isinstance(functions, str) or not functions:
            raise ConfigError(
                f"The reward functions are {functions!r}: there is no reward function; give a list of them."
            )
        self.functions: dict[str, RewardFunction] = {}
        for given in functions:
            name, function = _resolve(given)
            self.functions[name if name not in self.functions else f"{name}#{len(self.functions) + 1}"] = function
        self.weights = [1.0] * len(functions) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(self.functions) or not all(map(math.isfinite, self.weights)):
            raise ConfigError(
                f"{len(functions)} reward functions came with weights {weights}; give one number for each."
            )
        if timeout_s is not None and not 0 < timeout_s < math.inf:
            raise ConfigError(f"The time limit of a reward function is {timeout_s} s; allowed are None and above 0.")
        self.timeout_s = timeout_s

    def __call__(self, *, completions: Sequence[str], **columns: Any) -> RewardResult:
        """Return the rewards of a batch of completions; columns hold one value per completion.

        Raises:
            RewardError: a function failed, took too long, or returned something other than one number per completion.
        """
        parts: dict[str, np.ndarray] = {}
        seconds: dict[str, float] = {}
        for name, function in self.functions.items():
            began = time.perf_counter()
            values = self._call(name, function, {"completions": list(completions), **columns})
            seconds[name] = time.perf_counter() - began
            parts[name] = _checked(name, values, len(completions))
        stacked = np.stack(list(parts.values()))
        weighted = np.array(self.weights)[:, None] * stacked
        totals = np.where(np.isnan(stacked).all(0), np.nan, np.nansum(weighted, axis=0))
        return RewardResult(totals, parts, seconds)

    def _call(self, name: str, function: RewardFunction, arguments: dict[str, Any]) -> Any:
        """Return what the function gives, or raise its failure under its name."""
        outcome: dict[str, Any] = {}

        def run() -> None:
            try:
                values = function(**arguments)
                # An iterator runs the user's code: here, where its failure has a name and its time counts.
                outcome["values"] = list(values) if isinstance(values, Iterator) else values
            except (Exception, SystemExit) as error:  # whatever it is, it is raised again below
                outcome["error"] = error

        if self.timeout_s is None:
            run()
        else:
            thread = threading.Thread(target=run, name=f"reward {name}", daemon=True)
            thread.start()
            thread.join(self.timeout_s)
            if thread.is_alive():
                raise RewardError(
                    f"The reward function {name} took longer than {self.timeout_s:g} s (reward_timeout); it runs on in "
                    "its thread. Raise the limit, or find out what it waits for."
                )
        if "error" in outcome:
            error = outcome["error"]
            raise RewardError(f"The reward function {name} raised {type(error).__name__}: {error}") from error
        return outcome["values"]


def _checked(name: str, values: Any, size: int) -> np.ndarray:
    """Return (size,) float64, NaN = unscored, or raise what is wrong with the values under the function's name."""
    try:
        # The length of a text and the order of a set or the keys of a mapping mean nothing here.
        listed = None if isinstance(values, str | bytes | Mapping | Set) else list(values)
    except TypeError:
        listed = None
    if listed is None:
        raise RewardError(f"The reward function {name} returned {values!r}; it must return {size} numbers in a list.")
    if len(listed) != size:
        raise RewardError(
            f"The reward function {name} returned {len(listed)} values for {size} completions; return one for each."
        )
    checked = np.full(size, np.nan)
    for i, value in enumerate(listed):
        if value is None:
            continue
        # A scalar of torch or numpy is a number; an array of one value is not.
        scalar = isinstance(value, torch.Tensor | np.ndarray | np.generic) and value.ndim == 0
        number: Any = value.item() if scalar else value
        # Real has no order against float in its stub. A huge int is compared before float() would fail on it.
        if not isinstance(number, Real) or abs(number) > sys.float_info.max:  # pyright: ignore[reportOperatorIssue]
            raise RewardError(
                f"The reward function {name} returned {value!r} for completion {i}; allowed are finite numbers, and "
                "None or NaN for `could not be scored`."
            )
        checked[i] = float(number)
    return checked


def _resolve(function: str | RewardFunction) -> tuple[str, RewardFunction]:
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
    module_name, colon, attribute = path.rpartition(":")
    if not colon:
        raise ConfigError(
            f"The reward function {path!r} is unknown; allowed are {', '.join(REWARDS)}, or an import path such as "
            "package.module:function or path/to/file.py:function."
        )
    try:
        return getattr(import_module(module_name), attribute)
    except Exception as error:  # the user's module may raise anything
        raise ConfigError(
            f"The reward function {path!r} cannot be imported ({type(error).__name__}: {error}); give the path of a "
            "file, or a module that Python finds."
        ) from error
