"""From the batch of another trainer to advantages per token, with any credit rule of leaf.

Needs torch, numpy and jaxtyping and nothing else, because an engine may pin older versions of what leaf itself needs.
Letters: N completions of all groups of a step, T tokens of a row; a group is K of the N.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from leaf.credit.batches import BatchCredit, RewardedGroup
from leaf.credit.registry import find_credit, rule_inside
from leaf.credit.rules import CreditRule
from leaf.credit.sets import SET_RULES
from leaf.credit.tree import PrefixTree
from leaf.errors import ConfigError, DataError, NotRecorded, shown

# Two completions of one group, on which a rule shows what it reads.
_TOKENS, _REWARDS = torch.tensor([[0, 0], [0, 1]]), torch.tensor([0.0, 1.0])

Uids = Sequence[Hashable] | np.ndarray | Tensor


def find_rule(rule: str | CreditRule | BatchCredit, **options: Any) -> CreditRule | BatchCredit:
    """Find a credit rule and bind its options, before a model is loaded.

    Raises:
        ConfigError: it is unknown, does not take its options, or weighs distinct completions, which no engine draws.
    """
    if isinstance(rule, str) and rule in SET_RULES:
        raise ConfigError(
            f"The credit rule {rule} weighs distinct completions, and an engine draws them independently. Choose "
            "another rule, or train with leaf's own loop and rollout: distinct."
        )
    return find_credit(rule, **options)


def reads(rule: str | CreditRule | BatchCredit, **options: Any) -> set[str]:
    """Find what a rule needs beside tokens and rewards: "surprisal", "entropy", both or neither.

    A rule that leaf does not have is taken to need all that its kind may read: only its author knows.
    """
    bound = find_rule(rule, **options)
    if not rule_inside(bound).__module__.startswith("leaf.credit."):
        return {"surprisal", "entropy"} if isinstance(bound, BatchCredit) else {"surprisal"}
    given: dict[str, Tensor | None] = {"surprisal": None, "entropy": None}
    while True:
        try:
            _apply(bound, [RewardedGroup(PrefixTree.build(_TOKENS, torch.tensor([2, 2])), _REWARDS, **given)])
        except NotRecorded as error:
            given[error.what] = torch.ones(2, 2)
        else:
            return {name for name, value in given.items() if value is not None}


def group_advantages(
    uid: Uids,
    responses: Int[Tensor, "N T"],
    mask: Tensor,
    log_probs: Float[Tensor, "N T"] | None,
    rewards: Tensor,
    rule: str | CreditRule | BatchCredit,
    *,
    entropy: Float[Tensor, "N T"] | None = None,
    how_to_record: Mapping[str, str] | None = None,
    **options: Any,
) -> Float[Tensor, "N T"]:
    """Compute the advantage of every token of a step's completions, as leaf's own loop would.

    Rows of one uid form a group. They may stand anywhere, and groups may differ in size. The rule runs on the CPU, in
    float64.

    Args:
        uid: (N,) which prompt a completion answers: texts, numbers, an array or a tensor.
        responses: (N, T) token ids, padded on either side; the padding may hold anything.
        mask: (N, T) true or 1 at the completion's own tokens, its end-of-sequence token included.
        log_probs: (N, T) log p of each token under the distribution it was drawn from, in nats; None where the engine
            has none. Temperature and top-p have to be in them.
        rewards: (N,), NaN = could not be scored.
        rule: a name of `CREDIT_RULES` or `BATCH_RULES`, a function of one group, or what `find_credit` gave.
        entropy: (N, T) of the policy's distribution at each token, in nats, for the rules that read it.
        how_to_record: "surprisal" or "entropy" → the sentence that tells a user of the engine how to get it.
        options: of the rule.

    Returns:
        (N, T) float32 on the device of `responses`; exactly 0 at padding, at completions without a score and in groups
        with nothing to learn.

    Raises:
        NotRecorded: the rule reads surprisal or entropy, and it was not given.
        ConfigError: the rule is unknown or does not take its options.
        DataError: the tensors do not fit each other, or a completion is not one stretch of tokens.
    """
    bound = find_rule(rule, **options)
    keys = _keys(uid)
    _check_shapes(keys, responses, mask, rewards, log_probs=log_probs, entropy=entropy)
    real = mask.detach().cpu().bool()
    start = _starts(real)
    tokens, lengths, reward = _shifted(responses, start), real.sum(1), rewards.detach().cpu().double()
    surprisal = None if log_probs is None else -_shifted(log_probs, start).double()
    spread = None if entropy is None else _shifted(entropy, start).double()
    members = _members(keys)
    groups = [_group(rows, tokens, lengths, reward, surprisal, spread) for rows in members]
    given = torch.zeros(real.shape, dtype=torch.float64)
    try:
        for rows, advantages in zip(members, _apply(bound, groups), strict=True):
            given[rows, : advantages.shape[1]] = advantages.double()
    except NotRecorded as error:
        advice = (how_to_record or {}).get(error.what)
        raise NotRecorded(f"{error} {advice}" if advice else str(error), what=error.what) from error
    return _shifted(given, -start).float().to(responses.device)


def _apply(rule: CreditRule | BatchCredit, groups: Sequence[RewardedGroup]) -> list[Tensor]:
    if isinstance(rule, BatchCredit):
        return rule(groups) if groups else []
    return [rule(one.tree, one.rewards, surprisal=one.surprisal) for one in groups]


def _keys(uid: Uids) -> list[Hashable]:
    """Make uids that are equal where they mean the same prompt: two tensors of one number are not."""
    return list(uid.tolist() if isinstance(uid, np.ndarray | Tensor) else uid)


def _members(keys: Sequence[Hashable]) -> list[list[int]]:
    """List the rows of every group, groups and rows in the order of the batch."""
    groups: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        groups.setdefault(key, []).append(row)
    return list(groups.values())


def _group(
    rows: list[int],
    tokens: Int[Tensor, "N T"],
    lengths: Int[Tensor, " N"],
    rewards: Float[Tensor, " N"],
    surprisal: Float[Tensor, "N T"] | None,
    entropy: Float[Tensor, "N T"] | None,
) -> RewardedGroup:
    """Cut one group out of all completions, at the width of its longest one."""
    width = int(lengths[rows].max())
    return RewardedGroup(
        PrefixTree.build(tokens[rows, :width], lengths[rows]),
        rewards[rows],
        None if surprisal is None else surprisal[rows, :width],
        None if entropy is None else entropy[rows, :width],
    )


def _check_shapes(
    keys: Sequence[Hashable], responses: Tensor, mask: Tensor, rewards: Tensor, **others: Tensor | None
) -> None:
    """Refuse tensors that do not belong to the same completions."""
    if responses.ndim != 2:
        raise DataError(f"responses has the shape {tuple(responses.shape)}; give (N, T), one row per completion.")
    tensors = {"mask": mask, **{name: one for name, one in others.items() if one is not None}}
    for name, one in tensors.items():
        if one.shape != responses.shape:
            raise DataError(
                f"{name} has the shape {tuple(one.shape)} and responses {tuple(responses.shape)}; give both by the "
                "same completions and tokens."
            )
    size = len(responses)
    for name, shape in {"uid": (len(keys),), "rewards": tuple(rewards.shape)}.items():
        if shape != (size,):
            raise DataError(f"{name} has the shape {shape} for {size} completions; give one of each completion.")
    odd = mask[(mask != 0) & (mask != 1)]
    if odd.numel():
        raise DataError(f"mask holds {shown(odd[0].item())}; allowed are 0 and 1, or false and true.")


def _starts(real: Bool[Tensor, "N T"]) -> Int[Tensor, " N"]:
    """Find the first token of every completion, 0 of an empty one; refuse completions with holes."""
    before = torch.nn.functional.pad(real, (1, 0))[:, :-1]
    opens = real & ~before
    broken = (opens.sum(1) > 1).nonzero().flatten().tolist()
    if broken:
        raise DataError(
            f"{len(broken)} of {len(real)} completions have holes in their mask (the first is row {broken[0]}), as "
            "turns of a tool leave them; leaf credits completions that are one stretch of tokens, so train without "
            "tools."
        )
    return opens.int().argmax(1) if real.shape[1] else real.new_zeros(len(real), dtype=torch.long)


def _shifted(values: Tensor, by: Int[Tensor, " N"]) -> Tensor:
    """Roll every row to the left by its own number of tokens, on the CPU."""
    values = values.detach().cpu()
    width = values.shape[1]
    if width == 0 or not bool(by.any()):
        return values
    return values.gather(1, (torch.arange(width) + by[:, None]) % width)
