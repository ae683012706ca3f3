"""The language of the translation game, and the reward of its sentences.

24 source words, sentences of 4 to 7 drawn uniformly. Each word has a translation and a second one, used after any of 8
"marking" words; a word of another 6 changes places with the translation before it. So the target has as many words as
the source and depends on neighbours.
"""

from functools import cache

import torch
from sacrebleu.metrics.bleu import BLEU
from torch import Tensor

WORDS, END, START = 24, 24, 25
LONGEST, MOST = 7, 10  # words of a source, tokens of a translation
_BASE = 32  # of the numbers that stand for n-grams and counts; above every word and every count


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


def text(tokens: Tensor) -> list[str]:
    return [" ".join(f"w{i}" for i in row[: row.index(END) if END in row else None]) for row in tokens.tolist()]


def word_count(tokens: Tensor) -> Tensor:
    """Count (…,) the words before END in (…, T)."""
    return (tokens == END).cummax(-1).values.logical_not().sum(-1)


def rewards(ours: Tensor, theirs: Tensor) -> Tensor:
    """Compute sentence BLEU as the library's reward does, (…,) for translations (…, T) and references (…, R).

    The n-grams are counted for all sentences at once, and sacreBLEU makes a score of every distinct set of counts.
    """
    own, other = word_count(ours), word_count(theirs)
    key = own * _BASE + other
    for n in range(1, 5):
        (a, a_real), (b, b_real) = _grams(ours, own, n), _grams(theirs, other, n)
        earlier = ((a[..., :, None] == a[..., None, :]) & a_real[..., None, :]).tril(-1).sum(-1)
        there = ((a[..., :, None] == b[..., None, :]) & b_real[..., None, :]).sum(-1)
        key = key * _BASE + (a_real & (earlier < there)).sum(-1)
    scores = [_score(one) for one in key.flatten().tolist()]
    return torch.tensor(scores, dtype=torch.float64).view(key.shape)


def _grams(tokens: Tensor, count: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Number the n-grams (…, T − n + 1), and mark those that are words throughout."""
    number = torch.zeros_like(tokens[..., n - 1 :])
    for i in range(n):
        number = number * _BASE + tokens[..., i : tokens.shape[-1] - n + 1 + i]
    return number, torch.arange(number.shape[-1]) < (count[..., None] - n + 1)


@cache
def _score(key: int) -> float:
    own, other, *correct = (key // _BASE**i % _BASE for i in reversed(range(6)))
    total = [max(own - n, 0) for n in range(4)]
    return BLEU.compute_bleu(correct, total, own, other, smooth_method="exp", effective_order=True).score / 100
