"""Credit rules: from a prefix tree and one reward per completion to an advantage per token.

A rule is `rule(tree, rewards, *, surprisal=None, **options) -> (K, T)` in float64, 0 at padding. A NaN reward ("could
not be scored") and an empty completion are left out of every mean and count and get 0. A group whose scored rewards are
all equal, or with fewer than two scored completions, gets exactly 0 everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from leaf.credit.boundaries import select_boundaries
from leaf.credit.tree import PrefixTree
from leaf.errors import ConfigError

CreditRule = Callable[..., Tensor]


@dataclass(frozen=True)
class Span:
    """Hold one stretch of tokens [start, end) of a completion and its credit.

    `node` is the node of the prefix tree at its end (−1 for a tail), `size` the scored completions through it, `value`
    its V̂, `raw` the credit before and `advantage` after the z-score.
    """

    start: int
    end: int
    node: int
    size: int
    value: float
    raw: float
    advantage: float


def leaf(
    tree: PrefixTree,
    rewards: Float[Tensor, " K"],
    *,
    surprisal: Float[Tensor, "K T"] | None = None,
    boundaries: Int[Tensor, " B"] | None = None,
    **options: Any,
) -> Float[Tensor, "K T"]:
    """Credit the spans between retained nodes (LEAF, arXiv 2606.07610); see `leaf_spans` for formula and options."""
    _, spans = leaf_spans(tree, rewards, surprisal=surprisal, boundaries=boundaries, **options)
    grid = np.zeros(tuple(tree.tokens.shape))
    for i, completion in enumerate(spans):
        for span in completion:
            grid[i, span.start : span.end] = span.advantage
    return torch.from_numpy(grid).to(tree.node.device)


def leaf_spans(
    tree: PrefixTree,
    rewards: Float[Tensor, " K"],
    *,
    surprisal: Float[Tensor, "K T"] | None = None,
    boundaries: Int[Tensor, " B"] | None = None,
    max_boundaries: int = 2,
    min_prefix: int = 1,
    terms: Literal["both", "global", "local"] = "both",
    normalize: bool = True,
    group_ended: bool = True,
    sqrt_count: bool = True,
) -> tuple[Int[Tensor, " B"], list[list[Span]]]:
    """Cut each completion at its retained nodes and credit each span.

    A node v at boundary t is retained when two or more completions share it; its path parent is the retained node
    before it, the root v₀ holding all. With GA(v) = V̂(v) − V̂(v₀) and LA(v) = V̂(v) − V̂(parent), a span that ends at v
    gets (GA + LA)/√n(v), the tail (r − V̂(v₀)) + (r − V̂(last node)); then a z-score over all spans of the group
    (ddof 1, floor 1e-6), each span once (arXiv 2606.07610). A span never has zero tokens: where a duplicate ended
    before the boundary its node ends with it, and a second such node is dropped (the authors' code counts it).

    Args:
        tree: prefix tree of the group.
        rewards: (K,) terminal rewards, NaN = unscored.
        surprisal: (K, T) nats; chooses the boundaries unless they are given.
        boundaries: (B,) ascending positions, in place of surprisal's choice.
        max_boundaries, min_prefix: see `select_boundaries`.
        terms: "both", "global" (GA only) or "local" (LA only), in the tail too.
        normalize: apply the z-score.
        group_ended: a completion that ended at or before a boundary takes part with its whole sequence; False leaves
            it out (ablation).
        sqrt_count: divide by √n(v); False is an ablation.

    Returns:
        The boundaries used, and for every completion its spans in order; none for unscored or empty completions.
    """
    if terms not in ("both", "global", "local"):
        raise ConfigError(f"terms is {terms!r}; allowed are both, global and local.")
    if boundaries is None:
        if surprisal is None and max_boundaries > 0:
            raise ConfigError("LEAF needs the surprisal of the sampled tokens, or boundaries of your own; got neither.")
        cells = torch.zeros(tree.tokens.shape) if surprisal is None else surprisal
        boundaries = select_boundaries(cells, tree.lengths, max_boundaries=max_boundaries, min_prefix=min_prefix)
    scored = _scored(tree, rewards)
    size = tree.tokens.shape[0]
    reward = torch.where(scored, rewards.to(scored.device).double(), 0.0)
    root = _mean(reward, scored)
    weights = {"both": (1.0, 1.0), "global": (1.0, 0.0), "local": (0.0, 1.0)}[terms]

    lengths, earned = tree.lengths.tolist(), reward.tolist()
    start, last = [0] * size, [root] * size
    raw: list[list[tuple[int, int, int, int, float, float]]] = [[] for _ in range(size)]
    for t in boundaries.tolist():
        group = tree.prefix_group(t)
        part = scored if group_ended else scored & (tree.lengths > t)
        count, value = _group_means(group, reward, part, tree.num_nodes)
        shared = (part & (count[group.clamp_min(0)] >= 2)).nonzero().squeeze(1)
        nodes = group[shared]
        for i, node, n, v in zip(
            shared.tolist(), nodes.tolist(), count[nodes].tolist(), value[nodes].tolist(), strict=True
        ):
            end = min(t, lengths[i])
            if end <= start[i]:
                continue
            credit = weights[0] * (v - root) + weights[1] * (v - last[i])
            raw[i].append((start[i], end, node, int(n), v, credit / n**0.5 if sqrt_count else credit))
            start[i], last[i] = end, v
    for i in scored.nonzero().squeeze(1).tolist():
        if start[i] < lengths[i]:
            r = earned[i]
            credit = weights[0] * (r - root) + weights[1] * (r - last[i])
            raw[i].append((start[i], lengths[i], -1, 1, r, credit))

    final = [span[5] for spans in raw for span in spans]
    flat = torch.tensor(final, dtype=torch.float64)
    if _all_equal(rewards.to(scored.device), scored):
        flat = torch.zeros_like(flat)
    elif normalize and flat.numel() > 1:
        flat = (flat - flat.mean()) / flat.std().clamp_min(1e-6)
    values = iter(flat.tolist())
    return boundaries, [[Span(*span, advantage=next(values)) for span in spans] for spans in raw]


def grpo(tree: PrefixTree, rewards: Float[Tensor, " K"], *, surprisal: Any = None, std_floor: float = 1 / 3) -> Tensor:
    """Give every token A = (r − mean) / (max(std, 1/3) + 1e-6), std with ddof 1 (Elmakies et al., arXiv 2509.16990)."""
    scored = _scored(tree, rewards)
    deviation, spread = _deviation(rewards, scored)
    return _broadcast(tree, deviation / (max(spread, std_floor) + 1e-6))


def dr_grpo(tree: PrefixTree, rewards: Float[Tensor, " K"], *, surprisal: Any = None) -> Tensor:
    """Give every token A = r − mean r (Dr. GRPO, arXiv 2503.20783)."""
    return _broadcast(tree, _deviation(rewards, _scored(tree, rewards))[0])


def rloo(tree: PrefixTree, rewards: Float[Tensor, " K"], *, surprisal: Any = None) -> Tensor:
    """Give every token A = r − mean of the others' rewards (RLOO, arXiv 2402.14740)."""
    scored = _scored(tree, rewards)
    n = int(scored.sum())
    return _broadcast(tree, _deviation(rewards, scored)[0] * (n / (n - 1) if n > 1 else 0.0))


def treerl(tree: PrefixTree, rewards: Float[Tensor, " K"], *, surprisal: Any = None) -> Tensor:
    """Give the tokens that lead to each branching node or end (GA + LA)/√n (after TreeRL, arXiv 2506.11902).

    Steps are the stretches between branching nodes of the whole prefix tree, without boundary selection; the parent in
    LA is the branching node before.
    """
    scored = _scored(tree, rewards)
    if _all_equal(rewards.to(scored.device), scored):
        return _zeros(tree)
    count, value, root = _node_values(tree, rewards, scored)
    segment = _segment_end(tree)
    above = _segment_parent(tree)
    parent = torch.where(above >= 0, value[above.clamp_min(0)], torch.full_like(value, root))
    credit = ((value - root) + (value - parent)) / count.clamp_min(1).sqrt()
    return _spread(tree, credit[segment] if tree.num_nodes else credit, scored)


def tempo(tree: PrefixTree, rewards: Float[Tensor, " K"], *, surprisal: Any = None) -> Tensor:
    """Give token t [(r − mean) + V̂(prefix through t) − V̂(prefix before t)] / std (TEMPO, arXiv 2509.18314)."""
    scored = _scored(tree, rewards)
    deviation, spread = _deviation(rewards, scored)
    if spread == 0.0:
        return _zeros(tree)
    branch = _step_values(tree, rewards, scored)
    return (_broadcast(tree, deviation) + _spread(tree, branch, scored)) / (spread + 1e-6)


def spo(tree: PrefixTree, rewards: Float[Tensor, " K"], *, surprisal: Any = None) -> Tensor:
    """Give token t V̂(prefix through t) − V̂(prefix before t), so credit only where paths part (SPO, arXiv 2505.23564)."""
    scored = _scored(tree, rewards)
    if _all_equal(rewards.to(scored.device), scored):
        return _zeros(tree)
    return _spread(tree, _step_values(tree, rewards, scored), scored)


def treepo(tree: PrefixTree, rewards: Float[Tensor, " K"], *, surprisal: Any = None) -> Tensor:
    """Give every token the size-weighted mean over its completion's ancestor groups of r − mean of that group.

    Ancestor groups are the root and, each once, the smaller groups of two or more scored completions that share the
    prefix at a branching node of the path (TreePO, arXiv 2508.17445).
    """
    scored = _scored(tree, rewards)
    if _all_equal(rewards.to(scored.device), scored):
        return _zeros(tree)
    count, value, root = _node_values(tree, rewards, scored)
    n = float(scored.sum())
    branching = (_children(tree) >= 2) | _ends_here(tree)
    weight = torch.where(branching & (count >= 2) & (count < n), count, torch.zeros_like(count))
    real = (tree.node >= 0) & scored[:, None]
    at = tree.node.clamp_min(0)
    cells = torch.where(real, weight[at], 0.0) if tree.num_nodes else torch.zeros(tree.node.shape, dtype=torch.float64)
    means = torch.where(real, value[at].nan_to_num(), 0.0) if tree.num_nodes else cells
    reward = torch.where(scored, rewards.to(scored.device).double(), 0.0)
    total = n * (reward - root) + (cells * (reward[:, None] - means)).sum(1)
    return _broadcast(tree, torch.where(scored, total / (n + cells.sum(1)), 0.0))


CREDIT_RULES: dict[str, CreditRule] = {
    rule.__name__: rule for rule in (leaf, grpo, dr_grpo, rloo, treerl, tempo, spo, treepo)
}


def credit_rule(rule: str | CreditRule) -> CreditRule:
    """Return the rule of a name, or the callable itself; an unknown name is a ConfigError."""
    if callable(rule):
        return rule
    if rule not in CREDIT_RULES:
        raise ConfigError(f"The credit rule {rule!r} is unknown; allowed are {', '.join(CREDIT_RULES)}, or a callable.")
    return CREDIT_RULES[rule]


def leaf_advantages(
    tokens: Int[Tensor, "K T"],
    lengths: Int[Tensor, " K"],
    surprisal: Float[Tensor, "K T"],
    rewards: Float[Tensor, " K"],
    *,
    max_boundaries: int = 2,
    min_prefix: int = 1,
    terms: Literal["both", "global", "local"] = "both",
    normalize: bool = True,
    group_ended: bool = True,
) -> Float[Tensor, "K T"]:
    """Return LEAF's advantage of every token of a group (arXiv 2606.07610); see `leaf_spans` for the formula.

    Args:
        tokens: (K, T) right-padded token ids.
        lengths: (K,) tokens per completion, its end-of-sequence token included.
        surprisal: (K, T) −log p in nats under the sampling distribution.
        rewards: (K,) terminal rewards; NaN = unscored.
        max_boundaries, min_prefix, terms, normalize, group_ended: see `leaf_spans`.

    Returns:
        (K, T) in the dtype of surprisal, 0 at padding.
    """
    tree = PrefixTree.build(tokens, lengths)
    result = leaf(
        tree,
        rewards,
        surprisal=surprisal,
        max_boundaries=max_boundaries,
        min_prefix=min_prefix,
        terms=terms,
        normalize=normalize,
        group_ended=group_ended,
    )
    return result.to(surprisal.dtype)


def grpo_advantages(
    rewards: Float[Tensor, " K"], lengths: Int[Tensor, " K"], *, std_floor: float = 1 / 3
) -> Float[Tensor, "K T"]:
    """Return GRPO's advantage of every token, (K, T) with T the longest completion; see `grpo`."""
    width = int(lengths.max()) if lengths.numel() else 0
    # GRPO does not look at tokens: any ids of the right lengths give the tree it needs.
    tree = PrefixTree.build(torch.zeros(lengths.shape[0], width, dtype=torch.long), lengths)
    return grpo(tree, rewards, std_floor=std_floor).to(rewards.dtype)


# -- shared pieces -----------------------------------------------------------------------------------------------------
def _scored(tree: PrefixTree, rewards: Tensor) -> Bool[Tensor, " K"]:
    """Return (K,) True where a completion has a reward and at least one token."""
    if rewards.shape != tree.lengths.shape:
        raise ConfigError(f"A group of {tree.lengths.shape[0]} completions came with {tuple(rewards.shape)} rewards.")
    return ~rewards.isnan().to(tree.lengths.device) & (tree.lengths > 0)


def _mean(reward: Tensor, scored: Tensor) -> float:
    return float(reward[scored].mean()) if bool(scored.any()) else 0.0


def _all_equal(rewards: Tensor, scored: Tensor) -> bool:
    """Return whether there is nothing to learn: fewer than two scored completions, or one reward for all."""
    some = rewards[scored]
    return some.numel() < 2 or bool((some == some[0]).all())


def _deviation(rewards: Tensor, scored: Tensor) -> tuple[Float[Tensor, " K"], float]:
    """Return r − mean (0 where unscored) and the standard deviation (ddof 1); zeros where nothing can be learned."""
    reward = torch.where(scored, rewards.to(scored.device).double(), 0.0)
    if _all_equal(rewards.to(scored.device), scored):
        return torch.zeros_like(reward), 0.0
    return torch.where(scored, reward - _mean(reward, scored), 0.0), float(reward[scored].std())


def _group_means(group: Tensor, reward: Tensor, part: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return members and mean reward per node id of `group`, over the completions in `part`."""
    index = group[part]
    count = torch.zeros(size, dtype=torch.float64, device=reward.device).index_add_(
        0, index, torch.ones_like(reward[part])
    )
    total = torch.zeros(size, dtype=torch.float64, device=reward.device).index_add_(0, index, reward[part])
    return count, total / count.clamp_min(1)


def _node_values(tree: PrefixTree, rewards: Tensor, scored: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return per node the scored count and V̂ (NaN where none), and V̂ of the root."""
    known = torch.where(scored, rewards.to(scored.device).double(), torch.nan)
    root = _mean(torch.where(scored, known, 0.0), scored)
    return tree.node_count(scored), tree.node_mean(known), root


def _step_values(tree: PrefixTree, rewards: Tensor, scored: Tensor) -> Float[Tensor, " N"]:
    """Return V̂(node) − V̂(parent) per node; exactly 0 where the same completions pass through both."""
    count, value, root = _node_values(tree, rewards, scored)
    has_parent = tree.parent >= 0
    at = tree.parent.clamp_min(0)
    parent = torch.where(has_parent, value[at], torch.full_like(value, root)) if tree.num_nodes else value
    parent_count = torch.where(has_parent, count[at], scored.sum().double()) if tree.num_nodes else count
    return torch.where(count == parent_count, 0.0, value - parent)


def _children(tree: PrefixTree) -> Int[Tensor, " N"]:
    return torch.bincount(tree.parent[tree.parent >= 0], minlength=tree.num_nodes)


def _ends_here(tree: PrefixTree) -> Bool[Tensor, " N"]:
    """Return (N,) True where at least one completion ends."""
    ends = torch.zeros(tree.num_nodes, dtype=torch.bool, device=tree.node.device)
    last = tree.prefix_group(tree.tokens.shape[1])
    ends[last[last >= 0]] = True
    return ends


def _segment_end(tree: PrefixTree) -> Int[Tensor, " N"]:
    """Return for every node the first branching or ending node at or below it: the end of its unbranched stretch."""
    stops = (_children(tree) >= 2) | _ends_here(tree)
    index = torch.arange(tree.num_nodes, device=stops.device)
    # An unbranched node's only child is the next in preorder, so the end is the next stop in order.
    marked = torch.where(stops, index, tree.num_nodes)
    return marked.flip(0).cummin(0).values.flip(0) if tree.num_nodes else index


def _segment_parent(tree: PrefixTree) -> Int[Tensor, " N"]:
    """Return for every node the branching or ending node above its stretch, −1 where that is the prompt."""
    segment = _segment_end(tree)
    parent = tree.parent
    # The stretch starts where the parent belongs to another stretch; all its nodes take the start's parent.
    starts = (parent < 0) | (segment[parent.clamp_min(0)] != segment) if tree.num_nodes else parent < 0
    above = torch.zeros(tree.num_nodes, dtype=torch.long, device=parent.device)
    above[segment[starts]] = parent[starts]
    return above[segment] if tree.num_nodes else above


def _spread(tree: PrefixTree, per_node: Float[Tensor, " N"], scored: Tensor) -> Float[Tensor, "K T"]:
    """Return per-node credit on the (K, T) grid, 0 at padding and for unscored completions."""
    if tree.num_nodes == 0:
        return _zeros(tree)
    real = (tree.node >= 0) & scored[:, None]
    return torch.where(real, per_node[tree.node.clamp_min(0)], 0.0)


def _broadcast(tree: PrefixTree, per_completion: Float[Tensor, " K"]) -> Float[Tensor, "K T"]:
    """Return one value per completion on all its tokens, 0 at padding."""
    return torch.where(tree.node >= 0, per_completion[:, None], 0.0)


def _zeros(tree: PrefixTree) -> Float[Tensor, "K T"]:
    return torch.zeros(tree.node.shape, dtype=torch.float64, device=tree.node.device)
