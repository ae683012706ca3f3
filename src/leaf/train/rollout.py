"""A rollout: rows, prompts, groups of completions, rewards, advantages, and what the update compares itself with.

`rollout` reads top to bottom and works on one process's rows; leaf.train.trainer wraps clocks, signals, unusable
recordings and several processes around it. Shapes: K completions of a prompt, T tokens of the longest of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.trainer_callback import TrainerState

from leaf.config import LeafConfig
from leaf.credit import BatchCredit, CreditRule, RewardedGroup, SetDraw, most_uncertain
from leaf.credit.correction import Mismatch
from leaf.credit.registry import estimator_of
from leaf.credit.sets import Estimator
from leaf.credit.words import by_words, to_tokens
from leaf.model.policy import Policy, Prompt
from leaf.model.sampler import Drawing, Sampler
from leaf.model.sampling import Group
from leaf.model.words import words_of
from leaf.rewards.total import RewardResult, Rewards
from leaf.train.elsewhere import Source, compare
from leaf.train.phases import phase
from leaf.train.scoring import old_log_probs, reference_log_probs


@dataclass(frozen=True)
class Rollout:
    """Groups of completions with all that the update needs of them; lists have one entry per group.

    Attributes:
        rows: the rows that the prompts come from.
        groups: prompts and their completions.
        rewards: (K,) float64, NaN = unscored.
        advantages: (K, T) float32 on the policy's device.
        shares: (K,) how many completions each one stands for, 1 where they were drawn independently.
        old_log_probs: (K, T) under the policy that sampled; None where the update's own forward gives them.
        ref_log_probs: (K, T) under the reference model; None without a divergence.
        by_function: per group: reward function → its own values (K,), NaN = unscored; for the records.
        extra: per group: column → one value per completion, which reward functions gave to `log_extra`.
        logged: name → what they gave to `log_metric`, the mean.
        reward_errors: completions on which a reward function failed.
        left_out: a sentence for everything that was left out.
        importance: (K, T) weights of tokens that a sampler elsewhere drew; None where the policy itself did.
        mismatch: how far that sampler and the policy are apart.
        engine: the same for the weights that it drew from, where the policy has taken a step since.
        passed_over: what was sampled beside these groups (leaf.train.choosing.PassedOver); None where all were taken.
        step, positions, bad_audio: set by the trainer: the step, where each group is among those of all processes, and
            how many rows without usable audio another row replaced.
    """

    rows: list[dict[str, Any]]
    groups: list[Group]
    rewards: list[Tensor]
    advantages: list[Tensor]
    shares: list[Tensor]
    old_log_probs: list[Tensor] | None
    ref_log_probs: list[Tensor] | None
    reward_errors: int
    left_out: list[str]
    by_function: list[dict[str, Tensor]] = field(default_factory=list)
    extra: list[dict[str, list[Any]]] = field(default_factory=list)
    logged: dict[str, float] = field(default_factory=dict)
    importance: list[Tensor] | None = None
    mismatch: Mismatch | None = None
    engine: Mismatch | None = None
    passed_over: Any = None
    step: int = 0
    positions: Sequence[int] = ()
    bad_audio: int = 0


def rollout(
    policy: Policy,
    rows: list[dict[str, Any]],
    rule: CreditRule | BatchCredit,
    rewards: Rewards,
    config: LeafConfig,
    draws: Sequence[torch.Generator],
    *,
    on_policy: bool,
    keep_prompts: bool = False,
    source: Source | None = None,
    trainer_state: TrainerState | None = None,
) -> Rollout:
    """Sample a group of completions for every row, reward and credit them.

    Args:
        policy: the model with the adapter that is trained.
        rows: with `prompt`, `audio` and whatever the reward functions take.
        rule: as `leaf.credit.credit_rule` gives it; computes the advantages (K, T) of a group, or of all these groups.
        rewards: the reward functions.
        config: how to sample, and `kl_coef`.
        draws: a random generator for each row.
        on_policy: whether the update takes one step of all of it without dropout. Its ratio is then 1.
        keep_prompts: whether the update, which then has to be on-policy, may go on from the sampler's prompts.
        source: where the completions come from; default the policy itself.
        trainer_state: tells reward functions where the run is, as in TRL.
    """
    source = source or Source()
    if (groups := source.drawn) is None:
        drawing = drawing_of(config, rule, source.sampler, keep_prompts=keep_prompts)
        groups = draw(policy, embed(policy, rows), drawing, draws, source.sampler)
    compared = None if source.sampler.exact else compare(policy, groups, source.correction)
    groups = groups if compared is None else compared.groups
    earned, result = reward(rewards, rows, groups, policy.tokenizer, trainer_state)
    groups, earned, broken = unscore_unsampled(groups, earned)
    advantages = assign_credit(rule, groups, earned, policy.device, **credit_keys(config, policy.tokenizer))
    estimator = estimator_of(rule)
    shares = [shares_of(group, estimator, config.num_completions).to(policy.device) for group in groups]
    old = None if compared is None else compared.log_probs
    if old is None and not on_policy:  # else the update's own forward gives them
        old = old_log_probs(policy, groups)
    reference = reference_log_probs(policy, groups) if config.kl_coef else None
    left_out = [f"left unscored: {message}" for message in result.messages]
    if broken:
        left_out.append(f"{broken} completions came from logits that are not finite; left unscored")
    made = Rollout(
        rows,
        groups,
        earned,
        advantages,
        shares,
        old,
        reference,
        int(result.failed.sum()),
        left_out,
        *result.by_group([len(group.lengths) for group in groups]),
        result.metrics,
        positions=range(len(rows)),
    )
    return made if compared is None else replace(made, importance=compared.weights, mismatch=compared.mismatch)


# -- its phases, in order ----------------------------------------------------------------------------------------------
@phase("embed")
def embed(policy: Policy, rows: Sequence[dict[str, Any]]) -> list[Prompt]:
    """Embed prompts, audio included: once for sampling, scoring and the update."""
    return policy.embed(rows)


@phase("sample")
def draw(
    policy: Policy, prompts: Sequence[Prompt], drawing: Drawing, draws: Sequence[torch.Generator], sampler: Sampler
) -> list[Group]:
    """Sample a group of completions for every prompt."""
    return sampler.sample(policy, prompts, drawing, list(draws))


def drawing_of(
    config: LeafConfig, rule: CreditRule | BatchCredit, sampler: Sampler, *, keep_prompts: bool = False
) -> Drawing:
    """Choose how a rollout draws, as the recipe says: `num_completions` (K) completions, independent or distinct.

    Entropies that the rule reads are recorded while the policy draws; of a sampler elsewhere, its scores give them.
    """
    return Drawing(
        config.num_completions,
        config.max_new_tokens,
        config.temperature,
        config.top_p,
        entropy=sampler.exact and reads_entropy(rule, config),
        keep_prompts=keep_prompts,
        keep_entries=True,
        distinct=config.rollout == "distinct",
    )


def credit_keys(config: LeafConfig, tokenizer: Any) -> dict[str, Any]:
    """Choose what `assign_credit` asks of a recipe."""
    return {"tree_key": config.tree_key, "uncertain_share": config.uncertain_share, "tokenizer": tokenizer}


def reads_entropy(rule: CreditRule | BatchCredit, config: LeafConfig) -> bool:
    """Tell whether credit needs the policy's entropy at every token."""
    return isinstance(rule, BatchCredit) or config.uncertain_share < 1


