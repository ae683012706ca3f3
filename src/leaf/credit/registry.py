"""Credit rules by name, and what all of them guarantee."""

import inspect
from collections.abc import Callable
from functools import partial, wraps
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from leaf.credit.tree import PrefixTree
from leaf.credit.values import nothing_to_learn, scored_completions
from leaf.errors import ConfigError, shown

CreditRule = Callable[..., Tensor]
CREDIT_RULES: dict[str, CreditRule] = {}
_TYPES: dict[Any, tuple[type, str]] = {  # annotation of an option → what its value must be, in Python and in words
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
}


def credit_rule(rule: str | CreditRule, **options: Any) -> CreditRule:
    """Return the rule of a name, or the callable itself, with `options` bound.

    A rule is called as `rule(tree, rewards, surprisal=surprisal, **options)` and returns (K, T) advantages.

    Raises:
        ConfigError: the name is unknown, or the rule does not take one of the options or its value.
    """
    if isinstance(rule, str):
        if rule not in CREDIT_RULES:
            raise ConfigError(f"The credit rule {rule!r} is unknown; allowed are {', '.join(CREDIT_RULES)}.")
        rule = CREDIT_RULES[rule]
    if not options:
        return rule
    _check_options(rule, _option_names(rule), options)
    bound = partial(rule, **options)
    if getattr(rule, "tried_when_bound", False):
        tree = PrefixTree.build(torch.tensor([[0, 0], [0, 1]]), torch.tensor([2, 2]))
        bound(tree, torch.tensor([0.0, 1.0]), surprisal=torch.ones(2, 2))
    return bound


def rule(*, options_of: Callable[..., Any] | None = None, tried: bool = False) -> Callable[[CreditRule], CreditRule]:
    """Register a credit rule under its function's name; a decorator.

    The registered rule returns float64 (K, T) that is exactly 0 at padding, for unscored completions, and everywhere in
    a group whose scored rewards are all equal or fewer than two. An unknown option is a ConfigError.

    Args:
        options_of: the function that owns the options, where the rule passes its own on to it.
        tried: call the rule on a group of two when options are bound, so that it refuses values out of range (with a
            ConfigError) before a model is loaded and anything is sampled.
    """

    def register(formula: CreditRule) -> CreditRule:
        @wraps(formula)
        def checked(tree: PrefixTree, rewards: Tensor, *, surprisal: Tensor | None = None, **options: Any) -> Tensor:
            _check_options(checked, allowed, options)
            scored = scored_completions(tree, rewards)
            advantages = formula(tree, rewards, surprisal=surprisal, **options)
            cells = (tree.node >= 0) & scored[:, None] & (not nothing_to_learn(rewards, scored))
            return torch.where(cells, advantages, 0.0)

        checked.__signature__ = _signature(formula, options_of)  # type: ignore[attr-defined]
        allowed = _option_names(checked)
        checked.tried_when_bound = tried  # type: ignore[attr-defined]
        CREDIT_RULES[formula.__name__] = checked
        return checked

    return register


def _signature(formula: CreditRule, options_of: Callable[..., Any] | None) -> inspect.Signature:
    """Return the formula's signature with the parameters of `options_of` in place of its ** parameter."""
    own = inspect.signature(formula)
    if options_of is None:
        return own
    named = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
    taken = {p.name for p in named}
    more = [p for p in inspect.signature(options_of).parameters.values() if p.name not in taken]
    return own.replace(parameters=[*named, *more])


def _option_names(rule: CreditRule) -> list[str] | None:
    """Return the options a rule takes, or None if it takes any."""
    parameters = inspect.signature(rule).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "surprisal"]


def _check_options(rule: CreditRule, allowed: list[str] | None, options: dict[str, Any]) -> None:
    """Refuse options that a rule does not take, and values that are not of the type its signature names."""
    unknown = [] if allowed is None else [option for option in options if option not in allowed]
    if unknown:
        takes = f"allowed are {', '.join(allowed)}" if allowed else "it takes none"
        name = getattr(rule, "__name__", repr(rule))
        raise ConfigError(f"The credit rule {name} does not take the option {', '.join(unknown)}; {takes}.")
    parameters = inspect.signature(rule).parameters
    for option, value in options.items():
        hint = parameters[option].annotation if option in parameters else Any
        for kind, (wanted, words) in _TYPES.items():
            if hint is kind and (not isinstance(value, wanted) or (kind is not bool and isinstance(value, bool))):
                name = getattr(rule, "__name__", repr(rule))
                raise ConfigError(
                    f"The option {option} of the credit rule {name} is {shown(value)}, a {type(value).__name__}; it "
                    f"must be {words}."
                )
