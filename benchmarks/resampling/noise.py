"""How much of a step's noise comes from the choice of prompts, and how much from the completions of each.

A step averages the gradients of P groups, each of another prompt. Its squared error is (B + W) / P: B is how far the
prompts' own gradients are apart, W how far a group's gradient is from its prompt's. Other rollouts change W alone.
Gradients are those of all B matrices of the adapter. Independent completions have RLOO, distinct ones the
unordered-set estimator.
"""

import numpy as np
import torch

from benchmarks.records import read
from benchmarks.resampling.bench import Bench, bounded, file_of, short
from benchmarks.resampling.estimators import bootstrap, mean_square
from benchmarks.resampling.gradients import adapter_parameters, gradients_of
from benchmarks.resampling.rollouts import DRAW, KINDS, credit_of
from leaf.files import append_row


def noise(args):
    """Compute the gradients of groups of each kind for many prompts, and write one record for all of them."""
    bench = Bench(args)
    policy, parameters = bench.policy.eval(), adapter_parameters(bench.policy)
    found, means = [], []
    for index, row in bounded(bench, args.minutes):
        prompt, vectors = bench.embedded(row), {}
        for kind, draw in DRAW.items():
            groups = draw(bench, prompt, index, args.completions, args.groups)
            vectors[kind] = torch.stack([_gradient(bench, policy, parameters, row, prompt, group) for group in groups])
        best = vectors["distinct"]  # both kinds have the same mean, and this one's error is smaller
        means.append(best.mean(0))
        found.append({"square": mean_square(best)} | {kind: float(vectors[kind].var(0).sum()) for kind in KINDS})
    stacked = torch.stack(means)
    record = {name: short([one[name] for one in found]) for name in ("square", *KINDS)}
    products = [short(line) for line in stacked @ stacked.T]
    facts = {**bench.facts, "completions": args.completions, "groups": args.groups}
    append_row(file_of("noise"), facts | record | {"products": products})


def _gradient(bench, policy, parameters, row, prompt, group):
    """Compute the gradient (D,) of one group, the sum over its completions of credit times ∇ log p."""
    credit = credit_of(group, bench.rewards(row, group.texts(policy.tokenizer)).double())
    tree = group.tree
    by_token = torch.where(tree.node >= 0, credit[:, None], 0.0)
    return gradients_of(policy, parameters, prompt, tree, {"it": by_token})["it"].float()


# -- table -------------------------------------------------------------------------------------------------------------


def noise_table(args):
    """Print by task and checkpoint where the noise of a step comes from, and what other rollouts take off it."""
    print(
        "| task | prompts | noise within independent | within distinct | distinct worth | K = 32 worth | prompts to 1 |"
    )
    print("|---|---|---|---|---|---|---|")
    for record in read(file_of("noise")):
        names = ("share/independent", "share/distinct", "worth", "worth of 32", "prompts")
        cells = " | ".join(_interval(record, name) for name in names)
        print(f"| {record['task']}, {record['checkpoint']} | {len(record['square'])} | {cells} |")


def _interval(record, name):
    """Write one part with its bootstrap interval over prompts."""
    middle, low, high = bootstrap(lambda chosen: parts(record, chosen)[name], len(record["square"]))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def parts(record, chosen):
    """Compute what a step's noise is made of, from the prompts `chosen` (indices, with repeats in a bootstrap).

    Returns:
        share/KIND: W / (B + W). worth: (B + W) of independent groups over that of distinct ones, how many times the
        prompts a step of independent groups would need to be as exact as one of distinct groups. worth of 32: the same
        for independent groups of 32 completions, taking their W to be K/32 of that of K. prompts: how many prompts of
        independent groups a step needs for its noise to be as great as its signal.
    """
    square = np.array(record["square"])[chosen].mean()
    pairs = np.not_equal.outer(chosen, chosen)
    signal = np.array(record["products"])[np.ix_(chosen, chosen)][pairs].mean()
    between = max(square - signal, 0.0)
    within = {kind: np.array(record[kind])[chosen].mean() for kind in KINDS}
    total = {kind: between + within[kind] for kind in KINDS}
    large = between + within["independent"] * record["completions"] / 32
    found = {f"share/{kind}": within[kind] / total[kind] for kind in KINDS}
    found["worth"] = total["independent"] / total["distinct"]
    found["worth of 32"] = total["independent"] / large
    found["prompts"] = total["independent"] / signal if signal > 0 else np.inf
    return found
