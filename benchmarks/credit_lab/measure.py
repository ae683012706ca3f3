"""Hold a credit rule's one-group gradient estimate against the true gradient."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from benchmarks.credit_lab.world import Groups, World
from leaf.credit import PrefixTree, token_weights
from leaf.credit.losses import Reduction

Rule = Callable[..., Tensor]


def advantages(groups: Groups, rules: Mapping[str, Rule]) -> dict[str, Tensor]:
    """Return for every rule (G, K, D) the advantages of all groups, by the library's own functions."""
    rows = {name: [] for name in rules}
    for tokens, lengths, surprisal, rewards in zip(
        groups.tokens, groups.lengths, groups.surprisal, groups.rewards, strict=True
    ):
        tree = PrefixTree.build(tokens, lengths)
        for name, rule in rules.items():
            rows[name].append(rule(tree, rewards, surprisal=surprisal))
    return {name: torch.stack(each) for name, each in rows.items()}


def weights(groups: Groups, reduction: Reduction = "completion_mean") -> Tensor:
    """Return (G, K, D) each token's weight in its group's loss, by the library's own function."""
    depth = groups.tokens.shape[-1]
    mask = torch.arange(depth) < groups.lengths[..., None]
    length = depth if reduction == "constant" else None
    return torch.stack([token_weights([m], reduction=reduction, constant_length=length)[0].double() for m in mask])


class Judge:
    """Judge advantages by the gradient estimates Σ weight · A · ∇log π they give, one for each group.

    Inner products are taken between tokens' scores, so no gradient is ever laid out but the sum over all groups.
    """

    def __init__(self, world: World, groups: Groups, reduction: Reduction = "completion_mean"):
        self.world, self.groups = world, groups
        size = groups.tokens.shape[0]
        cells = groups.prefix.reshape(size, -1)
        token = torch.nn.functional.one_hot(groups.tokens.reshape(size, -1), world.setting.vocabulary).double()
        self.score = token - world.flat_probs[cells]
        self.weight = weights(groups, reduction).reshape(size, -1)
        self.along = (self.score * world.to_logits(world.gradient)[cells]).sum(-1)
        self.norm = world.gradient.square().sum().sqrt()
        self.cells = cells
        true = world.child_value(groups) - world.own_value(groups)
        self.true = true.reshape(size, -1)
        self.real = (torch.arange(groups.tokens.shape[-1]) < groups.lengths[..., None]).reshape(size, -1)

    def squares(self, step: Tensor, chunk: int = 50) -> Tensor:
        """Return (G,) the squared norms of Σ step · score."""
        result = []
        for i in range(0, len(step), chunk):
            cells, score, part = self.cells[i : i + chunk], self.score[i : i + chunk], step[i : i + chunk]
            if self.world.flat_features is None:
                alike = (cells[:, :, None] == cells[:, None]).double()
            else:
                features = self.world.flat_features[cells]
                alike = features @ features.mT
            result.append(torch.einsum("gc,gcd,gd->g", part, alike * (score @ score.mT), part))
        return torch.cat(result).clamp_min(0)

    def total(self, step: Tensor) -> Tensor:
        """Return Σ step · score over all groups, in the parameters."""
        by_prefix = torch.zeros_like(self.world.flat_probs)
        by_prefix.index_add_(0, self.cells.flatten(), (step[..., None] * self.score).flatten(0, 1))
        return self.world.to_parameters(by_prefix)

    def __call__(self, advantage: Tensor) -> dict[str, float]:
        """Return what is measured of one rule in one world.

        cosine: mean over groups of the cosine with the true gradient, 0 where the estimate is 0.
        efficiency: ⟨E g, g*⟩² / (|g*|² E|g|²): what share of the best possible step's gain one group's step gets at the
            best step size (a quadratic model of the objective, alike in all directions). efficiency_8 and _64: of the
            mean over that many groups, which averages the noise away but not the bias.
        mean_cosine: cosine of the expected estimate with the true gradient: 1 = no bias but a factor.
        bias: |c E g − g*| / |g*|, and noise: c² tr Var g / |g*|², with c such that c ⟨E g, g*⟩ = |g*|²: bias and
            variance once the step size is right. The mean's own norm is estimated without its noise (pairs of groups).
        credit: correlation over all sampled tokens of the advantage with the true one, Q − V.
        zero: share of groups whose estimate is 0.
        """
        advantage = advantage.reshape(len(self.cells), -1)
        step = self.weight * advantage
        along, squares = (step * self.along).sum(1), self.squares(step)
        size = len(step)
        cosine = torch.where(squares > 1e-24, along / (squares.sqrt().clamp_min(1e-12) * self.norm), 0.0)
        mean_square = (self.total(step).square().sum() - squares.sum()) / (size * (size - 1))
        toward = along.mean()
        factor = self.norm**2 / toward
        mean_cosine = toward / (self.norm * mean_square.clamp_min(1e-24).sqrt())
        credit = torch.corrcoef(torch.stack([advantage[self.real], self.true[self.real]]))[0, 1]
        record = {
            "cosine": cosine.mean(),
            "efficiency": toward**2 / (self.norm**2 * squares.mean()),
            "efficiency_8": toward**2 / (self.norm**2 * (mean_square + (squares.mean() - mean_square) / 8)),
            "efficiency_64": toward**2 / (self.norm**2 * (mean_square + (squares.mean() - mean_square) / 64)),
            "mean_cosine": mean_cosine,
            "bias": (factor**2 * mean_square / self.norm**2 - 1).clamp_min(0).sqrt(),
            "noise": factor**2 * (squares.mean() - mean_square) / self.norm**2,
            "credit": credit,
            "zero": (squares <= 1e-24).double().mean(),
        }
        return {name: round(float(x), 6) for name, x in record.items()}


def sharing(groups: Groups) -> dict[str, float]:
    """Return the share of tokens whose prefix through them another completion has, and of duplicates."""
    through = groups.prefix * (int(groups.tokens.max()) + 1) + groups.tokens
    alike = (through[:, :, None] == through[:, None]).sum(2)
    real = torch.arange(groups.tokens.shape[-1]) < groups.lengths[..., None]
    return {
        "shared_tokens": round(float((alike[real] > 1).double().mean()), 4),
        "duplicates": round(float((alike[..., -1] > 1).double().mean()), 4),
    }
