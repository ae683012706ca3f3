"""Time how leaf reads log-probabilities at the vocabulary head, in one process, in turns, by CPU seconds.

    python -m benchmarks.step.head [--rows 100 880 1600] [--vocabulary 49152] [--width 576] [--before FILE]

Arms, each with what the backward pass needs of it and without:

products  only the products of head and rows in tiles: logits, and with a gradient the mean output embedding.
tiles     leaf as it is.
whole     leaf's code with tiles of 1,024 rows × the whole vocabulary.
before    the head of a file that `--before` names, such as `git show 48ea3c2:src/leaf/model/head.py` writes: the last
          with logits of whole rows; it takes `rows`.

Weights and hidden states are random. Prints medians and ranges, and how far values, entropies and the mean embedding
are from float64 on the same rounded logits.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leaf.model.head import read_log_probs, tile_on

Read = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100, 880, 1600])
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds after the first")
    parser.add_argument("--before", type=Path, help="a file with read_log_probs(..., rows=)")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    head = nn.Linear(args.width, args.vocabulary, bias=False, dtype=getattr(torch, args.dtype)).requires_grad_(False)
    nn.init.normal_(head.weight, std=0.05)
    arms: dict[str, Read] = {
        "products": lambda hidden, row, token: _products(head, hidden),
        "tiles": lambda *at: read_log_probs(head, *at, scale=1.0),
        "whole": lambda *at: read_log_probs(head, *at, scale=1.0, tile=(1024, args.vocabulary)),
    }
    if args.before is not None:
        spec = importlib.util.spec_from_file_location("before", args.before)
        assert spec is not None
        assert spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        arms["before"] = lambda *at: module.read_log_probs(head, *at, scale=1.0, rows=1024)
    for count in args.rows:
        for name, line in _timed(arms, _states(head, count), args.rounds).items():
            print(f"{count} rows, {name}: {line}", flush=True)
    for name in arms.keys() - {"products"}:
        print(f"{name}: {_apart(arms[name], head, *_states(head, 100))}", flush=True)


def _states(head: nn.Linear, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw hidden states, and a token to read at each: what an arm takes."""
    hidden = (2 * torch.randn(count, head.in_features)).to(head.weight.dtype)
    return hidden, torch.arange(count), torch.randint(0, head.out_features, (count,))


def _products(head: nn.Linear, hidden: Tensor) -> tuple[Tensor, Tensor]:
    rows, words = tile_on(hidden.device)
    made = hidden
    for block in hidden.detach().split(rows):
        for part in head.weight.split(words):
            made = nn.functional.linear(block, part)
            if hidden.requires_grad:
                made = made @ part
    return made, made


def _timed(arms: dict[str, Read], at: tuple[Tensor, Tensor, Tensor], rounds: int) -> dict[str, str]:
    """Time every arm with a gradient and without, the first round left out."""
    taken: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in arms}
    for number in range(rounds + 1):
        for name in arms if number % 2 else list(arms)[::-1]:
            for kept, gradient in zip(taken[name], (True, False), strict=True):
                hidden = at[0].clone().requires_grad_(gradient)
                began = time.process_time()
                arms[name](hidden, *at[1:])
                kept.append(time.process_time() - began)
    return {name: f"with gradient {_summary(both[0])}, without {_summary(both[1])}" for name, both in taken.items()}


def _summary(seconds: list[float]) -> str:
    ms = [1000 * one for one in seconds[1:]]
    return f"{statistics.median(ms):.0f} ms ({min(ms):.0f} to {max(ms):.0f})"


def _apart(read: Read, head: nn.Linear, hidden: Tensor, row: Tensor, token: Tensor) -> str:
    """Compare with float64 and return the largest difference of values and entropies, and ‖Δ‖ / ‖·‖ of the gradient."""
    hidden = hidden.clone().requires_grad_()
    values, entropies = read(hidden, row, token)
    values.sum().backward()
    log_probs = nn.functional.linear(hidden, head.weight).detach().double().log_softmax(-1)
    exact = head.weight.double()[token] - log_probs.exp() @ head.weight.double()
    assert hidden.grad is not None
    values, entropies = values.detach(), entropies.detach()
    spread = torch.special.entr(log_probs.exp()).sum(-1)
    return (
        f"log-probabilities {float((values - log_probs[row, token]).abs().max()):.1e}, "
        f"entropies {float((entropies - spread).abs().max()):.1e}, "
        f"gradient {float((hidden.grad - exact).norm() / exact.norm()):.1e} from float64"
    )


if __name__ == "__main__":
    main()
