"""Credit rules and surrogates by name, with their options bound and checked before a model is loaded."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import torch

from leaf.credit.advantages import credit, rule_name
from leaf.credit.batches import BATCH_RULES, BatchCredit, RewardedGroup
from leaf.credit.rules import CREDIT_RULES, CreditRule
from leaf.credit.sets import ESTIMATORS, SET_RULES, Estimator, SetDraw, unordered_set
from leaf.credit.surrogates import SURROGATES, SurrogateFunction
from leaf.credit.tree import PrefixTree
from leaf.errors import ConfigError, LeafError, did_you_mean, raised_at, shown

# Type of an option's default → what its value must be, in Python and in words. Defaults of other types promise nothing.
_KINDS: dict[type, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "text"),
}


def find_credit(rule: str | CreditRule | BatchCredit, **options: Any) -> CreditRule | BatchCredit:
    """Look up a credit rule of either kind, for one group or for all groups of a step, and bind its options.

    Args:
        rule: a name, a function of one group, or a `BatchCredit`, which has its options bound.
        options: of the rule, by name.

    Raises:
        ConfigError: the name is unknown, or the rule does not take one of the options or its value.
    """
    if isinstance(rule, BatchCredit):
        if options:
            raise ConfigError(f"The BatchCredit has its options bound, and {', '.join(options)} came besides.")
        return rule
    if isinstance(rule, str) and rule in BATCH_RULES:
        return batch_credit(rule, **options)
    return credit_rule(rule, **options)


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
        if rule in BATCH_RULES:
            raise ConfigError(f"The credit rule {rule} sees all groups of a step together; it has no credit for one.")
        if rule not in known:
            raise ConfigError(
                f"The credit rule {shown(rule)} is unknown.{did_you_mean(rule, {*known, *BATCH_RULES})} Allowed are "
                f"{', '.join(CREDIT_RULES | BATCH_RULES)}; with rollout: distinct {', '.join(distinct_rules())}."
            )
        rule = known[rule]
    bound = partial(credit, rule, **options)
    if options:
        _check_names_and_types(rule, options)
        tree = PrefixTree.build(torch.tensor([[0, 0], [0, 1]]), torch.tensor([2, 2]))
        # A rule of the user's own, registered or not, may need the draw that it takes.
        own = rule in SET_RULES.values() or not rule_inside(rule).__module__.startswith("leaf.")
        draw = {"draw": SetDraw.of(torch.tensor([0.4, 0.2]).log())} if own and weighs_draws(rule) else {}
        _try(rule, options, lambda: bound(tree, torch.tensor([0.0, 1.0]), surprisal=torch.ones(2, 2), **draw))
    return bound


def rule_inside(bound: CreditRule | BatchCredit) -> Callable[..., Any]:
    """Find the function that a bound rule calls."""
    own: Any = bound.rule if isinstance(bound, BatchCredit) else bound
    while isinstance(own, partial):  # options may be bound more than once; the rule is what `credit` is called with
        own = own.args[0] if own.args else own.func
    return own


def estimator_of(bound: CreditRule | BatchCredit) -> Estimator:
    """Find the estimator that weighs distinct completions under a rule: that of a set rule, or `unordered_set`."""
    own = rule_inside(bound)
    return next((ESTIMATORS[name] for name, rule in SET_RULES.items() if rule is own), unordered_set)


def weighs_draws(rule: str | CreditRule) -> bool:
    """Tell whether a rule takes the draw of distinct completions; one of an unknown name does not."""
    found = (CREDIT_RULES | SET_RULES).get(rule) if isinstance(rule, str) else rule
    return found is not None and "draw" in inspect.signature(found).parameters


def distinct_rules() -> list[str]:
    """List the rules that serve distinct completions: those that need their draw, and those that take it."""
    return [*SET_RULES, *filter(weighs_draws, CREDIT_RULES)]


def batch_credit(name: str, **options: Any) -> BatchCredit:
    """Look up a rule of `BATCH_RULES` and bind its options, which are tried as in `credit_rule`.

    Raises:
        ConfigError: the name is unknown, or the rule does not take one of the options or its value.
    """
    if name not in BATCH_RULES:
        raise ConfigError(
            f"The credit rule {shown(name)} is unknown.{did_you_mean(name, BATCH_RULES)} Allowed are "
            f"{', '.join(BATCH_RULES)}."
        )
    bound = BatchCredit(BATCH_RULES[name], dict(options))
    if options:
        _check_names_and_types(bound.rule, options, positional=1)
        tree = PrefixTree.build(torch.tensor([[0, 0], [0, 1]]), torch.tensor([2, 2]))
        ones = torch.ones(2, 2)
        _try(bound.rule, options, lambda: bound([RewardedGroup(tree, torch.tensor([0.0, 1.0]), ones, ones)]))
    return bound


def _try(rule: Callable[..., Any], options: Mapping[str, Any], action: Callable[[], object]) -> None:
    """Call a rule on a group of two, and say which rule with which options failed."""
    try:
        action()
    except LeafError:
        raise
    except Exception as error:  # a rule of the user's own may raise anything
        raise ConfigError(
            f"The credit rule {rule_name(rule)} fails on a group of two completions with the options "
            f"{shown(dict(options))}: {type(error).__name__}: {str(error)[:500]}{raised_at(error)}"
        ) from error


def surrogate(name: str, **options: Any) -> SurrogateFunction:
    """Look up a surrogate of the policy gradient and bind its options; it is tried on two tokens.

    Raises:
        ConfigError: the name is unknown, or the surrogate does not take one of the options or its value.
    """
    if name not in SURROGATES:
        raise ConfigError(
            f"The loss {shown(name)} is unknown.{did_you_mean(name, SURROGATES)} Allowed are {', '.join(SURROGATES)}."
        )
    found = SURROGATES[name]
    own = [one for one in inspect.signature(found).parameters.values() if one.kind is one.KEYWORD_ONLY]
    check_options(f"loss {name}", {one.name: one.default for one in own}, options)
    bound = partial(found, **options)
    bound(
        torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool), 0.0, 0.0
    )
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


def _check_names_and_types(rule: Callable[..., Any], options: Mapping[str, Any], positional: int = 2) -> None:
    """Refuse options that a rule does not take, and values of another type than the option's default.

    Args:
        rule: a function whose first parameters are no options.
        options: by name.
        positional: how many these are: tree and rewards, or the groups of a batch.
    """
    defaults = _options_of(rule, positional)
    if defaults is not None:
        check_options(f"credit rule {rule_name(rule)}", defaults, options, _rules_with)


def _options_of(rule: Callable[..., Any], positional: int) -> dict[str, Any] | None:
    """List the options of a rule with their defaults; None if it takes any."""
    options = list(inspect.signature(rule).parameters.values())[positional:]
    if any(p.kind is p.VAR_KEYWORD for p in options):
        return None
    return {p.name: p.default for p in options if p.name not in ("surprisal", "draw")}


def _rules_with(option: str) -> list[str]:
    kinds = ((CREDIT_RULES | SET_RULES, 2), (BATCH_RULES, 1))
    return [name for rules, n in kinds for name, rule in rules.items() if option in (_options_of(rule, n) or {})]
