"""A small translation game, many seeds at once: `python -m benchmarks.credit_lab.game [--rules leaf grpo ...]`.

`--rules` takes names of RULES; `--rules ablations` stands for ABLATIONS, the relatives and LEAF with one thing changed.

The language: 24 source words, sentences of 4 to 7 drawn uniformly. Each word has a translation and a second one, used
after any of 8 "marking" words; a word of another 6 changes places with the translation before it. So the target has as
many words as the source and depends on neighbours. One language for all seeds.

The policy: word embeddings, a GRU encoder and a GRU decoder of 48 units with dot-product attention over the encoder's
states and embeddings. Every seed has its own weights; they are stacked, and all seeds train side by side as batched
matrix products. First supervised, until translations are mostly but not reliably right; then `--steps` steps of
reinforcement from there, each with `--prompts` prompts of `--completions` completions at temperature 1, Adam, the
library's policy loss (on policy, no divergence term), the published reduction, reward sentence BLEU. Every rule starts
from the same weights and sees the same prompts and the same random numbers for sampling. Scored: BLEU of greedy
translations of 200 sentences that are the same for all seeds, every 50 steps. A file that `--out` names and that holds
the same game gets the new rules beside those it has.
"""

import argparse
import json
import platform
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.credit_lab.rules import even_leaf, faded, out, own, random_leaf, rescaled_leaf
from benchmarks.records import RESULTS
from leaf.credit import PrefixTree, credit_mass, credit_rule, policy_loss, token_weights
from leaf.evaluation.bootstrap import mean_interval, seeds_for
from leaf.evaluation.registry import score
from leaf.rewards.functions import REWARDS

WORDS, END, START = 24, 24, 25
UNITS, LONGEST, MOST = 48, 7, 10
EVERY = 50
FILE = RESULTS / "credit_lab_game.json"
RULES = {
    "grpo": credit_rule("grpo"),
    "leaf": credit_rule("leaf"),
    "leaf B=0": credit_rule("leaf", max_boundaries=0),
    "leaf no root": credit_rule("leaf", sqrt_count=False),
    "dr_grpo": credit_rule("dr_grpo"),
    "tempo": credit_rule("tempo"),
    "shrunken own out": out(1.0),
    "shrunken own in": own(1.0),
    "rloo faded": faded,
}
STANDARD = list(RULES)
ABLATIONS = {
    **{f"leaf B={b}": credit_rule("leaf", max_boundaries=b) for b in (0, 1, 4, 8)},
    "leaf global only": credit_rule("leaf", terms="global"),
    "leaf local only": credit_rule("leaf", terms="local"),
    "leaf no z-score": credit_rule("leaf", normalize=False),
    "leaf z-score floor 1/3": rescaled_leaf(centre=True, scale=True, floor=1 / 3),  # as GRPO's
    "leaf ended not grouped": credit_rule("leaf", group_ended=False),
    "leaf random boundaries": random_leaf(),
    "leaf even boundaries": even_leaf,
    "leaf entropy boundaries": credit_rule("leaf"),  # is given entropy in the place of surprisal, see BY_ENTROPY
    **{name: credit_rule(name) for name in ("rloo", "treerl", "treepo")},
    "spo": credit_rule("spo", credited="branching"),
}
BY_ENTROPY = {"leaf entropy boundaries"}
RULES |= {name: rule for name, rule in ABLATIONS.items() if name not in RULES}


