"""Small translation policies, many seeds at once: their parameters are stacked, and every product is a batched one.

Word embeddings, a GRU encoder and a GRU decoder of 48 units with dot-product attention over the encoder's states and
embeddings. Letters: S seeds, N rows of a seed, T tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.credit_lab.language import END, LONGEST, MOST, START, WORDS, Language

UNITS = 48


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply each seed's layer to its rows: (S, N, A), (S, A, B), (S, 1, B) → (S, N, B)."""
    return torch.baddbmm(bias, x, weight)


def serve(encoded: Sequence[Tensor], repeat: int, rows: Tensor | None) -> list[Tensor]:
    """Hand what was encoded (S, P, …) to the rows that need it (S, N, …)."""
    if rows is None:
        return [each.repeat_interleave(repeat, 1) for each in encoded]
    index = [rows[(...,) + (None,) * (each.dim() - 2)].expand(-1, -1, *each.shape[2:]) for each in encoded]
    return [each.gather(1, i) for each, i in zip(encoded, index, strict=True)]


class Policies:
    """Hold S policies in stacked parameters."""

    def __init__(self, seeds: int, first: int):
        g = [torch.Generator().manual_seed(s) for s in range(first, first + seeds)]

        def make(*shape: int, scale: float) -> Tensor:
            return torch.stack([scale * torch.randn(*shape, generator=each) for each in g])

        u, s = UNITS, UNITS**-0.5
        self.p = {"source": make(WORDS + 1, u, scale=1.0), "target": make(WORDS + 2, u, scale=1.0)}
        for name, inputs in {"encoder": u, "decoder": u}.items():
            self.p |= {f"{name}.x": make(inputs, 3 * u, scale=s), f"{name}.h": make(u, 3 * u, scale=s)}
            self.p |= {f"{name}.b": make(1, 3 * u, scale=0.0), f"{name}.c": make(1, 3 * u, scale=0.0)}
        self.p |= {"attend": make(u, u, scale=s), "attend.b": make(1, u, scale=0.0)}
        self.p |= {"out": make(3 * u, WORDS + 1, scale=s), "out.b": make(1, WORDS + 1, scale=0.0)}
        for each in self.p.values():
            each.requires_grad_()

    @property
    def seeds(self) -> int:
        return len(self.p["attend"])

    def copy(self) -> "Policies":
        """Copy the policies as leaves of their own."""
        other = object.__new__(Policies)
        other.p = {name: each.detach().clone().requires_grad_() for name, each in self.p.items()}
        return other

    def cell(self, name: str, x: Tensor, h: Tensor) -> Tensor:
        a = linear(x, self.p[f"{name}.x"], self.p[f"{name}.b"])
        b = linear(h, self.p[f"{name}.h"], self.p[f"{name}.c"])
        (ar, az, an), (br, bz, bn) = a.chunk(3, -1), b.chunk(3, -1)
        z = torch.sigmoid(az + bz)
        return (1 - z) * torch.tanh(an + torch.sigmoid(ar + br) * bn) + z * h

    def look_up(self, table: str, ids: Tensor) -> Tensor:
        index = ids.flatten(1)[..., None].expand(-1, -1, UNITS)
        return self.p[table].gather(1, index).view(*ids.shape, UNITS)

    def encode(self, source: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(S, N, 7) → last state, states, embeddings, mask."""
        words, real = self.look_up("source", source), source != END
        h, states = torch.zeros(*source.shape[:2], UNITS), []
        for t in range(source.shape[2]):
            h = torch.where(real[..., t, None], self.cell("encoder", words[:, :, t], h), h)
            states.append(h)
        return h, torch.stack(states, 2), words, real

    def step(self, token: Tensor, h: Tensor, memory: list[Tensor]) -> tuple[Tensor, Tensor]:
        states, words, real = memory
        h = self.cell("decoder", self.look_up("target", token), h)
        query = linear(h, self.p["attend"], self.p["attend.b"])
        match = (states @ query[..., None]).squeeze(-1) / UNITS**0.5
        share = match.masked_fill(~real, -torch.inf).softmax(-1)[..., None]
        seen = torch.cat([h, (share * states).sum(2), (share * words).sum(2)], -1)
        return linear(seen, self.p["out"], self.p["out.b"]).log_softmax(-1), h

    def log_probs(self, source: Tensor, tokens: Tensor, repeat: int = 1, *, rows: Tensor | None = None) -> Tensor:
        """Return (S, N, T) the log-probability of every token of the targets.

        Each source serves `repeat` rows in turn, or the `rows` (S, N) say whose translation each target is.
        """
        h, *memory = serve(self.encode(source), repeat, rows)
        last, result = torch.full(tokens.shape[:2], START), []
        for t in range(tokens.shape[2]):
            logp, h = self.step(last, h, memory)
            last = tokens[..., t]
            result.append(logp.gather(-1, last[..., None]).squeeze(-1))
        return torch.stack(result, -1)

    @torch.no_grad()
    def sample(
        self, source: Tensor, repeat: int, generator: torch.Generator | None, *, stop: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return tokens (S, N · repeat, T), lengths, log-probabilities and entropies; greedy without a generator.

        T is 10, or with `stop` the length of the longest one.
        """
        h, *memory = (each.repeat_interleave(repeat, 1) for each in self.encode(source))
        last = torch.full(h.shape[:2], START)
        done, tokens, logps, entropies = torch.zeros(h.shape[:2], dtype=torch.bool), [], [], []
        length = torch.zeros(h.shape[:2], dtype=torch.long)
        for _ in range(MOST):
            logp, h = self.step(last, h, memory)
            if generator is None:
                last = logp.argmax(-1)
            else:
                draw = torch.rand(*h.shape[:2], 1, generator=generator)
                last = (draw > logp.exp().cumsum(-1)).sum(-1).clamp_max(END)
            length += ~done
            logps.append(logp.gather(-1, last[..., None]).squeeze(-1))
            entropies.append(-(logp.exp() * logp).sum(-1))
            tokens.append(last.masked_fill(done, END))
            done = done | (last == END)
            if stop and bool(done.all()):
                break
        return torch.stack(tokens, -1), length, torch.stack(logps, -1), torch.stack(entropies, -1)


def supervised(seeds: int, first: int, steps: int, rate: float, language: Language) -> Policies:
    policies = Policies(seeds, first)
    optimizer, g = torch.optim.Adam(policies.p.values(), lr=rate), torch.Generator().manual_seed(1 + first)
    for _ in range(steps):
        source, target, length = language.sentences((seeds, 32), g)
        mask = torch.arange(LONGEST + 1) <= length[..., None]
        loss = -(policies.log_probs(source, target) * mask).sum() / mask[0].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policies


def damaged(policies: Policies, noise: float, first: int) -> Policies:
    """Copy policies and add Gaussian noise to every matrix, `noise` times its own standard deviation."""
    result = policies.copy()
    for s in range(result.seeds):
        generator = torch.Generator().manual_seed(10**5 + first + s)
        for each in result.p.values():
            own = each.data[s]
            own += noise * own.std() * torch.randn(own.shape, generator=generator)
    return result
