"""The algorithm: pure functions on tensors. A prefix tree goes in with rewards, an advantage per token comes out."""

from leaf.credit.boundaries import entropy_boundaries, even_boundaries, random_boundaries, select_boundaries
from leaf.credit.forks import (
    Fork,
    credit_mass,
    credit_mass_by_position,
    fork_rates,
    fork_rates_by_position,
    forks,
    wilson,
)
from leaf.credit.losses import k3, policy_loss, token_weights
from leaf.credit.registry import CREDIT_RULES, CreditRule, credit_rule
from leaf.credit.rules import grpo_advantages, leaf_advantages
from leaf.credit.spans import Span, leaf_spans
from leaf.credit.tree import PrefixTree

__all__ = [
    "CREDIT_RULES",
    "CreditRule",
    "Fork",
    "PrefixTree",
    "Span",
    "credit_mass",
    "credit_mass_by_position",
    "credit_rule",
    "entropy_boundaries",
    "even_boundaries",
    "fork_rates",
    "fork_rates_by_position",
    "forks",
    "grpo_advantages",
    "k3",
    "leaf_advantages",
    "leaf_spans",
    "policy_loss",
    "random_boundaries",
    "select_boundaries",
    "token_weights",
    "wilson",
]
