"""Gradients of groups of independent and of distinct completions, held against the same truth.

Independent completions have RLOO, distinct ones the unordered-set estimator. Both are unbiased, so they differ in their
variance alone, and its ratio says how many independent groups one distinct group is worth. Gradients are those of
`last_layer_gram`. The truth of a group is the mean over all distinct groups but itself.
"""

import math

import numpy as np
import torch
from torch.nn.functional import pad

from benchmarks.records import read
from benchmarks.resampling.bench import Bench, bounded, file_of
from benchmarks.resampling.estimators import bootstrap, mean_square
from benchmarks.resampling.gradients import last_layer_gram
from leaf.credit.sets import unordered_set
from leaf.credit.tree import PrefixTree
from leaf.files import append_row
from leaf.model.distinct import sample_distinct
from leaf.model.draws import step_generator

KINDS = ("independent", "distinct")


def rollouts(args):
    """Estimate the gradient from many groups of each kind, for every prompt and number of completions."""
    bench = Bench(args)
    for index, row in bounded(bench, args.minutes):
        prompt = bench.embedded(row)
        for size in args.completions:
            groups = {kind: draw(bench, prompt, index, size, args.groups) for kind, draw in DRAW.items()}
            record = {**bench.facts, "temperature": bench.config.temperature, "id": row["id"], "completions": size}
            append_row(file_of("rollouts"), record | compared(bench, row, prompt, groups))


def _independent(bench, prompt, index, size, count):
    (together,) = bench.groups([prompt], [index], count * size, 5)
    return [together.select(list(range(g * size, (g + 1) * size))) for g in range(count)]


def _distinct(bench, prompt, index, size, count):
    config, streams = bench.config, range(100, 100 + count)
    return sample_distinct(
        bench.policy,
        [prompt] * count,
        [step_generator(bench.seed, index, stream) for stream in streams],
        num_completions=size,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
    )


DRAW = {"independent": _independent, "distinct": _distinct}


def compared(bench, row, prompt, groups):
    """Return what a record keeps of the groups of a prompt."""
    each = [group for kind in KINDS for group in groups[kind]]
    rewards = [bench.rewards(row, group.texts(bench.policy.tokenizer)).double() for group in each]
    products = products_of(bench.policy, prompt, each, [credit_of(*pair) for pair in zip(each, rewards, strict=True)])
    values, vectors = torch.linalg.eigh(products)
    gradients = vectors * values.clamp_min(0).sqrt()  # rows with these inner products
    half = len(groups["independent"])
    truth = gradients[half:]
    record = {"groups": half, "signal": _short(mean_square(truth))}
    for kind, mine, earned in zip(KINDS, (gradients[:half], truth), (rewards[:half], rewards[half:]), strict=True):
        others = truth.mean(0) if kind == "independent" else (truth.sum(0) - truth) / (len(truth) - 1)
        norms = mine.norm(dim=1) * others.norm(dim=-1)
        cosine = torch.where(norms > 0, (mine * others).sum(1) / norms.clamp_min(1e-30), 0.0)
        record[kind] = {
            "variance": _short(mine.var(0).sum()),
            "cosine": _short(cosine.mean()),
            "flat": _short(np.mean([bool((one == one[0]).all()) for one in earned])),
            "different": _short(np.mean([_different(group) for group in groups[kind]])),
            "mass": _short(np.mean([_mass(group) for group in groups[kind]])),
            "decoded": _short(np.mean([group.tokens_decoded for group in groups[kind]])),
        }
    drawn = groups["independent"]
    record["nats"] = _short(np.mean([float(group.surprisal.sum(1).mean()) for group in drawn]))
    record["length"] = _short(np.mean([float(group.lengths.double().mean()) for group in drawn]))
    return record


def credit_of(group, reward):
    """Compute the weight of a completion times its advantage (K,): RLOO, or the unordered-set estimator."""
    count = len(reward)
    if group.draw is not None:
        weight, baseline = unordered_set(group.draw)
        return weight * (reward - baseline @ reward)
    return (reward - reward.mean()) / max(count - 1, 1)  # (r − mean of the others) / K


def products_of(policy, prompt, groups, credits):
    """Compute the inner products (G, G) of the groups' gradients, Σ credit · ∇ log p of their completions."""
    width = max(group.tokens.shape[1] for group in groups)
    tokens = torch.cat([pad(group.tokens, (0, width - group.tokens.shape[1])) for group in groups])
    tree = PrefixTree.build(tokens, torch.cat([group.lengths for group in groups]))
    by_node, first = torch.zeros(len(groups), tree.num_nodes, dtype=torch.float64), 0
    for whole, credit in zip(by_node, credits, strict=True):
        node = tree.node[first : first + len(credit)]
        real = node >= 0
        whole.index_add_(0, node[real], credit[:, None].expand(node.shape)[real])
        first += len(credit)
    return by_node @ last_layer_gram(policy, prompt, tree) @ by_node.T


def _different(group):
    return len({tuple(row[:length]) for row, length in zip(group.tokens.tolist(), group.lengths.tolist(), strict=True)})


def _mass(group):
    """Add up the probabilities of the different completions of a group."""
    found = {}
    for row, length, nats in zip(group.tokens.tolist(), group.lengths.tolist(), group.surprisal.sum(1), strict=True):
        found[tuple(row[:length])] = float((-nats.double()).exp())
    return sum(found.values())


def _short(value):
    return float(f"{float(value):.5g}")


# -- tables ------------------------------------------------------------------------------------------------------------
BINS = ((0.0, 0.5), (0.5, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 8.0), (8.0, math.inf))  # nats of a completion


def rollouts_table(args):
    """Print by task, temperature and K what groups hold, and how many independent groups a distinct one is worth."""
    records = read(file_of("rollouts"))
    keys = sorted({(r["task"], r["checkpoint"], r["temperature"], r["completions"]) for r in records})
    print("| task | T | K | prompts | nats | different | mass | flat | cosine | decoded | worth |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for key in keys:
        mine = [r for r in records if (r["task"], r["checkpoint"], r["temperature"], r["completions"]) == key]
        print(f"| {key[0]}, {key[1]} | {key[2]:g} | {key[3]} | {_cells(mine)} |")
    print("\n| nats of a completion | K | prompts | nats | different | mass | flat | cosine | decoded | worth |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for low, high in BINS:
        for size in sorted({r["completions"] for r in records}):
            mine = [r for r in records if low <= r["nats"] < high and r["completions"] == size]
            if len(mine) > 2:
                print(f"| {low:g} {'and more' if high == math.inf else f'to {high:g}'} | {size} | {_cells(mine)} |")


def _cells(records):
    """Write what a set of prompts has in common: pairs are independent → distinct."""
    pairs = (("different", 1), ("mass", 2), ("flat", 2), ("cosine", 3), ("decoded", 0))
    cells = [str(len(records)), f"{np.mean([r['nats'] for r in records]):.1f}"]
    for name, digits in pairs:
        cells.append(" → ".join(f"{np.mean([r[kind][name] for r in records]):.{digits}f}" for kind in KINDS))
    middle, low, high = bootstrap(lambda chosen: worth([records[i] for i in chosen]), len(records))
    return " | ".join([*cells, f"{middle:.1f} ({low:.1f} to {high:.1f})"])


def worth(records):
    """Compute how many independent groups one distinct group is worth: the ratio of the variances, summed over prompts.

    It is infinite where the distinct groups have none, and NaN where no kind has any.
    """
    independent, distinct = (sum(r[kind]["variance"] for r in records) for kind in KINDS)
    if distinct <= 0:
        return np.inf if independent > 0 else np.nan
    return independent / distinct
