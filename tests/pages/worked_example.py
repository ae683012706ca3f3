"""The group that docs/method.md works by hand; `python -m tests.pages.worked_example` prints its lines."""

import torch

from leaf import grpo_advantages
from leaf.credit import PrefixTree, leaf_spans
from tests.pages.shown import blocks

WORDS = "press dial one two to leave exit ⏎".split()  # by token id, as the page's code numbers them


def worked_example() -> list[str]:
    """Lines of the page: the group, its spans, their statistics and GRPO's advantages, from the page's code."""
    names: dict = {}
    exec(blocks("method.md", "python")[0].partition("\nboundaries = ")[0], names)
    tokens, lengths, surprisal, rewards = (names[key] for key in ("tokens", "lengths", "surprisal", "rewards"))
    rewards = rewards.double()
    spans = leaf_spans(PrefixTree.build(tokens, lengths), rewards, surprisal=surprisal, max_boundaries=2)[1]
    words = [[WORDS[token] for token in row[:length]] for row, length in zip(tokens.tolist(), lengths, strict=True)]

    lines = []
    for k, row in enumerate(words):
        said = "  ".join(f"{word:<5} {nats:.1f}" for word, nats in zip(row, surprisal[k].tolist(), strict=False))
        lines.append(f"    y{k + 1}   {said:<50} r = {rewards[k]:.1f}")

    root = float(rewards.mean())
    table: dict[tuple, list[str]] = {}  # what a row of the table says -> the completions that have this span
    for k, row in enumerate(spans):
        above = root
        for span in row:
            both = 2 * span.value - root - above
            weighed = f"{both:.1f} / √{span.size} = {span.raw:.4f}" if span.node >= 0 else f"{span.raw:.1f}"
            terms = [f"{span.value:.1f} − {base:.1f} = {span.value - base:.1f}" for base in (root, above)]
            said = " ".join(words[k][span.start : span.end])
            table.setdefault((said, *terms, weighed, f"{span.advantage:.3f}"), []).append(f"y{k + 1}")
            above = span.value
    lines += ["| span | completions | GA | LA | credit | advantage |", "|---|---|---|---|---|---|"]
    lines += [f"| {key[0]} | {', '.join(members)} | {' | '.join(key[1:])} |" for key, members in table.items()]

    credit = torch.tensor([span.raw for row in spans for span in row], dtype=torch.float64)
    lines.append(f"mean {credit.mean():.4f} and the standard deviation {credit.std():.4f}")
    lines.append("{:.3f}, {:.3f}, {:.3f} and {:.3f}".format(*grpo_advantages(rewards, lengths)[:, 0].tolist()))
    return [line.replace("-0.", "−0.").replace("-1.", "−1.") for line in lines]


if __name__ == "__main__":
    print("\n".join(worked_example()))
