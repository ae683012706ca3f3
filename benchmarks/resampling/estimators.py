"""Estimates from noisy values and noisy gradients, with what the noise adds taken off."""

import numpy as np
import torch

from leaf.credit.values import known_rewards, prefix_values, scored_completions, shrunken_values


def between_variance(group, values, noise):
    """Estimate how far true values lie apart, Σ_i (V_i − mean)² / n, from estimates with independent errors.

    Members with the same `group` id share one estimate and so one error; with w_c the share of members of id c, the
    errors add Σ_c w_c (1 − w_c) · noise_c on average, which is taken off. The result may be negative.

    Args:
        group: (n,) ids.
        values, noise: (n,) estimates and the squares of their standard errors, equal for equal ids.
    """
    _, first, counts = np.unique(group, return_index=True, return_counts=True)
    share, value, error = counts / len(group), np.asarray(values)[first], np.asarray(noise)[first]
    apart = value - (share * value).sum()
    return float((share * apart**2).sum() - (share * (1 - share) * error).sum())


def leave_one_out(estimates, truth):
    """Hold each group's gradient estimate against the mean of `truth` over all other groups.

    Args:
        estimates, truth: (G, D), the same groups in the same order; `truth` from an unbiased rule.

    Returns:
        cosine (G,), 0 where either is 0; dot (G,) with that mean, unbiased for ⟨E g, g*⟩; square (G,) squared norms.
    """
    size, total = len(truth), truth.sum(0)
    dot = (estimates @ total - (estimates * truth).sum(1)) / (size - 1)
    others = total.square().sum() - 2 * truth @ total + truth.square().sum(1)
    square = estimates.square().sum(1)
    norm = (square * others.clamp_min(0)).sqrt() / (size - 1)
    return torch.where(norm > 0, dot / norm.clamp_min(1e-30), 0.0), dot, square


def mean_square(vectors):
    """Estimate |E g|² without the noise of the mean: the average of ⟨g_a, g_b⟩ over pairs of different groups."""
    size = len(vectors)
    return float((vectors.sum(0).square().sum() - vectors.square().sum()) / (size * (size - 1)))


def bootstrap(statistic, count, *, rounds=4000, seed=0):
    """Return a statistic of prompts and its 95 % percentile interval; `statistic` takes an array of prompt indices."""
    generator = np.random.default_rng(seed)
    drawn = [statistic(generator.integers(count, size=count)) for _ in range(rounds)]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(statistic(np.arange(count))), float(low), float(high)


def others_baseline(tree, rewards, mine, kappa=1.0):
    """Return (k, T) the shrunken value of the prefix before each token, from completions that are not `mine` alone.

    Args:
        tree: prefix tree of all groups' completions together.
        rewards: (n,) all of them.
        mine: slice of the completions whose tokens get the baseline.
    """
    known = scored_completions(tree, rewards)
    theirs = known.clone()
    theirs[mine] = False
    reward = known_rewards(rewards, theirs)
    count, value = prefix_values(tree, reward, theirs)
    value = value.nan_to_num(0.0)
    return shrunken_values(count[mine], value[mine], reward[mine], kappa, leave_one_out=False)[:, :-1]
