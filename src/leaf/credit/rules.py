"""Credit rules: from a prefix tree and one reward per completion to an advantage per token.

One rule, one function, called as `rule(tree, rewards, surprisal=surprisal, **options)`. It returns (K, T) advantages,
or (K, 1) where all tokens of a completion get the same. It is its formula and nothing else: `credit` puts the zeros at
padding, at unscored completions and in groups with nothing to learn, so a rule may give anything there.

n and V̂ of a prefix are the number and the mean reward of the scored completions that start with it. V̂(v₀) is the mean
of the group.

A rule that takes `draw` serves distinct completions too. Then each counts with its share, K times its weight of the
unordered-set estimator (leaf.credit.sets): as if it had been drawn that often. docs/distinct_rollouts.md says which of
these rules are unbiased.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from leaf.credit import values
from leaf.credit.sets import SetDraw, baseline_of, pairwise_deviations, shares_of_draw
from leaf.credit.spans import Terms, cut_spans
from leaf.credit.stretches import stretches
from leaf.credit.tree import GroupRewards, PrefixTree
from leaf.credit.values import (
    counted_completions,
    known_rewards,
    prefix_values,
    root_mean,
    scored_completions,
    shrunken_values,
)
from leaf.errors import ConfigError, NotRecorded, shown

CreditRule = Callable[..., Tensor]


def leaf(
    tree: PrefixTree,
    rewards: GroupRewards,
    *,
    surprisal: Tensor | None = None,
    draw: SetDraw | None = None,
    boundaries: Int[Tensor, " B"] | Sequence[int] | None = None,
    max_boundaries: int = 2,
    min_prefix: int = 1,
    terms: Terms = "both",
    normalize: bool = True,
    group_ended: bool = True,
    sqrt_count: bool = True,
    phantom_spans: bool = False,
) -> Float[Tensor, "K T"]:
    """Give every token its span's z-scored credit (LEAF, arXiv 2606.07610); `cut_spans` has formula and options.

    Reason: completions that share a prefix and then part are an experiment on what follows the prefix. Their rewards
    tell which part of an answer made the difference.
    """
    spans = cut_spans(
        tree,
        rewards,
        surprisal=surprisal,
        boundaries=boundaries,
        max_boundaries=max_boundaries,
        min_prefix=min_prefix,
        terms=terms,
        normalize=normalize,
        group_ended=group_ended,
        sqrt_count=sqrt_count,
        phantom_spans=phantom_spans,
        shares=shares_of_draw(draw),
    )
    return spans.paint(tree.tokens.shape[1])


def grpo(
    tree: PrefixTree, rewards: GroupRewards, *, surprisal: Tensor | None = None, std_floor: float = 1 / 3
) -> Float[Tensor, "K 1"]:
    """Give every token A = (r − mean) / (max(std, 1/3) + 1e-6), std with ddof 1 (Elmakies et al., arXiv 2509.16990).

    Reason: the group's own mean is a baseline that needs no value network. The floor keeps groups whose rewards hardly
    differ from counting as much as those whose rewards differ a lot.
    """
    if not std_floor >= 0:
        raise ConfigError(f"std_floor is {std_floor}; it must be a number of at least 0.")
    deviation, spread, _ = _deviations(tree, rewards)
    return (deviation / (spread.clamp_min(std_floor) + 1e-6))[:, None]


def dr_grpo(tree: PrefixTree, rewards: GroupRewards, *, surprisal: Tensor | None = None) -> Float[Tensor, "K 1"]:
    """Give every token A = r − mean r (Dr. GRPO, arXiv 2503.20783).

    Reason: division by the deviation gives prompts that are nearly solved or hardly ever solved more weight.
    """
    return _deviations(tree, rewards)[0][:, None]


def rloo(tree: PrefixTree, rewards: GroupRewards, *, surprisal: Tensor | None = None) -> Float[Tensor, "K 1"]:
    """Give every token A = r − mean of the others' rewards = (r − mean) · n / (n − 1) (RLOO, arXiv 2402.14740).

    Reason: a baseline that does not contain the completion's own reward leaves the gradient unbiased. That holds for
    sums over a completion's tokens: a mean over them (`reduction: completion_mean`) weighs long completions less.
    """
    deviation, _, n = _deviations(tree, rewards)
    return (deviation * n / (n - 1).clamp_min(1))[:, None]


def max_rl(tree: PrefixTree, rewards: GroupRewards, *, surprisal: Tensor | None = None) -> Float[Tensor, "K 1"]:
    """Give every token A = (r − mean) / mean (MaxRL, arXiv 2602.02710), 0 where the mean is 0. Rewards must be ≥ 0.

    Reason: with rewards 0 and 1 this is the gradient of log p(right answer), the likelihood, in place of that of p. A
    prompt that is hardly ever solved weighs more.
    """
    scored = scored_completions(tree, rewards)
    reward = known_rewards(rewards, scored)
    if bool((reward < 0).any()):
        raise ConfigError(
            f"The credit rule max_rl divides by the mean reward, and {reward.min():g} is below 0. "
            "Give rewards of at least 0, or use another rule."
        )
    deviation, mean = _deviations(tree, rewards)[0], root_mean(reward, scored)
    return (deviation / mean if mean > 0 else torch.zeros_like(deviation))[:, None]


def tempo(
    tree: PrefixTree, rewards: GroupRewards, *, surprisal: Tensor | None = None, draw: SetDraw | None = None
) -> Float[Tensor, "K T"]:
    """Give token t [(r − mean) + V̂(prefix through t) − V̂(prefix before t)] / std (TEMPO, arXiv 2509.18314).

    The difference is exactly 0 where completions do not part. 1e-6 is added to std, as in GRPO.

    Reason: V̂ of the tree's prefixes serves as a critic, so the token that decides gets a temporal difference on top of
    GRPO's credit.
    """
    shares = shares_of_draw(draw)
    deviation, spread, _ = _deviations(tree, rewards, shares)
    cut = stretches(tree, rewards, shares)
    step = torch.where(cut.opens, cut.value - cut.before, 0.0)
    return (deviation[:, None] + step) / (spread + 1e-6)


def spo(
    tree: PrefixTree,
    rewards: GroupRewards,
    *,
    surprisal: Tensor | None = None,
    draw: SetDraw | None = None,
    credited: Literal["unsure", "branching", "all"] = "unsure",
    probability: float = 0.9,
) -> Float[Tensor, "K T"]:
    """Give V̂(child) − V̂(parent) to a segment's tokens of probability below 0.9 (SPO-tree, arXiv 2505.23564).

    Segments are the unbranched stretches of the tree (the paper samples segments of fixed length), and the probability
    is the one under the sampling distribution. The paper's loss is divided by the number of tokens under its mask; here
    the reduction of the recipe divides.

    Args:
        tree, rewards, surprisal, draw: see the module.
        credited: "unsure" is the paper's probability mask; "branching" credits only the token that decides which
            segment follows; "all" credits whole segments.
        probability: of the mask.

    Reason: a segment is worth what it changes in the expected reward, and a token of which the policy was certain
    changed nothing.
    """
    if credited not in ("unsure", "branching", "all"):
        raise ConfigError(f"credited is {shown(credited)}; allowed are unsure, branching and all.")
    if not 0 < probability <= 1:
        raise ConfigError(f"probability is {probability}; it must be a number above 0 and at most 1.")
    cut = stretches(tree, rewards, shares_of_draw(draw))
    if credited == "branching":
        return torch.where(cut.opens, cut.value - cut.before, 0.0)
    credit = cut.value - cut.parent
    if credited == "all":
        return credit
    if surprisal is None:
        raise NotRecorded("The credit rule spo reads surprisal for its mask. Pass it, or set credited: all.")
    return torch.where(surprisal.to(credit.device) > -math.log(probability), credit, 0.0)


def treerl(tree: PrefixTree, rewards: GroupRewards, *, surprisal: Tensor | None = None) -> Float[Tensor, "K T"]:
    """Give every token of a step (GA + LA) / √n of the node it ends at (TreeRL, arXiv 2506.11902).

    GA is V̂(node) − V̂(v₀), and LA is V̂(node) − V̂(branching node before). Steps are the unbranched stretches of the tree,
    so every branching node counts, without boundary selection. This is the paper's formula; its code divides each V̂ by
    √n of its own node before it takes differences.

    Reason: a step is good if it leads to good answers, and better if it improves on the step before. 1/√n, because the
    tokens of a shared step enter the loss n times.
    """
    cut = stretches(tree, rewards)
    return ((cut.value - cut.root) + (cut.value - cut.parent)) / cut.count.clamp_min(1).sqrt()


def treepo(tree: PrefixTree, rewards: GroupRewards, *, surprisal: Tensor | None = None) -> Float[Tensor, "K 1"]:
    """Give every token the mean over its completion's ancestor groups, weighted by size, of r − mean of that group.

    Ancestor groups are the root and every smaller group of two or more completions that share a prefix with this one,
    each distinct group once (TreePO, arXiv 2508.17445; there groups come from branching while sampling).

    Reason: a small group shares more of the answer, so its mean is the closer baseline; a large one has less noise.
    """
    deviation, _, n = _deviations(tree, rewards)
    cut = stretches(tree, rewards)
    # Only the first token of a stretch has a weight, so that each distinct group counts once.
    weight = torch.where(cut.opens & (cut.count >= 2), cut.count, 0.0)
    reward = deviation + cut.root
    inner = torch.where(weight > 0, weight * (reward[:, None] - cut.value), 0.0).sum(1)
    return ((n * deviation + inner) / (n + weight.sum(1)).clamp_min(1))[:, None]


def shrunken(
    tree: PrefixTree,
    rewards: GroupRewards,
    *,
    surprisal: Tensor | None = None,
    draw: SetDraw | None = None,
    kappa: float = 4.0,
    leave_one_out: bool = True,
) -> Float[Tensor, "K T"]:
    """Give token t A = r − Ṽ(prefix before t), Ṽ(v) = (n V̂(v) + κ Ṽ(parent)) / (n + κ), Ṽ(v₀) = V̂(v₀).

    Ours, and a hypothesis; benchmarks/notebooks/credit_lab.md has the evidence. Every token is a step down the tree.
    Not divided by a deviation.

    Reason: V̂ of the prefix is the best baseline where many completions share it and the noisiest where few do, so it is
    shrunk towards its parent's. κ ≥ 0, in completions, is how many the parent counts for.

    With `leave_one_out`, n and V̂ are those of the other completions: unbiased, a prefix nobody else has keeps its
    parent's Ṽ, large κ is RLOO. Without it, κ = 0 is r − V̂(prefix), large κ is Dr. GRPO, and once a completion's
    prefix is its own its advantage fades by κ / (1 + κ) a token: less noise, and a bias against late tokens that grows
    with the length of completions.

    For distinct completions `leave_one_out` compares with the others through the unordered-set estimator's baseline,
    and n is how many of the K − 1 others are expected, (K − 1) p(v): that keeps it unbiased. It reads p(v) from the
    surprisal.
    """
    if not 0 <= kappa < float("inf"):
        raise ConfigError(f"kappa is {kappa}; it must be a finite number of at least 0.")
    scored = scored_completions(tree, rewards)
    reward = known_rewards(rewards, scored)
    if draw is not None and leave_one_out:
        if surprisal is None:
            raise NotRecorded("The credit rule shrunken reads the probability of every prefix. Pass surprisal.")
        # r − Ṽ shrinks as Ṽ does: Σ over the others of B (r − r'), in place of their Σ r, goes into the same recursion.
        apart = pairwise_deviations(tree, reward, baseline_of(draw, scored))
        others = max(int(scored.sum()) - 1, 1)
        nats = surprisal.to(reward.device).double().masked_fill(tree.node < 0, 0.0).cumsum(1)
        expected = others * torch.nn.functional.pad(-nats, (1, 0)).exp()
        return values.shrunken(expected, others * apart, kappa)[:, :-1]
    count, value = prefix_values(tree, reward, counted_completions(scored, shares_of_draw(draw)))
    return reward[:, None] - shrunken_values(count, value, reward, kappa, leave_one_out=leave_one_out)[:, :-1]


# A plugin adds its own: CREDIT_RULES["mine"] = mine.
CREDIT_RULES: dict[str, CreditRule] = {
    "leaf": leaf,
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "max_rl": max_rl,
    "tempo": tempo,
    "spo": spo,
    "treerl": treerl,
    "treepo": treepo,
    "shrunken": shrunken,
}


def _deviations(
    tree: PrefixTree, rewards: GroupRewards, shares: Float[Tensor, " K"] | None = None
) -> tuple[Float[Tensor, " K"], Float[Tensor, ""], Tensor]:
    """Compute r − mean (K,), 0 where unscored, their standard deviation with ddof 1, and n (a sum of shares)."""
    scored = scored_completions(tree, rewards)
    reward, part = known_rewards(rewards, scored), counted_completions(scored, shares)
    n = part.sum()
    deviation = (reward - root_mean(reward, part)).masked_fill(~scored, 0.0)
    return deviation, ((part * deviation.square()).sum() / (n - 1).clamp_min(1)).sqrt(), n
