"""Train all seeds of the translation game side by side, one arm at a time, and score them."""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.credit_lab.arms import Arm, Groups, advantages, shares
from benchmarks.credit_lab.drawing import draw, independent
from benchmarks.credit_lab.language import END, MOST, Language, text
from benchmarks.credit_lab.policies import Policies, damaged, supervised
from leaf.credit import policy_loss, surrogate, token_weights
from leaf.evaluation.registry import score

ITEMS, SAMPLES = 200, 16  # held-out sentences, and translations of each by which the expected reward is estimated
BLOCK = 25  # steps over which a curve is averaged


@dataclass(frozen=True)
class Game:
    """What all arms have in common.

    Attributes:
        supervised: steps with 32 pairs each, Adam at 3e-3, before anything else.
        noise: of the damage that is done then, and that reinforcement can mend; see `damaged`.
        steps, prompts: of reinforcement; prompts of a step.
    """

    supervised: int = 900
    noise: float = 0.25
    steps: int = 100
    prompts: int = 4

    def start(self, seeds: int, first: int) -> Policies:
        """Make the policies from which every arm starts."""
        trained = supervised(seeds, first, self.supervised, 3e-3, Language())
        return damaged(trained, self.noise, first)


def train(start: Policies, arm: Arm, rate: float, game: Game, first: int) -> tuple[Policies, dict]:
    """Train a copy of the policies; everything that is random follows from the step and the number of the first seed.

    Returns:
        The trained policies, and figures of the way: means over seeds and steps, `curve` by blocks of steps.
    """
    began, policies, language = time.monotonic(), start.copy(), Language()
    optimizer, gain = torch.optim.Adam(policies.p.values(), lr=rate), surrogate(arm.loss)
    seen: dict[str, list[float]] = {"reward": [], "flat": [], "decoded": [], "tokens": [], "held": []}
    for step in range(game.steps):
        # Each step has its own numbers, so that arms stay paired whatever they have drawn before.
        asks, draws = (torch.Generator().manual_seed(10**6 * (first + 1) + 2 * step + i) for i in range(2))
        groups = draw(arm, policies, language, game.prompts, asks, draws)
        given, stands_for = advantages(arm, groups), shares(arm, groups)
        held = [_update(policies, groups, given, stands_for, arm, optimizer, gain) for _ in range(arm.passes)]
        seen["reward"].append(float((groups.reward * stands_for).mean()))
        seen["flat"].append(float(groups.flat.double().mean()))
        seen["decoded"].append(groups.decoded)
        seen["tokens"].append(groups.decoded_tokens)
        seen["held"].append(sum(held) / len(held))
    figures = {
        "curve": [_mean(seen["reward"][i : i + BLOCK]) for i in range(0, game.steps, BLOCK)],
        "flat": _mean(seen["flat"]),
        "flat_last": _mean(seen["flat"][-BLOCK:]),
        "completions": round(sum(seen["decoded"])),
        "tokens": round(sum(seen["tokens"])),
        "clip_fraction": _mean(seen["held"]),
        "seconds": round(time.monotonic() - began, 1),
    }
    return policies, figures


def _update(
    policies: Policies,
    groups: Groups,
    given: Tensor,
    stands_for: Tensor,
    arm: Arm,
    optimizer: torch.optim.Optimizer,
    gain,
) -> float:
    """Take one step on all groups of all seeds, and return the share of the tokens that the loss held back."""
    mask = groups.mask.flatten(1, 2)  # (S, N, T)
    weights = [
        token_weights([own], reduction=arm.reduction, constant_length=MOST, shares=[share.flatten()])[0]
        for own, share in zip(mask, stands_for, strict=True)
    ]
    new = scored(policies, groups, needed=(given != 0).any(-1))
    loss, found = policy_loss(
        new.flatten(0, 1),
        groups.logp.flatten(0, 2),
        given.flatten(0, 2),
        mask.flatten(0, 1),
        weights=torch.cat(weights),
        surrogate=gain,
        clip=arm.clip,
        clip_high=arm.clip_high,
        kl_coef=0.0,
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return float(found["clip_fraction"])


def scored(policies: Policies, groups: Groups, needed: Tensor) -> Tensor:
    """Compute (S, N, T) log-probabilities of the `needed` (S, P, K) completions, with graph; the others keep the old.

    Completions without credit add nothing to the loss. Of the others each distinct one of a prompt runs once.
    """
    seeds, prompts, count = needed.shape
    result = groups.logp.flatten(0, 2).clone()
    at = needed.flatten().nonzero().squeeze(1)
    if not len(at):  # a graph without a gradient, so that the step is taken as ever
        return result.view(seeds, prompts * count, -1) + 0.0 * sum(each.sum() for each in policies.p.values())
    width = int(groups.length.flatten()[at].max())
    tokens = groups.tokens.flatten(0, 2)[at, :width]
    rows = torch.cat([(at // count)[:, None], tokens], 1)  # which prompt of which seed, and what was said
    distinct, inverse = rows.unique(dim=0, return_inverse=True)
    seed, prompt = distinct[:, 0] // prompts, distinct[:, 0] % prompts
    of_seed = torch.bincount(seed, minlength=seeds)
    slot = torch.arange(len(distinct)) - (of_seed.cumsum(0) - of_seed)[seed]
    whose = torch.zeros(seeds, int(of_seed.max()), dtype=torch.long)
    said = torch.full((*whose.shape, width), END)
    whose[seed, slot], said[seed, slot] = prompt, distinct[:, 1:]
    logp = policies.log_probs(groups.source, said, rows=whose)[seed, slot][inverse]
    logp = torch.nn.functional.pad(logp, (0, result.shape[1] - width))
    return result.index_copy(0, at, logp).view(seeds, prompts * count, -1)


def judged(policies: Policies, *, validation: bool) -> dict[str, list[float]]:
    """Score every seed on held-out sentences: the same for all of them, others for validation.

    `reward` is the mean over 16 translations of each at temperature 1, `bleu` that of the greedy ones, and `entropy`
    the policy's at the tokens of the sampled ones.
    """
    number = 4 if validation else 3
    source, target, _ = Language().sentences((ITEMS,), torch.Generator().manual_seed(number))
    source, target = (each.expand(policies.seeds, *each.shape) for each in (source, target))
    greedy, *_ = policies.sample(source, 1, None)
    references = text(target[0])
    generator = torch.Generator().manual_seed(100 + number)
    with torch.no_grad():
        groups = independent(policies, source, target, SAMPLES, generator)
    spread = (groups.entropy * groups.mask).sum((1, 2, 3)) / groups.mask.sum((1, 2, 3))
    return {
        "reward": [round(x, 5) for x in groups.reward.mean((1, 2)).tolist()],
        "bleu": [round(score(text(one), references, metrics=("bleu",))["bleu"].value, 3) for one in greedy],
        "entropy": [round(x, 4) for x in spread.tolist()],
    }


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 5)
