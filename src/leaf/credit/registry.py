"""Credit rules by name, with their options bound and checked before a model is loaded."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import torch

from leaf.credit.advantages import credit, rule_name
from leaf.credit.rules import CREDIT_RULES, CreditRule
from leaf.credit.sets import SET_RULES
from leaf.credit.tree import PrefixTree
from leaf.errors import ConfigError, LeafError, did_you_mean, raised_at, shown

# Type of an option's default → what its value must be, in Python and in words. Defaults of other types promise nothing.
_KINDS: dict[type, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "text"),
}


def credit_rule(rule: str | CreditRule, **options: Any) -> CreditRule:
    """Look up a credit rule and bind its options.

    The result is called as `rule(tree, rewards, surprisal=surprisal)` and returns (K, T) advantages with the guarantees
    of `credit`. With options, the rule is tried on a group of two completions, so that values out of range are refused
    before a model is loaded.

    Args:
        rule: a name in `CREDIT_RULES` or `SET_RULES`, or a function like those.
        options: of the rule, by name.

    Raises:
        ConfigError: the name is unknown, or the rule does not take one of the options or its value.
    """
    if isinstance(rule, str):
        known = CREDIT_RULES | SET_RULES
        if rule not in known:
            raise ConfigError(
                f"The credit rule {shown(rule)} is unknown.{did_you_mean(rule, known)} Allowed are "
                f"{', '.join(CREDIT_RULES)}; with rollout: distinct {', '.join(SET_RULES)}."
            )
        rule = known[rule]
    bound = partial(credit, rule, **options)
    if options:
        _check_names_and_types(rule, options)
        tree = PrefixTree.build(torch.tensor([[0, 0], [0, 1]]), torch.tensor([2, 2]))
        try:
            bound(tree, torch.tensor([0.0, 1.0]), surprisal=torch.ones(2, 2))
        except LeafError:
            raise
        except Exception as error:  # a rule of the user's own may raise anything
            raise ConfigError(
                f"The credit rule {rule_name(rule)} fails on a group of two completions with the options "
                f"{shown(options)}: {type(error).__name__}: {str(error)[:500]}{raised_at(error)}"
            ) from error
    return bound


def check_options(
    what: str,
    defaults: Mapping[str, Any],
    options: Mapping[str, Any],
    taken_by: Callable[[str], Sequence[str]] = lambda option: (),
) -> None:
    """Refuse options that do not exist, and values of another type than the option's default.

    Args:
        what: takes the options, as a message names it: "credit rule leaf".
        defaults: option → its default.
        options: option → its value.
        taken_by: names what else takes an option, for the message.
    """
    for option, value in options.items():
        if option not in defaults:
            allowed = f"Allowed are {', '.join(defaults)}." if defaults else "It takes none."
            others = f" It is an option of {', '.join(taken_by(option))}." if taken_by(option) else ""
            raise ConfigError(
                f"The {what} does not take the option {option}.{did_you_mean(option, defaults) or others} {allowed}"
            )
        kind = type(defaults[option])
        if kind not in _KINDS:
            continue
        wanted, words = _KINDS[kind]
        # To Python True is a whole number, and "false" would count as true.
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(
                f"The option {option} of the {what} is {shown(value)}, a {type(value).__name__}; it must be {words}."
            )


def _check_names_and_types(rule: CreditRule, options: Mapping[str, Any]) -> None:
    """Refuse options that a rule does not take, and values of another type than the option's default."""
    defaults = _options_of(rule)
    if defaults is not None:
        check_options(f"credit rule {rule_name(rule)}", defaults, options, _rules_with)


def _options_of(rule: CreditRule) -> dict[str, Any] | None:
    """List the options of a rule with their defaults; None if it takes any."""
    beyond_tree_and_rewards = list(inspect.signature(rule).parameters.values())[2:]
    if any(p.kind is p.VAR_KEYWORD for p in beyond_tree_and_rewards):
        return None
    return {p.name: p.default for p in beyond_tree_and_rewards if p.name not in ("surprisal", "draw")}


def _rules_with(option: str) -> list[str]:
    return [name for name, rule in (CREDIT_RULES | SET_RULES).items() if option in (_options_of(rule) or {})]
