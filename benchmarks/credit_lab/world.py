"""Worlds small enough to enumerate: a policy over V tokens and D positions, a terminal reward, the true gradient.

Prefixes of length t are numbered 0 to Vᵗ − 1 as numbers in base V, so the children of prefix p are p V, …, p V + V − 1.

How a world is drawn (`World.draw`), everything from one seed:
- policy: "tabular" has independent logits N(0, scale²) for every prefix. "shared" has logits W φ(prefix) with φ the
  state of a fixed random recurrent net of 16 tanh units over the tokens so far and a one-hot of the position; only W is
  a parameter. W is drawn so that logits have about the same spread.
- `aligned` adds that many times the standardised value of each choice under uniform play to the logits: a policy that
  is already somewhat trained. A shared policy gets it by least squares on φ.
- reward: for each position an effect of the token, of the token with the one before it, and of the whole prefix, all
  N(0, 1). All positions count alike, or one `decisive` position alone. Under the policy the reward has mean 0.5 and
  standard deviation 0.25; with `sparse` = q it is 1 for the best completions, of a probability mass of about q, else 0.
- `noise` is added to every observed reward, N(0, (noise · 0.25)²), independently for each completion.
- with `end`, token 0 ends a completion (hazard about 1/6 at each position).
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

UNITS = 16
STD = 0.25


@dataclass(frozen=True)
class Setting:
    """Name what is varied; the defaults are the base condition."""

    policy: str = "tabular"
    vocabulary: int = 4
    depth: int = 8
    completions: int = 8
    scale: float = 1.0
    aligned: float = 0.0
    decisive: int | None = None
    sparse: float | None = None
    noise: float = 0.0
    end: bool = False


@dataclass
class Groups:
    """Hold G groups: tokens, surprisal, prefix (number of the prefix before each token, over all lengths), rewards."""

    tokens: Tensor
    lengths: Tensor
    surprisal: Tensor
    prefix: Tensor
    rewards: Tensor


@dataclass
class World:
    """Hold policy, reward and truth. Per length t: probs[t] (Vᵗ, V), mass[t] (Vᵗ,), value[t] (Vᵗ,), t up to D for the
    last two; features[t] (Vᵗ, F) for a shared policy. `gradient` is dE[r]/d(parameters), (Σ Vᵗ, V) or (F, V)."""

    setting: Setting
    probs: list[Tensor]
    features: list[Tensor] | None
    value: list[Tensor]
    mass: list[Tensor] = field(default_factory=list)
    gradient: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        v, depth = self.setting.vocabulary, self.setting.depth
        self.mass = [torch.ones(1, dtype=torch.float64)]
        for t in range(depth):
            self.mass.append((self.mass[t][:, None] * self.probs[t]).flatten())
        for t in reversed(range(depth)):
            self.value[t] = (self.probs[t] * self.value[t + 1].view(-1, v)).sum(1)
        self.flat_probs = torch.cat(self.probs)
        self.flat_features = torch.cat(self.features) if self.features else None
        self.offset = torch.tensor([sum(v**u for u in range(t)) for t in range(depth + 1)])
        self.gradient = self.to_parameters(
            torch.cat(
                [
                    self.mass[t][:, None] * self.probs[t] * (self.value[t + 1].view(-1, v) - self.value[t][:, None])
                    for t in range(depth)
                ]
            )
        )

    def to_parameters(self, by_prefix: Tensor) -> Tensor:
        """Return the gradient in the parameters of one in the logits of every prefix, (Σ Vᵗ, V)."""
        return by_prefix if self.flat_features is None else self.flat_features.T @ by_prefix

    def to_logits(self, parameters: Tensor) -> Tensor:
        """Return how every prefix's logits move with a step in the parameters."""
        return parameters if self.flat_features is None else self.flat_features @ parameters

    def sample(self, groups: int, generator: torch.Generator) -> Groups:
        """Sample groups of K completions with their observed rewards."""
        s = self.setting
        at = torch.zeros(groups, s.completions, dtype=torch.long)
        tokens, surprisal, prefix = [], [], []
        for t in range(s.depth):
            p = self.probs[t][at]
            draw = torch.rand(*at.shape, 1, generator=generator, dtype=torch.float64)
            token = (draw > p.cumsum(-1)).sum(-1).clamp_max(s.vocabulary - 1)
            prefix.append(at + self.offset[t])
            tokens.append(token)
            surprisal.append(-p.gather(-1, token[..., None]).squeeze(-1).log())
            at = at * s.vocabulary + token
        rewards = self.value[s.depth][at]
        rewards = rewards + s.noise * STD * torch.randn(rewards.shape, generator=generator, dtype=torch.float64)
        token = torch.stack(tokens, -1)
        ended = (token == 0).cumsum(-1) if s.end else torch.zeros_like(token)
        lengths = ((ended == 0) | ((ended == 1) & (token == 0))).sum(-1)
        return Groups(token, lengths, torch.stack(surprisal, -1), torch.stack(prefix, -1), rewards)

    def child_value(self, groups: Groups) -> Tensor:
        """Return (G, K, D) the true value of the prefix through each token."""
        v = self.setting.vocabulary
        children = torch.cat([self.value[t + 1].view(-1, v) for t in range(self.setting.depth)])
        return children[groups.prefix, groups.tokens]

    def own_value(self, groups: Groups) -> Tensor:
        """Return (G, K, D) the true value of the prefix before each token."""
        return torch.cat(self.value[: self.setting.depth])[groups.prefix]

    @classmethod
    def draw(cls, setting: Setting, seed: int) -> "World":
        """Draw a world; see the top of this file."""
        g = torch.Generator().manual_seed(seed)
        v, depth = setting.vocabulary, setting.depth

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        raw = _rewards(setting, normal)
        features = _features(v, depth, normal) if setting.policy == "shared" else None
        if features is None:
            logits = [setting.scale * normal(v**t, v) for t in range(depth)]
        else:
            norm = torch.cat(features).square().sum(1).mean().sqrt()
            weight = setting.scale / norm * normal(features[0].shape[1], v)
            logits = [f @ weight for f in features]
        if setting.aligned:
            logits = [a + setting.aligned * b for a, b in zip(logits, _advice(raw, v, depth, features), strict=True)]
        if setting.end:
            # At equal other logits token 0 has probability 1 / 6.
            for each in logits:
                each[:, 0] += torch.log(torch.tensor((v - 1) / 5.0))
        probs = [each.softmax(-1) for each in logits]
        if setting.end:
            for t in range(1, depth):
                probs[t][_ended(v, t)] = torch.nn.functional.one_hot(torch.tensor(0), v).double()
        mass = torch.ones(1, dtype=torch.float64)
        for each in probs:
            mass = (mass[:, None] * each).flatten()
        return cls(setting, probs, features, [torch.zeros(0)] * depth + [_scaled(raw, mass, setting.sparse)])


