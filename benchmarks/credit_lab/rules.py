"""The rules the laboratory holds against each other: the library's, and a few that serve only to explain them."""

import torch

from leaf.credit import CREDIT_RULES, credit, credit_rule, even_boundaries, random_boundaries
from leaf.credit.spans import cut_spans
from leaf.credit.values import (
    group_means,
    known_rewards,
    nothing_to_learn,
    prefix_values,
    scored_completions,
    shrunken_values,
)


def own(kappa):
    return credit_rule("shrunken", kappa=kappa, leave_one_out=False)


def out(kappa):
    return credit_rule("shrunken", kappa=kappa, leave_one_out=True)


def fade(tree, rate=0.5):
    """Return (K, T) `rate` to the power of how many prefixes of the completion, up to before the token, are its own."""
    alone = torch.zeros(tree.node.shape)
    alone[:, 1:] = tree.count[tree.node[:, :-1]] == 1
    return rate ** alone.cumsum(1)


def faded(tree, rewards, *, surprisal=None):
    """RLOO times `fade`: no better baseline, only less weight where a completion goes alone."""
    return credit_rule("rloo")(tree, rewards) * fade(tree)


def out_faded(tree, rewards, *, surprisal=None):
    return credit(CREDIT_RULES["shrunken"], tree, rewards, kappa=1.0) * fade(tree)


def by_length(kappas, leave_one_out):
    """Return `shrunken` with a κ for every prefix length."""

    def rule(tree, rewards, *, surprisal=None):
        scored = scored_completions(tree, rewards)
        reward = known_rewards(rewards, scored)
        if nothing_to_learn(rewards, scored):
            return torch.zeros(tree.node.shape, dtype=torch.float64)
        count, value = prefix_values(tree, reward, scored)
        baseline = shrunken_values(count, value, reward, kappas, leave_one_out=leave_one_out)
        return torch.where(tree.node >= 0, reward[:, None] - baseline[:, :-1], 0.0)

    return rule


def rescaled_leaf(centre, scale, floor=1e-6):
    """Return LEAF (B = 2) with the z-score taken apart: its mean, and its division with a floor."""

    def rule(tree, rewards, *, surprisal=None):
        table = cut_spans(tree, rewards, surprisal=surprisal, normalize=False)
        kept = table.raw[table.kept]
        shifted = table.raw - kept.mean() if centre else table.raw
        spread = kept.std().clamp_min(floor) if scale else 1.0
        advantage = torch.where(table.kept, shifted / spread, 0.0)
        return type(table)(**{**vars(table), "advantage": advantage}).paint(tree.tokens.shape[1])

    return rule


def even_leaf(tree, rewards, *, surprisal=None):
    """LEAF with boundaries that cut the shortest completion evenly."""
    return credit(CREDIT_RULES["leaf"], tree, rewards, surprisal, boundaries=even_boundaries(tree.lengths))


def random_leaf(seed=0):
    """Return LEAF with random boundaries."""
    generator = torch.Generator().manual_seed(seed)

    def rule(tree, rewards, *, surprisal=None):
        cuts = random_boundaries(tree.lengths, generator=generator)
        return credit(CREDIT_RULES["leaf"], tree, rewards, surprisal, boundaries=cuts)

    return rule


def all_rules():
    return {
        **{f"leaf B={b}": credit_rule("leaf", max_boundaries=b) for b in (0, 1, 2, 4)},
        **{name: credit_rule(name) for name in ("grpo", "dr_grpo", "rloo", "treerl", "tempo", "treepo")},
        "spo": credit_rule("spo", credited="branching"),
        "r - V(prefix), own in": own(0.0),
        **{f"shrunken own in, kappa={k}": own(float(k)) for k in (1, 2, 4)},
        "r - V(prefix), own out": out(0.0),
        **{f"shrunken own out, kappa={k}": out(float(k)) for k in (1, 2, 4)},
        "rloo faded": faded,
        "shrunken own out faded": out_faded,
    }


def ablations():
    """LEAF (B = 2) taken apart; `global` alone is Dr. GRPO's credit, painted span by span."""
    result = {"dr_grpo": credit_rule("dr_grpo")}
    for terms in ("global", "local", "both"):
        for root in (False, True):
            for z in (False, True):
                name = f"{terms}{' /sqrt(n)' if root else ''}{' z' if z else ''}"
                result[name] = credit_rule("leaf", terms=terms, sqrt_count=root, normalize=z)
    result["both /sqrt(n) minus mean"] = rescaled_leaf(True, False)
    result["both /sqrt(n) over std"] = rescaled_leaf(False, True)
    return result


def empirical_kappas(groups, build):
    """Estimate κ from what a run sees: rewards and trees. Return one κ, and κ by prefix length.

    W_t is the variance of rewards within groups that share t tokens (pooled, unbiased). The value of a prefix varies by
    about W_{t−1} − W_t around its parent's, and its sampled mean by W_t / n around itself; so κ_t is W_t / (W_{t−1} −
    W_t), and the single κ is the ratio of their means, each length weighted by its degrees of freedom.
    """
    depth = groups.tokens.shape[-1]
    squares, freedom = torch.zeros(depth + 1, dtype=torch.float64), torch.zeros(depth + 1, dtype=torch.float64)
    for tokens, lengths, rewards in zip(groups.tokens, groups.lengths, groups.rewards, strict=True):
        tree = build(tokens, lengths)
        for t in range(depth + 1):
            node = tree.prefix_group(t)
            part = lengths >= t
            n, value = group_means(node, rewards, part)
            squares[t] += ((rewards - value).square() * part).sum()
            freedom[t] += (part * (1 - 1 / n.clamp_min(1))).sum()
    within = squares / freedom.clamp_min(1e-9)
    step = within[:-1] - within[1:]
    usable = (freedom[1:] >= 10).double() * freedom[1:]
    if usable.sum() == 0:
        return 1e3, torch.full((depth + 1,), 1e3, dtype=torch.float64)
    single = (usable * within[1:]).sum() / (usable * step).sum().clamp_min(1e-9)
    by = torch.full((depth + 1,), 1e3, dtype=torch.float64)
    by[1:] = torch.where((usable > 0) & (step > 0), within[1:] / step.clamp_min(1e-9), 1e3)
    return min(float(single), 1e3), by.clamp_max(1e3)
