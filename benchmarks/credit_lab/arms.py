"""What the translation game compares: a credit rule, a loss and a rollout make an arm."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from leaf.credit import (
    BATCH_RULES,
    CREDIT_RULES,
    BatchCredit,
    CreditRule,
    PrefixTree,
    RewardedGroup,
    SetDraw,
    distinct_rules,
    find_credit,
    most_uncertain,
    set_shares,
)
from leaf.credit.losses import Reduction
from leaf.credit.registry import estimator_of

UPDATES = 4  # of a rollout, where losses are compared
LARGE = 32  # completions of a large group
SIZES = (4, 16)  # of other groups


@dataclass(frozen=True)
class Arm:
    """One way to learn, in the words of a recipe; the defaults are GRPO's.

    Attributes:
        credit, options: the credit rule and its options.
        rollout: "dynamic" draws prompts until enough groups have rewards that differ.
        completions: K.
        reduction, loss, clip, clip_high: of the policy loss.
        passes: over a rollout, one update each.
        uncertain_share: of a step's tokens that keep their credit.
    """

    credit: str = "grpo"
    options: dict[str, Any] = field(default_factory=dict)
    rollout: Literal["independent", "distinct", "dynamic"] = "independent"
    completions: int = 8
    reduction: Reduction = "completion_mean"
    loss: str = "clip"
    clip: float = 0.2
    clip_high: float | None = None
    passes: int = 1
    uncertain_share: float = 1.0


LOSSES: dict[str, dict[str, Any]] = {
    "clip": {},
    "clip-higher": {"clip_high": 0.28},  # DAPO's
    "gspo": {"loss": "gspo", "clip": 3e-4, "clip_high": 4e-4},  # its paper's
    "cispo": {"loss": "cispo"},
    "sapo": {"loss": "sapo"},
}
RULES = {
    **{name: Arm(name) for name in CREDIT_RULES},
    "leaf, B = 0": Arm("leaf", {"max_boundaries": 0}),
    "leaf without 1/√n": Arm("leaf", {"sqrt_count": False}),
    "spo, branching": Arm("spo", {"credited": "branching"}),
    **{name: Arm(name) for name in BATCH_RULES},
    # What they take for success is BLEU of 0.5 by default, which most translations have.
    **{f"{name}, success = 0.9": Arm(name, {"success": 0.9}) for name in ("gtpo", "grpo_s")},
    "grpo, uncertain 20 %": Arm(uncertain_share=0.2),
}
REDUCTIONS = {
    "grpo, token_mean": Arm(reduction="token_mean"),
    "grpo, constant": Arm(reduction="constant"),
    "dr_grpo, constant": Arm("dr_grpo", reduction="constant"),
    "rloo, constant": Arm("rloo", reduction="constant"),
}
UPDATED = {
    f"{rule}, {UPDATES} x {name}": Arm(rule, passes=UPDATES, **loss)
    for rule in ("grpo", "leaf")
    for name, loss in LOSSES.items()
}
ROLLOUTS = {
    **{f"{rule}, K = {LARGE}": Arm(rule, completions=LARGE) for rule in ("grpo", "rloo")},
    **{f"grpo, K = {k}": Arm(completions=k) for k in SIZES},
    "grpo, dynamic": Arm(rollout="dynamic"),
    **{f"distinct, {name}": Arm(name, rollout="distinct") for name in distinct_rules()},
    "distinct, leaf, B = 0": Arm("leaf", {"max_boundaries": 0}, rollout="distinct"),
    **{f"distinct, unordered_set, K = {k}": Arm("unordered_set", rollout="distinct", completions=k) for k in SIZES},
}
KINDS = {"rule": RULES, "reduction": REDUCTIONS, "loss": UPDATED, "rollout": ROLLOUTS}
ARMS: dict[str, Arm] = {name: arm for kind in KINDS.values() for name, arm in kind.items()}


@dataclass(frozen=True, eq=False)
class Groups:
    """The groups of a step: S seeds, P prompts of each, K completions of a prompt, T tokens.

    Attributes:
        source: (S, P, 7).
        tokens: (S, P, K, T), END as padding.
        length: (S, P, K), END included.
        logp, entropy: (S, P, K, T) of the policy that sampled.
        reward: (S, P, K) float64.
        sets: of distinct completions, one per group in order.
        decoded: completions drawn for these groups, those of groups that were thrown away included, per seed.
        decoded_tokens: likewise.
    """

    source: Tensor
    tokens: Tensor
    length: Tensor
    logp: Tensor
    entropy: Tensor
    reward: Tensor
    sets: list[SetDraw] | None
    decoded: float
    decoded_tokens: float

    @property
    def mask(self) -> Tensor:
        """Mark (S, P, K, T) the real tokens."""
        return torch.arange(self.tokens.shape[-1]) < self.length[..., None]

    @property
    def flat(self) -> Tensor:
        """Mark (S, P) the groups whose rewards are all equal."""
        return (self.reward == self.reward[..., :1]).all(-1)


def advantages(arm: Arm, groups: Groups) -> Tensor:
    """Compute (S, P, K, T) in float32; a batch is the groups of one seed's step."""
    rule = find_credit(arm.credit, **arm.options)
    each = [torch.stack(_of_a_step(arm, rule, groups, seed)) for seed in range(len(groups.tokens))]
    return torch.stack(each).float()


def shares(arm: Arm, groups: Groups) -> Tensor:
    """Compute (S, P, K) how many completions each one stands for."""
    if groups.sets is None:
        return torch.ones(groups.reward.shape)
    estimator = estimator_of(find_credit(arm.credit, **arm.options))
    each = [set_shares(one, estimator).float() for one in groups.sets]
    return torch.stack(each).view(groups.reward.shape)


def _of_a_step(arm: Arm, rule: CreditRule | BatchCredit, groups: Groups, seed: int) -> list[Tensor]:
    prompts, shape = groups.reward.shape[1], groups.tokens.shape[2:]
    needed = range(prompts)
    if not isinstance(rule, BatchCredit) and arm.uncertain_share == 1:
        # A rule of one group gives exactly 0 where rewards are equal.
        needed = (~groups.flat[seed]).nonzero().flatten().tolist()
    seen = {p: _rewarded(groups, seed, p) for p in needed}
    given: dict[int, Tensor] = {}
    if isinstance(rule, BatchCredit):
        given = dict(zip(seen, rule(list(seen.values())), strict=True))
    else:
        for p, one in seen.items():
            more = {} if groups.sets is None else {"draw": groups.sets[seed * prompts + p]}
            given[p] = rule(one.tree, one.rewards, surprisal=one.surprisal, **more)
    if arm.uncertain_share < 1:
        marks = most_uncertain(list(seen.values()), arm.uncertain_share)
        given = {p: torch.where(mark, given[p], 0.0) for p, mark in zip(seen, marks, strict=True)}
    return [given.get(p, torch.zeros(1)).expand(shape) for p in range(prompts)]


def _rewarded(groups: Groups, seed: int, prompt: int) -> RewardedGroup:
    at = (seed, prompt)
    tree = PrefixTree.build(groups.tokens[at], groups.length[at])
    return RewardedGroup(tree, groups.reward[at], -groups.logp[at], groups.entropy[at])