@phase("reward")
def reward(
    rewards: Rewards,
    rows: list[dict[str, Any]],
    groups: list[Group],
    tokenizer: Any,
    trainer_state: TrainerState | None = None,
) -> tuple[list[Tensor], RewardResult]:
    """Call the reward functions once on all completions; gives the rewards (K,) per group, and what failed."""
    return rewards.of(rows, groups, tokenizer, trainer_state=trainer_state)


def unscore_unsampled(groups: Sequence[Group], rewards: Sequence[Tensor]) -> tuple[list[Group], list[Tensor], int]:
    """Leave completions unscored that were drawn from logits which are not finite, and count them.

    Their surprisal and entropy become 0, so that no boundary is put where nothing is known. The others of a group keep
    theirs.
    """
    kept, scores, count = [], [], 0
    for group, earned in zip(groups, rewards, strict=True):
        odd = ~group.surprisal.isfinite().all(1)
        if bool(odd.any()):
            count += int(odd.sum())
            blank = partial(torch.masked_fill, mask=odd[:, None], value=0.0)
            entropy = None if group.entropy is None else blank(group.entropy)
            group = replace(group, surprisal=blank(group.surprisal), entropy=entropy)
            earned = earned.masked_fill(odd, math.nan)
        kept.append(group)
        scores.append(earned)
    return kept, scores, count


@phase("credit")
def assign_credit(
    rule: CreditRule | BatchCredit,
    groups: Sequence[Group],
    rewards: Sequence[Tensor],
    device: torch.device,
    *,
    tree_key: Literal["tokens", "words"] = "tokens",
    tokenizer: Any = None,
    uncertain_share: float = 1.0,
) -> list[Tensor]:
    """Compute the advantages (K, T) of every group in float32.

    Args:
        rule, groups, rewards: see `rollout`.
        device: of the advantages.
        tree_key: what completions have to agree in to share a node; for words the tokenizer spells them.
        tokenizer: see `tree_key`.
        uncertain_share: of the tokens, those of highest entropy keep their advantage.
    """
    seen = [
        RewardedGroup(group.tree, earned, group.surprisal, group.entropy)
        for group, earned in zip(groups, rewards, strict=True)
    ]
    if tree_key == "words":
        words = [words_of(group, tokenizer) for group in groups]
        said = [by_words(one, word, ids) for one, (word, ids) in zip(seen, words, strict=True)]
        given = _apply(rule, said, [None] * len(groups))
        advantages = [to_tokens(one, word) for one, (word, _) in zip(given, words, strict=True)]
    else:
        advantages = _apply(rule, seen, [group.draw for group in groups])
    if uncertain_share < 1:
        marks = most_uncertain(seen, uncertain_share)
        advantages = [torch.where(mark, one, 0.0) for mark, one in zip(marks, advantages, strict=True)]
    return [one.float().to(device) for one in advantages]


def _apply(
    rule: CreditRule | BatchCredit, seen: Sequence[RewardedGroup], draws: Sequence[SetDraw | None]
) -> list[Tensor]:
    """Call a rule on all groups at once, or on one after the other."""
    if isinstance(rule, BatchCredit):
        return rule(seen)
    drawn = [{} if draw is None else {"draw": draw} for draw in draws]  # a rule need not know that there are others
    return [rule(one.tree, one.rewards, surprisal=one.surprisal, **more) for one, more in zip(seen, drawn, strict=True)]


def shares_of(group: Group, estimator: Estimator, completions: int) -> Tensor:
    """Compute how many completions each one of a group stands for (K,): 1, or as the estimator weighs distinct ones.

    Those of distinct ones add up to `completions`, so that a prompt counts as much if the policy has fewer outcomes.
    """
    if group.draw is None:
        return torch.ones(len(group.lengths))
    return (completions * estimator(group.draw)[0]).float()
