"""Reward functions in TRL's signature: `(completions, reference, **columns) -> one float or None per completion`."""

import importlib
import importlib.util
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from leaf.errors import ConfigError, RewardError
from leaf.metrics import edits, normalise, rouge_f
from leaf.metrics import token_f1 as token_f1_of

RewardFunction = Callable[..., Sequence[float | None]]

# Sentence BLEU as sacrebleu.sentence_bleu: effective order, exponential smoothing, 13a tokens, case-sensitive.
_BLEU = BLEU(effective_order=True)
_CHRF = CHRF()


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _each(score: Callable[[str, str], float]) -> RewardFunction:
    def function(completions: Sequence[str], reference: Sequence[str], **columns: Any) -> list[float]:
        return [score(_spaced(ours), _spaced(theirs)) for ours, theirs in zip(completions, reference, strict=True)]

    return function


def _error_reward(characters: bool) -> Callable[[str, str], float]:
    def score(completion: str, reference: str) -> float:
        wrong, length = edits(completion, reference, characters=characters)
        return max(0.0, 1.0 - wrong / length)

    return score


REWARDS: dict[str, RewardFunction] = {
    "bleu": _each(lambda c, r: min(_BLEU.sentence_score(c, [r]).score / 100, 1.0)),
    "chrf": _each(lambda c, r: min(_CHRF.sentence_score(c, [r]).score / 100, 1.0)),
    "rouge_l": _each(lambda c, r: rouge_f("rougeL", c, r)),
    "wer": _each(_error_reward(characters=False)),  # 1 − WER, at least 0
    "cer": _each(_error_reward(characters=True)),  # 1 − CER, at least 0
    "exact_match": _each(lambda c, r: float(normalise(c) == normalise(r))),
    "token_f1": _each(token_f1_of),
}


@dataclass(frozen=True)
class RewardResult:
    """Hold the weighted totals (n,), NaN = unscored, and every function's own values (n,)."""

    totals: np.ndarray
    parts: dict[str, np.ndarray]


class RewardSum:
    """Call reward functions on a batch and add up their weighted values.

    Args:
        functions: names of `REWARDS`, import paths ("package.module:function" or "file.py:function") or callables.
        weights: one per function; default all 1.
        timeout_s: seconds one function may take per batch; a function that hangs is left behind in its thread.

    A completion that one function leaves unscored (None or NaN) gets the sum of the others, as in TRL; left out by all,
    it is NaN and takes no part in training.
    """

    def __init__(
        self,
        functions: Sequence[str | RewardFunction],
        *,
        weights: Sequence[float] | None = None,
        timeout_s: float | None = None,
    ):
        if not functions:
            raise ConfigError("There is no reward function; name at least one.")
        self.functions = [_resolve(function) for function in functions]
        self.weights = [1.0] * len(functions) if weights is None else [float(weight) for weight in weights]
        self.timeout_s = timeout_s
        if len(self.weights) != len(self.functions) or not all(map(math.isfinite, self.weights)):
            raise ConfigError(f"{len(functions)} reward functions came with weights {weights}; give one number for each.")

    def __call__(self, *, completions: Sequence[str], **columns: Any) -> RewardResult:
        """Return the rewards of a batch of completions; columns hold one value per completion.

        Raises:
            RewardError: a function failed, took too long, or returned something other than one number per completion.
        """
        parts: dict[str, np.ndarray] = {}
        for name, function in self.functions:
            values = self._call(name, function, {"completions": list(completions), **columns})
            parts[name if name not in parts else f"{name}#{len(parts)}"] = _checked(name, values, len(completions))
        stacked = np.stack(list(parts.values()))
        weighted = np.array(self.weights)[:, None] * stacked
        totals = np.where(np.isnan(stacked).all(0), np.nan, np.nansum(weighted, axis=0))
        return RewardResult(totals, parts)

    def _call(self, name: str, function: RewardFunction, arguments: dict[str, Any]) -> Any:
        outcome: dict[str, Any] = {}

        def run() -> None:
            try:
                outcome["values"] = function(**arguments)
            except Exception as error:  # whatever a user's function raises is reported under its name
                outcome["error"] = error

        if self.timeout_s is None:
            run()
        else:
            thread = threading.Thread(target=run, daemon=True)
            thread.start()
            thread.join(self.timeout_s)
            if thread.is_alive():
                raise RewardError(f"The reward function {name} took longer than {self.timeout_s:g} s (reward_timeout).")
        if "error" in outcome:
            error = outcome["error"]
            raise RewardError(f"The reward function {name} raised {type(error).__name__}: {error}") from error
        return outcome["values"]


def _checked(name: str, values: Any, size: int) -> np.ndarray:
    try:
        values = list(values)
    except TypeError:
        raise RewardError(f"The reward function {name} returned {values!r}; it must return {size} numbers.") from None
    if len(values) != size:
        raise RewardError(f"The reward function {name} returned {len(values)} values for {size} completions.")
    checked = np.empty(size)
    for i, value in enumerate(values):
        if value is None:
            checked[i] = np.nan
            continue
        try:
            checked[i] = np.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError):
            checked[i] = np.inf
        if isinstance(value, str | bytes) or math.isinf(checked[i]):
            raise RewardError(
                f"The reward function {name} returned {value!r} for completion {i}; allowed are finite numbers, and "
                "None or NaN for `could not be scored`."
            )
    return checked


def _resolve(function: str | RewardFunction) -> tuple[str, RewardFunction]:
    if callable(function):
        named = function if hasattr(function, "__name__") else type(function)
        return named.__name__, function
    if function in REWARDS:
        return function, REWARDS[function]
    module_name, colon, attribute = function.rpartition(":")
    if not colon:
        raise ConfigError(
            f"The reward function {function!r} is unknown; allowed are {', '.join(REWARDS)}, or an import path "
            "such as package.module:function or file.py:function."
        )
    try:
        found = getattr(_module(module_name), attribute)
    except (ImportError, OSError, AttributeError) as error:
        raise ConfigError(f"The reward function {function!r} cannot be imported: {error}.") from error
    if not callable(found):
        raise ConfigError(f"The reward {function!r} is a {type(found).__name__}, which cannot be called.")
    return attribute, found


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
