"""A small translation game, many seeds at once: `python -m benchmarks.credit_lab.game [--rules leaf grpo ...]`.

`--rules` takes names of RULES; `--rules ablations` stands for ABLATIONS, the relatives and LEAF with one thing changed.

`language` and `policies` say what is translated and by what. First supervised, until translations are mostly but not
reliably right; then `--steps` steps of reinforcement from there, each with `--prompts` prompts of `--completions`
completions at temperature 1, Adam, the library's policy loss (on policy, no divergence term), the published reduction,
reward sentence BLEU. Every rule starts from the same weights and sees the same prompts and the same random numbers for
sampling. Scored: BLEU of greedy translations of 200 sentences that are the same for all seeds, every 50 steps. A file
that `--out` names and that holds the same game gets the new rules beside those it has. `search` and `table` are the
game with headroom, with losses and rollouts too.
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

from benchmarks.credit_lab.language import MOST, Language, text
from benchmarks.credit_lab.policies import Policies, supervised
from benchmarks.credit_lab.rules import even_leaf, faded, out, own, random_leaf, rescaled_leaf
from benchmarks.records import RESULTS
from leaf.credit import PrefixTree, credit_mass, credit_rule, policy_loss, token_weights
from leaf.evaluation.bootstrap import mean_interval, seeds_for
from leaf.evaluation.registry import score
from leaf.rewards.functions import REWARDS

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
