"""Credit rules: from a prefix tree and one reward per completion to an advantage per token.

Below each rule stands its formula and nothing else: `rule` sees to the zeros at padding, for unscored completions and
in groups with nothing to learn. n and V̂ of a prefix are count and mean reward of the scored completions that start
with it; V̂(v₀) is the group mean.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from leaf.credit.registry import rule
from leaf.credit.spans import Terms, cut_spans
from leaf.credit.tree import PrefixTree, Rewards
from leaf.credit.values import known_rewards, prefix_values, root_mean, scored_completions, shrunken_values
from leaf.errors import ConfigError, DataError


@rule(options_of=cut_spans, tried=True)
def leaf(tree: PrefixTree, rewards: Rewards, *, surprisal: Any = None, **options: Any) -> Tensor:
    """Give every token its span's z-scored credit (LEAF, arXiv 2606.07610); `cut_spans` has formula and options."""
    return cut_spans(tree, rewards, surprisal=surprisal, **options).paint(tree.tokens.shape[1])


@rule(tried=True)
def grpo(tree: PrefixTree, rewards: Rewards, *, surprisal: Any = None, std_floor: float = 1 / 3) -> Tensor:
    """Give every token A = (r − mean) / (max(std, 1/3) + 1e-6), std with ddof 1 (Elmakies et al., arXiv 2509.16990)."""
    if not std_floor >= 0:
        raise ConfigError(f"std_floor is {std_floor}; it must be a number of at least 0.")
    deviation, spread, _ = _deviations(tree, rewards)
    return (deviation / (spread.clamp_min(std_floor) + 1e-6))[:, None]


@rule()
def dr_grpo(tree: PrefixTree, rewards: Rewards, *, surprisal: Any = None) -> Tensor:
    """Give every token A = r − mean r (Dr. GRPO, arXiv 2503.20783)."""
    return _deviations(tree, rewards)[0][:, None]


@rule()
def rloo(tree: PrefixTree, rewards: Rewards, *, surprisal: Any = None) -> Tensor:
    """Give every token A = r − mean of the others' rewards = (r − mean) · n / (n − 1) (RLOO, arXiv 2402.14740)."""
    deviation, _, n = _deviations(tree, rewards)
    return (deviation * n / (n - 1).clamp_min(1))[:, None]


@rule()
def tempo(tree: PrefixTree, rewards: Rewards, *, surprisal: Any = None) -> Tensor:
    """Give token t [(r − mean) + V̂(prefix through t) − V̂(prefix before t)] / std (TEMPO, arXiv 2509.18314).

    The difference is exactly 0 where completions do not part. Beside std stands 1e-6, as in GRPO.
    """
    deviation, spread, _ = _deviations(tree, rewards)
    stretch = _Stretches(tree, rewards)
    step = torch.where(stretch.opens, stretch.value - stretch.before, 0.0)
    return (deviation[:, None] + step) / (spread + 1e-6)


@rule()
def spo(tree: PrefixTree, rewards: Rewards, *, surprisal: Any = None, whole_segment: bool = False) -> Tensor:
    """Give V̂(child) − V̂(parent) to the token at which paths part (SPO-tree, arXiv 2505.23564).

    Segments are the unbranched stretches of the tree (the paper samples segments of fixed length). As under the paper's
    probability mask, only the token that decides which segment follows is credited; `whole_segment` credits them all.
    """
    stretch = _Stretches(tree, rewards)
    if whole_segment:
        return stretch.value - stretch.parent
    return torch.where(stretch.opens, stretch.value - stretch.before, 0.0)


@rule()
def treerl(tree: PrefixTree, rewards: Rewards, *, surprisal: Any = None) -> Tensor:
    """Give every token of a step (GA + LA) / √n of the node it ends at (TreeRL, arXiv 2506.11902).

    Steps are the unbranched stretches of the tree, so every branching node counts, without boundary selection; the
    parent in LA is the branching node before.
    """
    stretch = _Stretches(tree, rewards)
    return ((stretch.value - stretch.root) + (stretch.value - stretch.parent)) / stretch.count.clamp_min(1).sqrt()


@rule()
def treepo(tree: PrefixTree, rewards: Rewards, *, surprisal: Any = None) -> Tensor:
    """Give every token the mean over its completion's ancestor groups, weighted by size, of r − mean of that group.

    Ancestor groups are the root and every smaller group of two or more completions that share a prefix with this one,
    each distinct group once (TreePO, arXiv 2508.17445; there groups come from branching while sampling).
    """
    deviation, _, n = _deviations(tree, rewards)
    stretch = _Stretches(tree, rewards)
    weight = torch.where(stretch.opens & (stretch.count >= 2), stretch.count, 0.0)
    reward = deviation + stretch.root
    inner = torch.where(weight > 0, weight * (reward[:, None] - stretch.value), 0.0).sum(1)
    return ((n * deviation + inner) / (n + weight.sum(1)).clamp_min(1))[:, None]