def _rewards(setting, normal):
    """Return (V^D,) the raw reward of every completion."""
    v, depth = setting.vocabulary, setting.depth
    total = torch.zeros(1, dtype=torch.float64)
    for t in range(depth):
        effect = (
            (normal(1, 1, v) + normal(1, v, v)).expand(max(v ** (t - 1), 1), v if t else 1, v) if t else normal(1, v)
        )
        effect = effect.reshape(-1, v) + normal(v**t, v)
        if setting.end and t:
            effect = effect.masked_fill(_ended(v, t)[:, None], 0.0)
        counts = setting.decisive is None or setting.decisive == t
        total = (total[:, None] + counts * effect).flatten()
    return total


def _scaled(raw, mass, sparse):
    if sparse is not None:
        best = raw.argsort(descending=True)
        kept = mass[best].cumsum(0) <= sparse
        kept[0] = True
        return torch.zeros_like(raw).scatter(0, best[kept], 1.0)
    mean = (mass * raw).sum()
    return 0.5 + STD * (raw - mean) / (mass * (raw - mean).square()).sum().sqrt()


def _features(v, depth, normal):
    """Return φ of every prefix by length."""
    recurrent, embed = 1.2 * normal(UNITS, UNITS) / UNITS**0.5, normal(v, UNITS)
    state, result = 0.5 * normal(1, UNITS), []
    for t in range(depth):
        position = torch.zeros(state.shape[0], depth, dtype=torch.float64)
        position[:, t] = 1.0
        result.append(torch.cat([state, position], 1))
        state = torch.tanh((state @ recurrent)[:, None] + embed).reshape(-1, UNITS)
    return result


def _advice(raw, v, depth, features):
    """Return for every prefix the standardised values of its tokens under uniform play."""
    value, advice = raw, []
    for _ in range(depth):
        children = value.view(-1, v)
        value = children.mean(1)
        advice.insert(0, (children - value[:, None]) / (children - value[:, None]).std().clamp_min(1e-12))
    if features is None:
        return advice
    fit = torch.linalg.lstsq(torch.cat(features), torch.cat(advice), driver="gelsd").solution
    fitted = [f @ fit for f in features]
    return [each / torch.cat(fitted).std() for each in fitted]


def _ended(v, t):
    """Return (Vᵗ,) True where a prefix of length t holds token 0."""
    number, ended = torch.arange(v**t), torch.zeros(v**t, dtype=torch.bool)
    for _ in range(t):
        ended |= number % v == 0
        number = number // v
    return ended
