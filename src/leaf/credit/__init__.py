"""The algorithm: pure functions on tensors. A prefix tree goes in with rewards, an advantage per token comes out.

Nothing here knows a model, a tokenizer or a trainer. These letters name the shapes:

    K  completions of a group     T  tokens of the longest one: the width to which all are padded on the right
    N  nodes of its prefix tree   L  prefix lengths, T + 1: column 0 is the empty prefix
    B  boundaries of the group    J  columns of a span table, B + 1: a span before each boundary, and the tail

Positions are token indices from 0, and spans are half-open: a boundary t splits a completion into tokens [0, t) and
[t, length). Surprisal is in nats. A NaN reward means that the completion could not be scored.

Reading order: tree, values, boundaries, spans, rules, advantages, batches, surrogates,
losses.
"""

from leaf.credit.advantages import credit, grpo_advantages, leaf_advantages
from leaf.credit.batches import BATCH_RULES, BatchCredit, RewardedGroup, most_uncertain
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
from leaf.credit.registry import batch_credit, credit_rule, distinct_rules, find_credit, surrogate, weighs_draws
from leaf.credit.rules import CREDIT_RULES, CreditRule
from leaf.credit.sets import SET_RULES, SetDraw, set_shares
from leaf.credit.spans import Span, leaf_spans
from leaf.credit.surrogates import SURROGATES, Surrogate
from leaf.credit.tree import PrefixTree

__all__ = [
    "BATCH_RULES",
    "CREDIT_RULES",
    "SET_RULES",
    "SURROGATES",
    "BatchCredit",
    "CreditRule",
    "Fork",
    "PrefixTree",
    "RewardedGroup",
    "SetDraw",
    "Span",
    "Surrogate",
    "batch_credit",
    "credit",
    "credit_mass",
    "credit_mass_by_position",
    "credit_rule",
    "distinct_rules",
    "entropy_boundaries",
    "even_boundaries",
    "find_credit",
    "fork_rates",
    "fork_rates_by_position",
    "forks",
    "grpo_advantages",
    "k3",
    "leaf_advantages",
    "leaf_spans",
    "most_uncertain",
    "policy_loss",
    "random_boundaries",
    "select_boundaries",
    "set_shares",
    "surrogate",
    "token_weights",
    "weighs_draws",
    "wilson",
]
