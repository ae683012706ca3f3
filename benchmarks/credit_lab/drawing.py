"""Draw the groups of a step for all seeds of the game: independent, distinct, or until enough of them have spread."""

import torch
from torch import Tensor

from benchmarks.credit_lab.arms import Arm, Groups
from benchmarks.credit_lab.beams import distinct
from benchmarks.credit_lab.language import END, MOST, Language, rewards
from benchmarks.credit_lab.policies import Policies

ROUNDS = 8  # of prompts that dynamic sampling tries at most


def draw(
    arm: Arm, policies: Policies, language: Language, prompts: int, asks: torch.Generator, draws: torch.Generator
) -> Groups:
    """Draw P groups for every seed.

    Args:
        arm: says how.
        policies: of S seeds.
        language: of the prompts.
        prompts: P.
        asks: chooses prompts.
        draws: chooses completions.
    """
    shape = (policies.seeds, prompts)
    if arm.rollout == "dynamic":
        return _dynamic(arm, policies, language, shape, asks, draws)
    source, target, _ = language.sentences(shape, asks)
    if arm.rollout == "distinct":
        return distinct(policies, source, target, arm.completions, draws)
    return independent(policies, source, target, arm.completions, draws)


def independent(policies: Policies, source: Tensor, target: Tensor, count: int, draws: torch.Generator) -> Groups:
    """Draw K completions of every prompt (S, P, 7) independently."""
    shape = (*source.shape[:2], count)
    tokens, length, *others = policies.sample(source, count, draws, stop=True)
    beyond = (0, MOST - tokens.shape[-1])
    logp, entropy = (torch.nn.functional.pad(each, beyond).unflatten(1, shape[1:]) for each in others)
    tokens = torch.nn.functional.pad(tokens, beyond, value=END).unflatten(1, shape[1:])
    length = length.unflatten(1, shape[1:])
    reward = rewards(tokens, target[:, :, None].expand(*shape, -1))
    decoded, spoken = shape[1] * count, float(length.sum()) / shape[0]
    return Groups(source, tokens, length, logp, entropy, reward, None, decoded, spoken)


def _dynamic(
    arm: Arm,
    policies: Policies,
    language: Language,
    shape: tuple[int, int],
    asks: torch.Generator,
    draws: torch.Generator,
) -> Groups:
    """Draw prompts, P at a time, until every seed has P groups whose rewards differ (DAPO, arXiv 2503.14476).

    A seed keeps its first P groups with spread, and is charged for the rounds that it needed. After ROUNDS the groups
    that are missing are groups without spread.
    """
    rounds: list[Groups] = []
    spread = torch.zeros(shape[0], 0, dtype=torch.bool)
    while len(rounds) < ROUNDS and bool((spread.sum(1) < shape[1]).any()):
        source, target, _ = language.sentences(shape, asks)
        rounds.append(independent(policies, source, target, arm.completions, draws))
        spread = torch.cat([spread, ~rounds[-1].flat], 1)
    # Stable, so that groups with spread come first and in the order in which they were drawn.
    kept = (~spread).byte().argsort(dim=1, stable=True)[:, : shape[1]]
    used = kept.amax(1) // shape[1] + 1  # rounds; all of them where some group is missing
    used = torch.where(spread.sum(1) < shape[1], len(rounds), used)
    spoken = torch.stack([one.length.sum((1, 2)) for one in rounds], 1).cumsum(1)

    def pick(name: str) -> Tensor:
        every = torch.cat([getattr(one, name) for one in rounds], 1)
        return every[torch.arange(shape[0])[:, None], kept]

    return Groups(
        *(pick(name) for name in ("source", "tokens", "length", "logp", "entropy", "reward")),
        sets=None,
        decoded=float(used.double().mean()) * shape[1] * arm.completions,
        decoded_tokens=float(spoken.gather(1, used[:, None] - 1).double().mean()),
    )