class Language:
    def __init__(self, seed: int = 0):
        g = torch.Generator().manual_seed(seed)
        self.first, self.second = (torch.randperm(WORDS, generator=g) for _ in range(2))
        kind = torch.randperm(WORDS, generator=g)
        self.marks, self.swaps = kind[:8], kind[8:14]

    def sentences(self, shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Return source (…, 7), targets with end token (…, 8) and lengths; the padding of both is END."""
        source = torch.randint(WORDS, (*shape, LONGEST), generator=generator)
        length = torch.randint(4, LONGEST + 1, shape, generator=generator)
        beyond = torch.arange(LONGEST) >= length[..., None]
        before = torch.nn.functional.pad(source[..., :-1], (1, 0), value=-1)
        target = torch.where(torch.isin(before, self.marks), self.second[source], self.first[source])
        swap = torch.isin(source, self.swaps) & ~beyond
        for t in range(1, LONGEST):
            now, last = target[..., t].clone(), target[..., t - 1].clone()
            target[..., t] = torch.where(swap[..., t], last, now)
            target[..., t - 1] = torch.where(swap[..., t], now, last)
        target = torch.nn.functional.pad(target.masked_fill(beyond, END), (0, 1), value=END)
        return source.masked_fill(beyond, END), target, length


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply each seed's layer to its rows: (S, N, A), (S, A, B), (S, 1, B) → (S, N, B)."""
    return torch.baddbmm(bias, x, weight)


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

    def log_probs(self, source: Tensor, tokens: Tensor, repeat: int = 1) -> Tensor:
        """Return (S, N, T) the log-probability of every token of the targets; each source serves `repeat` rows."""
        h, *memory = (each.repeat_interleave(repeat, 1) for each in self.encode(source))
        last, result = torch.full(tokens.shape[:2], START), []
        for t in range(tokens.shape[2]):
            logp, h = self.step(last, h, memory)
            last = tokens[..., t]
            result.append(logp.gather(-1, last[..., None]).squeeze(-1))
        return torch.stack(result, -1)

    @torch.no_grad()
    def sample(
        self, source: Tensor, repeat: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return tokens (S, N · repeat, 10), lengths, log-probabilities and entropies; greedy without a generator."""
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
        return torch.stack(tokens, -1), length, torch.stack(logps, -1), torch.stack(entropies, -1)


def text(tokens: Tensor) -> list[str]:
    return [" ".join(f"w{i}" for i in row[: row.index(END) if END in row else None]) for row in tokens.tolist()]


@lru_cache(maxsize=200_000)
def bleu(ours: str, theirs: str) -> float:
    (value,) = REWARDS["bleu"]([ours], [theirs])
    assert value is not None
    return value


def greedy_bleu(policies: Policies, test: tuple[Tensor, Tensor, Tensor]) -> list[float]:
    seeds = policies.p["attend"].shape[0]
    source = test[0].expand(seeds, *test[0].shape)
    tokens, *_ = policies.sample(source, 1, None)
    references = text(test[1])
    return [round(score(text(each), references, metrics=("bleu",))["bleu"].value, 3) for each in tokens]


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


def reinforce(policies: Policies, name: str, args: argparse.Namespace, language: Language, test) -> dict:
    seeds = policies.p["attend"].shape[0]
    optimizer = torch.optim.Adam(policies.p.values(), lr=args.rate)
    g, curve, rewards_seen, flat, mass = torch.Generator().manual_seed(100_000 + args.first), {}, [], [], []
    for step in range(1, args.steps + 1):
        source, target, _ = language.sentences((seeds, args.prompts), g)
        tokens, length, logp, entropy = policies.sample(source, args.completions, g)
        told = entropy if name in BY_ENTROPY else -logp
        references = [r for r in text(target.flatten(0, 1)) for _ in range(args.completions)]
        reward = torch.tensor([bleu(o, r) for o, r in zip(text(tokens.flatten(0, 1)), references, strict=True)])
        group = (seeds * args.prompts, args.completions)
        reward = reward.double().view(group)
        rows = zip(tokens.view(*group, -1), length.view(group), told.view(*group, -1), reward, strict=True)
        advantage = torch.stack([RULES[name](PrefixTree.build(t, n), r, surprisal=s) for t, n, s, r in rows])
        mask = torch.arange(MOST) < length[..., None]
        flat.append(float((reward == reward[:, :1]).all(1).double().mean()))
        rewards_seen.append(float(reward.mean()))
        if step <= 50:
            each = [credit_mass(a, n) for a, n in zip(advantage, length.view(group), strict=True)]
            mass.append(torch.stack([m for m in each if float(m.sum()) > 0]).mean(0))
        new = policies.log_probs(source, tokens, args.completions)
        weights = token_weights([mask.flatten(0, 1)])[0] * seeds
        loss, _ = policy_loss(
            new.flatten(0, 1),
            logp.flatten(0, 1),
            advantage.float().flatten(0, 1),
            mask.flatten(0, 1),
            weights=weights,
            kl_coef=0.0,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % EVERY == 0:
            curve[step] = greedy_bleu(policies, test)
    return {
        "bleu": curve,
        "mean_reward_last_50": round(sum(rewards_seen[-50:]) / 50, 4),
        "equal_reward_groups": round(sum(flat) / len(flat), 4),
        "credit_mass_first_50": [round(float(x), 3) for x in torch.stack(mass).mean(0)],
    }


def starting_weights(args: argparse.Namespace, language: Language) -> Policies:
    """Load the supervised weights that `--weights` names, or train them (and keep them there)."""
    if args.weights and args.weights.exists():
        start = Policies(args.seeds, args.first)
        start.p = torch.load(args.weights)
        return start
    start = supervised(args.seeds, args.first, args.supervised, 3e-3, language)
    if args.weights:
        torch.save({k: v.detach() for k, v in start.p.items()}, args.weights)
    return start


def begin(args: argparse.Namespace, scores: list[float]) -> dict:
    """Begin the record of a game, or read the one that `--out` has of the same game."""
    settings = {k: v for k, v in vars(args).items() if k not in ("out", "weights")}
    named = ("seeds", "first", "steps", "rate", "supervised", "prompts", "completions")
    record = {
        "command": " ".join(["python -m benchmarks.credit_lab.game", *(f"--{n} {settings[n]}" for n in named)]),
        "machine": f"2-core {platform.machine()} CPU, 1 thread",
        "torch": torch.__version__,
        "settings": settings,
        "start": scores,
        "rules": {},
    }
    if not args.out.exists():
        return record
    before = json.loads(args.out.read_text())
    # Records that are older than an option of the game were made with its default.
    known = {"completions": 8, "prompts": 4, "validation": False, **before["settings"]}
    if known | {"rules": 0} != settings | {"rules": 0} or before["start"] != scores:
        raise SystemExit(f"{args.out} holds another game and is left as it is; give another --out.")
    return before


def judged(final: list[float], record: dict, steps: int) -> dict:
    """Compare the last scores of a rule, one per seed, with the start and with GRPO's."""
    found: dict[str, Any] = {"mean": mean_interval(final)}
    found["gain"] = mean_interval([a - b for a, b in zip(final, record["start"], strict=True)])
    if "grpo" in record["rules"]:
        curve = record["rules"]["grpo"]["bleu"]  # its steps are text where it was read from the file
        against = curve.get(steps) or curve[str(steps)]
        minus = [a - b for a, b in zip(final, against, strict=True)]
        found["minus_grpo"] = mean_interval(minus)
        found["seeds_for_half_a_point"] = seeds_for(minus)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", nargs="+", default=STANDARD, choices=[*RULES, "ablations"])
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--first", type=int, default=0, help="number of the first seed")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=3e-4)
    parser.add_argument("--prompts", type=int, default=4, help="of a step")
    parser.add_argument("--completions", type=int, default=8, help="K")
    parser.add_argument("--supervised", type=int, default=300)
    parser.add_argument("--validation", action="store_true", help="score on other sentences, to choose a rate by")
    parser.add_argument("--weights", type=Path, help="keep the supervised weights in this file, or start from it")
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    if "ablations" in args.rules:
        args.rules = list(ABLATIONS)
    torch.set_num_threads(1)
    language = Language()
    test = language.sentences((200,), torch.Generator().manual_seed(4 if args.validation else 3))
    start = starting_weights(args, language)
    record = begin(args, greedy_bleu(start, test))
    print("start", mean_interval(record["start"]), flush=True)
    weights = {k: v.detach().clone() for k, v in start.p.items()}
    for name in args.rules:
        began = time.monotonic()
        start.p = {k: v.clone().requires_grad_() for k, v in weights.items()}
        found = reinforce(start, name, args, language, test)
        found |= judged(found["bleu"][args.steps], record, args.steps)
        found["seconds"] = round(time.monotonic() - began, 1)
        record["rules"][name] = found
        print(name, {k: v for k, v in found.items() if k != "bleu"}, flush=True)
        args.out.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
