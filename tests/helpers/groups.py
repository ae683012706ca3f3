"""Random groups that truly share prefixes: completions branch off earlier ones, repeat them or end inside them."""

from functools import partial

import numpy as np
import torch

from leaf.credit import CREDIT_RULES, PrefixTree

NAN = float("nan")
# The rules that need nothing but a tree and rewards, beside leaf: spo's mask would read surprisal.
PLAIN_RULES = {**CREDIT_RULES, "spo": partial(CREDIT_RULES["spo"], credited="branching")}


def random_group(seed):
    """Return completions (token lists), rewards and surprisals of a small group, with ties, NaNs and empty ones."""
    rng = np.random.default_rng(seed)
    width, vocabulary = int(rng.integers(0, 13)), int(rng.integers(1, 4))
    tokens, lengths = branching_tokens(rng, int(rng.integers(1, 9)), width, vocabulary=vocabulary)
    lengths[rng.random(len(lengths)) < 0.05] = 0
    completions = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
    tied, few = rng.random(2) < 0.5
    surprisal = [rng.exponential(1.0, len(c)).round(0 if tied else 16).tolist() for c in completions]
    rewards = rng.choice([0.0, 0.1, 0.25, 1.0], len(lengths)) if few else rng.random(len(lengths))
    rewards[rng.random(len(lengths)) < 0.1] = NAN
    return completions, rewards.tolist(), surprisal


def branching_tokens(rng, size, width, *, vocabulary, shortest=0, duplicates=0.2):
    """Return tokens (K, T) and lengths (K,): of every ten completions about seven branch off an earlier one."""
    tokens = rng.integers(0, vocabulary, (size, width))
    lengths = rng.integers(shortest, width + 1, size)
    for i in range(1, size):
        other, way = int(rng.integers(i)), rng.random()
        if way < duplicates:
            tokens[i], lengths[i] = tokens[other], lengths[other]
        elif way < duplicates + 0.7:
            shared = int(rng.integers(lengths[other] + 1))
            tokens[i, :shared] = tokens[other, :shared]
    return tokens, lengths


def as_tensors(completions, rewards, surprisal, extra=0):
    """Return tokens (K, T + extra), lengths (K,), surprisal and rewards; padding holds a real token id and NaN."""
    width = max(map(len, completions), default=0) + extra
    tokens = [[*c, *([1] * (width - len(c)))] for c in completions]
    nats = [[*s, *([NAN] * (width - len(s)))] for s in surprisal]
    size = len(completions)
    return (
        torch.tensor(tokens, dtype=torch.long).reshape(size, width),
        torch.tensor([len(c) for c in completions], dtype=torch.long),
        torch.tensor(nats, dtype=torch.float64).reshape(size, width),
        torch.tensor(rewards, dtype=torch.float64),
    )


def built(completions, rewards, extra=0):
    """Return the tree of completions whose surprisals are all zero, and their rewards."""
    tokens, lengths, _, reward = as_tensors(completions, rewards, [[0.0] * len(c) for c in completions], extra)
    return PrefixTree.build(tokens, lengths), reward
