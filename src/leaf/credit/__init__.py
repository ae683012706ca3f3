"""The algorithm: pure functions on tensors. A prefix tree goes in with rewards, an advantage per token comes out."""

from leaf.credit.advantages import (
    CREDIT_RULES,
    Span,
    credit_rule,
    grpo_advantages,
    leaf_advantages,
    leaf_spans,
)
from leaf.credit.boundaries import entropy_boundaries, even_boundaries, random_boundaries, select_boundaries
from leaf.credit.forks import Fork, credit_mass, fork_rates, forks, wilson
from leaf.credit.losses import k3, policy_loss, token_weights
from leaf.credit.tree import PrefixTree

__all__ = [
    "CREDIT_RULES",
    "Fork",
    "PrefixTree",
    "Span",
    "credit_mass",
    "credit_rule",
    "entropy_boundaries",
    "even_boundaries",
    "fork_rates",
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