@rule(tried=True)
def shrunken(
    tree: PrefixTree,
    rewards: Rewards,
    *,
    surprisal: Any = None,
    kappa: float = 4.0,
    leave_one_out: bool = True,
) -> Tensor:
    """Give token t A = r − Ṽ(prefix before t), Ṽ(v) = (n V̂(v) + κ Ṽ(parent)) / (n + κ), Ṽ(v₀) = V̂(v₀).

    Ours, and a hypothesis; docs/credit_lab.md has the evidence for and against. V̂ of the prefix is the best baseline
    where many completions share it and the noisiest where few do; κ ≥ 0, in completions, is how many the parent counts
    for. Every token is a step down the tree. Not divided by a deviation.

    With `leave_one_out`, n and V̂ are those of the other completions: unbiased, a prefix nobody else has keeps its
    parent's Ṽ, large κ is RLOO. Without it, κ = 0 is r − V̂(prefix), large κ is Dr. GRPO, and once a completion's
    prefix is its own its advantage fades by κ / (1 + κ) a token: less noise, and a bias against late tokens that grows
    with the length of completions.
    """
    if not 0 <= kappa < float("inf"):
        raise ConfigError(f"kappa is {kappa}; it must be a finite number of at least 0.")
    scored = scored_completions(tree, rewards)
    reward = known_rewards(rewards, scored)
    count, value = prefix_values(tree, reward, scored)
    return reward[:, None] - shrunken_values(count, value, reward, kappa, leave_one_out=leave_one_out)[:, :-1]


def leaf_advantages(
    tokens: Int[Tensor, "K T"],
    lengths: Int[Tensor, " K"],
    surprisal: Float[Tensor, "K T"],
    rewards: Rewards,
    *,
    max_boundaries: int = 2,
    min_prefix: int = 1,
    terms: Terms = "both",
    normalize: bool = True,
    group_ended: bool = True,
    sqrt_count: bool = True,
    boundaries: Int[Tensor, " B"] | Sequence[int] | None = None,
) -> Float[Tensor, "K T"]:
    """Return LEAF's advantage of every token of a group (arXiv 2606.07610); `cut_spans` has the formula.

    Args:
        tokens: (K, T) right-padded token ids.
        lengths: (K,) tokens per completion, its end-of-sequence token included.
        surprisal: (K, T) −log p in nats under the sampling distribution; padding is ignored.
        rewards: (K,) terminal rewards; NaN = unscored.
        max_boundaries, min_prefix, terms, normalize, group_ended: see `cut_spans`.
        sqrt_count, boundaries: ablations, see `cut_spans`.

    Returns:
        (K, T) in the dtype of surprisal, torch's default where that is no floating point; 0 at padding.

    Raises:
        ConfigError: an option is out of range.
        DataError: the tensors do not fit each other.
    """
    advantages = leaf(
        PrefixTree.build(tokens, lengths),
        rewards,
        surprisal=surprisal,
        max_boundaries=max_boundaries,
        min_prefix=min_prefix,
        terms=terms,
        normalize=normalize,
        group_ended=group_ended,
        sqrt_count=sqrt_count,
        boundaries=boundaries,
    )
    return advantages.to(_floating(surprisal))


def grpo_advantages(rewards: Rewards, lengths: Int[Tensor, " K"], *, std_floor: float = 1 / 3) -> Float[Tensor, "K T"]:
    """Return GRPO's advantage of every token, (K, T) with T the longest completion, 0 at padding; see `grpo`.

    Args:
        rewards: (K,) terminal rewards; NaN = unscored.
        lengths: (K,) tokens per completion.
        std_floor: smallest standard deviation to divide by.

    Returns:
        (K, T) in the dtype of rewards, torch's default where that is no floating point.

    Raises:
        DataError: rewards and lengths do not fit each other.
    """
    if lengths.ndim != 1 or bool((lengths < 0).any()):
        raise DataError(f"Lengths must be one whole number of at least 0 per completion; got {lengths.tolist()}.")
    width = int(lengths.max()) if lengths.numel() else 0
    # GRPO does not look at tokens: any ids of the right lengths give the tree it needs.
    blank = torch.zeros(lengths.shape[0], width, dtype=torch.long, device=lengths.device)
    return grpo(PrefixTree.build(blank, lengths), rewards, std_floor=std_floor).to(_floating(rewards))


def _floating(given: Tensor) -> torch.dtype:
    """Return the dtype in which advantages are given out: the caller's own if it can hold fractions."""
    return given.dtype if given.is_floating_point() else torch.get_default_dtype()


def _deviations(tree: PrefixTree, rewards: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return r − mean (K,), 0 where unscored, their standard deviation with ddof 1, and n."""
    scored = scored_completions(tree, rewards)
    reward, n = known_rewards(rewards, scored), scored.sum()
    deviation = (reward - root_mean(reward, scored)).masked_fill(~scored, 0.0)
    return deviation, (deviation.square().sum() / (n - 1).clamp_min(1)).sqrt(), n


class _Stretches:
    """The unbranched stretches of the prefix tree, laid out on the (K, T) grid.

    A stretch opens where fewer scored completions go on than before. All its tokens lie on the paths of the same
    completions and so share n and V̂.

    Attributes:
        opens: (K, T) True at the first token of a stretch; the very first counts only if the whole group does not
            share it, for otherwise its completions are the root's.
        count, value: (K, T) n and V̂ of the prefix through the token.
        before: (K, T) V̂ of the prefix before the token.
        parent: (K, T) V̂ of the stretch before, the root's for a first stretch.
        root: V̂(v₀).
    """

    def __init__(self, tree: PrefixTree, rewards: Tensor):
        scored = scored_completions(tree, rewards)
        reward = known_rewards(rewards, scored)
        count, value = prefix_values(tree, reward, scored)
        self.root = root_mean(reward, scored)
        self.count, self.value, self.before = count[:, 1:], value[:, 1:], value[:, :-1]
        self.opens = (self.count != count[:, :-1]) & (tree.node >= 0)
        position = torch.arange(self.count.shape[1], device=count.device).expand_as(self.count)
        first = torch.where(self.opens, position, 0).cummax(1).values if position.numel() else position
        self.parent = self.before.gather(1, first)
