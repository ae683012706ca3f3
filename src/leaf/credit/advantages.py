"""From a group and its rewards to advantages: what every credit rule guarantees, and LEAF and GRPO in one call each."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from leaf.credit import rules
from leaf.credit.spans import Terms
from leaf.credit.tree import GroupRewards, PrefixTree
from leaf.credit.values import nothing_to_learn, scored_completions
from leaf.errors import ConfigError, DataError, shown


def credit(
    rule: rules.CreditRule, tree: PrefixTree, rewards: GroupRewards, surprisal: Tensor | None = None, **options: Any
) -> Float[Tensor, "K T"]:
    """Apply a credit rule to a group and set to exactly 0 what there is nothing to learn from.

    That is: padding, completions without a score and empty ones, and a whole group if its scores are all equal or fewer
    than two. So no rule has to think of them.

    Args:
        rule: one of `CREDIT_RULES` or a function of your own.
        tree: prefix tree of the group.
        rewards: (K,), NaN = unscored.
        surprisal: (K, T) −log p in nats under the sampling distribution; padding is ignored.
        options: of the rule.

    Raises:
        ConfigError: the rule gave something other than finite advantages of shape (K, T) or (K, 1).
        DataError: rewards or surprisal do not fit the group.
    """
    scored_completions(tree, rewards)  # which refuses rewards that do not fit, before the rule sees them
    return guarantee(rule, tree, rewards, rule(tree, rewards, surprisal=surprisal, **options))


def guarantee(
    rule: Callable[..., object], tree: PrefixTree, rewards: GroupRewards, given: object, *, from_equal: bool = False
) -> Float[Tensor, "K T"]:
    """Check what a rule gave for a group, and set to exactly 0 what there is nothing to learn from; see `credit`.

    With `from_equal` a group whose rewards are all equal keeps its advantages: the rule compares it with other groups.
    """
    scored = scored_completions(tree, rewards)
    size, width = tree.node.shape
    if not isinstance(given, Tensor) or given.shape not in ((size, width), (size, 1)):
        came = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else shown(given)
        raise ConfigError(
            f"The credit rule {rule_name(rule)} gave {came}; it must return a tensor of finite advantages of shape "
            f"{(size, width)}, one per token, or {(size, 1)}, one per completion."
        )
    learned = (tree.node >= 0) & scored[:, None] & (from_equal or not nothing_to_learn(rewards, scored))
    advantages = torch.where(learned, given, 0.0)  # no product: NaN times 0 is NaN
    if not advantages.float().isfinite().all():
        raise ConfigError(
            f"The credit rule {rule_name(rule)} gave advantages that are not finite in float32 for the rewards "
            f"{shown(rewards.tolist())}; it must return a tensor of finite advantages."
        )
    return advantages


def rule_name(rule: Callable[..., object]) -> str:
    """Name a rule as its function is named; an object that is called has no name and is shown whole."""
    return getattr(rule, "__name__", repr(rule))


def leaf_advantages(
    tokens: Int[Tensor, "K T"],
    lengths: Int[Tensor, " K"],
    surprisal: Float[Tensor, "K T"],
    rewards: GroupRewards,
    *,
    max_boundaries: int = 2,
    min_prefix: int = 1,
    terms: Terms = "both",
    normalize: bool = True,
    group_ended: bool = True,
    sqrt_count: bool = True,
    phantom_spans: bool = False,
    boundaries: Int[Tensor, " B"] | Sequence[int] | None = None,
) -> Float[Tensor, "K T"]:
    """Compute LEAF's advantage of every token of a group (arXiv 2606.07610); `cut_spans` has the formula.

    Args:
        tokens: (K, T) right-padded token ids.
        lengths: (K,) tokens per completion, its end-of-sequence token included.
        surprisal: (K, T) −log p in nats under the sampling distribution; padding is ignored.
        rewards: (K,) terminal rewards; NaN = unscored.
        max_boundaries, min_prefix, terms, normalize, group_ended: see `cut_spans`.
        sqrt_count, boundaries: ablations, see `cut_spans`.
        phantom_spans: as in the published code, see `cut_spans`.

    Returns:
        (K, T) in the dtype of surprisal, torch's default where that is no floating point; 0 at padding.

    Raises:
        ConfigError: an option is out of range.
        DataError: the tensors do not fit each other.
    """
    advantages = credit(
        rules.leaf,
        PrefixTree.build(tokens, lengths),
        rewards,
        surprisal,
        max_boundaries=max_boundaries,
        min_prefix=min_prefix,
        terms=terms,
        normalize=normalize,
        group_ended=group_ended,
        sqrt_count=sqrt_count,
        phantom_spans=phantom_spans,
        boundaries=boundaries,
    )
    return advantages.to(_floating_dtype(surprisal))


def grpo_advantages(
    rewards: GroupRewards, lengths: Int[Tensor, " K"], *, std_floor: float = 1 / 3
) -> Float[Tensor, "K T"]:
    """Compute GRPO's advantage of every token, (K, T) with T the longest completion, 0 at padding; see `rules.grpo`.

    Args:
        rewards: (K,) terminal rewards; NaN = unscored.
        lengths: (K,) tokens per completion.
        std_floor: smallest standard deviation to divide by.

    Returns:
        (K, T) in the dtype of rewards, torch's default where that is no floating point.

    Raises:
        ConfigError: std_floor is out of range.
        DataError: rewards and lengths do not fit each other.
    """
    if lengths.ndim != 1 or bool((lengths < 0).any()):
        raise DataError(f"Lengths must be one whole number of at least 0 per completion; got {lengths.tolist()}.")
    width = int(lengths.max()) if lengths.numel() else 0
    # GRPO does not look at tokens: any ids of the right lengths give the tree it needs.
    blank = torch.zeros(lengths.shape[0], width, dtype=torch.long, device=lengths.device)
    advantages = credit(rules.grpo, PrefixTree.build(blank, lengths), rewards, std_floor=std_floor)
    return advantages.to(_floating_dtype(rewards))


def _floating_dtype(given: Tensor) -> torch.dtype:
    """Choose the dtype in which advantages are given out: the caller's own if it can hold fractions."""
    return given.dtype if given.is_floating_point() else torch.get_default_dtype()
