"""What the records say, in Markdown."""

from collections.abc import Callable

import numpy as np

from benchmarks.records import read
from benchmarks.resampling.bench import TRUTH, file_of
from benchmarks.resampling.estimators import bootstrap
from leaf.credit import Fork, fork_rates, fork_rates_by_position


def table(args):
    """Print what the records say, in Markdown; intervals are 95 % bootstrap intervals over prompts."""
    for name, show in (("values", show_values), ("gradients", show_gradients), ("forkability", show_forkability)):
        records = read(file_of(name))
        keys = [(r["task"], r["checkpoint"], r.get("split", "validation"), r.get("part", "")) for r in records]
        for key in dict.fromkeys(keys):
            mine = [r for r, its in zip(records, keys, strict=True) if its == key]
            print(f"\n## {name}: {' '.join(key)}: {len(mine)} prompts, seed {mine[0]['seed']}")
            show(mine)


def interval(statistic, count, digits=3, sign=""):
    middle, low, high = bootstrap(statistic, count)
    return f"{middle:{sign}.{digits}f} ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"


def ratio(above, below):
    """Return the statistic Σ above / Σ below over the prompts drawn."""
    above, below = np.asarray(above, dtype=float), np.asarray(below, dtype=float)
    return lambda i: above[i].sum() / below[i].sum() if below[i].sum() != 0 else np.nan


def show_values(records):
    variance = np.array([r["reward_variance"] for r in records])
    print(f"reward {np.mean([r['reward'] for r in records]):.3f}, variance {variance.mean():.4f} (mean over prompts)")
    bins = {"1": (1, 1), "2": (2, 2), "3-4": (3, 4), "5-7": (5, 7), "8": (8, 8)}
    picks: dict[str, Callable[[dict], list]] = {
        f"n {k}": lambda r, low=low, high=high: [x for x in r["nodes"] if low <= x[1] <= high]
        for k, (low, high) in bins.items()
    }
    picks["LEAF's nodes"] = lambda r: [r["nodes"][i] for i in r["leaf_nodes"]]
    print("| nodes | number | bias of V̂ | squared error of V̂ | predicted σ²/n | squared error of the root's mean |")
    print("|---|---|---|---|---|---|")
    for name, pick in picks.items():
        rows = [[x for x in pick(r) if x[3] is not None] for r in records]
        size = np.array([len(nodes) for nodes in rows])
        if not size.sum():
            continue
        bias = [sum(x[2] - x[3] for x in nodes) for nodes in rows]
        error = [sum((x[2] - x[3]) ** 2 - x[4] for x in nodes) for nodes in rows]
        predicted = [sum(x[5] / x[1] for x in nodes) for nodes in rows]
        root = [sum((r["root_mean"] - x[3]) ** 2 - x[4] for x in nodes) for r, nodes in zip(records, rows, strict=True)]
        cells = [
            interval(ratio(one, size), len(rows), digits)
            for one, digits in ((bias, 3), (error, 4), (predicted, 4), (root, 4))
        ]
        print(f"| {name} | {size.sum()} | {' | '.join(cells)} |")
    print("\n| boundaries | position | fire | children / reward variance | minus random | nodes | minus random |")
    print("|---|---|---|---|---|---|---|")
    with_cuts = [r for r in records if all(r["choices"].values())]
    unit = [r["reward_variance"] for r in with_cuts]
    for name in ("surprisal", "entropy", "even", "random"):
        mine = [r["choices"][name] for r in with_cuts]
        cells = [f"{np.mean([m[key] for m in mine]):.2f}" for key in ("position", "fires")]
        for key in ("children", "nodes"):
            cells.append(interval(ratio([m[key] for m in mine], unit), len(mine)))
            minus = [m[key] - r["choices"]["random"][key] for m, r in zip(mine, with_cuts, strict=True)]
            cells.append("" if name == "random" else interval(ratio(minus, unit), len(mine), sign="+"))
        print(f"| {name} | {' | '.join(cells)} |")
    whole = [r for r in records if "credit" in r]
    if not whole:
        return
    print("\n| rule | correlation of its advantages with the true Q − V (noise of Q − V taken off) |\n|---|---|")
    for rule in whole[0]["credit"]:
        sums = np.array([r["credit"][rule] for r in whole])
        print(f"| {rule} | {interval(lambda i, s=sums: correlation(s[i].sum(0)), len(whole))} |")
    print("\n| baseline | mean squared distance from the true V(prefix), per token / reward variance |\n|---|---|")
    tokens = np.array([r["tokens"] * r["reward_variance"] for r in whole])
    for name in whole[0]["baseline"]:
        print(f"| {name} | {interval(ratio([r['baseline'][name] for r in whole], tokens), len(whole))} |")


def correlation(sums):
    """Return Σ a x / √(Σ a² · (Σ x² − noise)) of the sums that `token_sums` keeps."""
    return sums[0] / np.sqrt(sums[1] * (sums[2] - sums[3])) if sums[1] > 0 and sums[2] > sums[3] else np.nan


def show_gradients(records):
    told = [r for r in records if r["rules"] is not None]
    print(f"{len(records) - len(told)} prompts whose completions all earned the same are left out")
    groups = len(told[0]["rules"][TRUTH]["cosine"])
    zero = np.mean([[square == 0 for square in r["rules"][TRUTH]["square"]] for r in told])
    print(f"{groups} groups a prompt; {zero:.0%} of the groups have equal rewards")
    base, count = moments(told, TRUTH), len(told)
    print(
        "| rule | cosine | minus GRPO | minus GRPO, unequal rewards | without noise in the truth | "
        "efficiency / RLOO's | mean's cosine | noise |\n|---|---|---|---|---|---|---|---|"
    )
    for rule in told[0]["rules"]:
        m = moments(told, rule)
        cells = [interval(lambda i, m=m: m["cosine"][i].mean(), count)]
        cells.append(interval(lambda i, m=m: (m["cosine"] - base["cosine"])[i].mean(), count, 4, "+"))
        alive = [[square > 0 for square in r["rules"][TRUTH]["square"]] for r in told]
        minus = [np.subtract(r["rules"][rule]["cosine"], r["rules"][TRUTH]["cosine"]) for r in told]
        sums = [one[keep].sum() for one, keep in zip(minus, alive, strict=True)]
        cells.append(interval(ratio(sums, [sum(keep) for keep in alive]), count, 4, "+"))
        cells.append(
            interval(lambda i, m=m: m["dot"][i].sum() / np.sqrt(m["square"][i].sum() * m["truth"][i].sum()), count)
        )
        cells.append(interval(lambda i, m=m: efficiency(m, i) / efficiency(base, i), count))
        cells.append(
            interval(lambda i, m=m: m["dot"][i].sum() / np.sqrt(m["mean_square"][i].sum() * m["truth"][i].sum()), count)
        )
        cells.append(f"{(m['square'].sum() - m['mean_square'].sum()) * m['truth'].sum() / m['dot'].sum() ** 2:.2f}")
        print(f"| {rule} | {' | '.join(cells)} |")
    for rule in ("leaf", "leaf sqrt_count=false", "tempo", "shrunken"):
        show_by_forks(told, rule)


def moments(records, rule):
    """Return arrays over prompts: mean cosine, dot and squared norm of a group, |E g|² and |g*|² without noise."""
    rows = [r["rules"][rule] for r in records]
    result = {key: np.array([np.mean(row[key]) for row in rows]) for key in ("cosine", "dot", "square")}
    result["mean_square"] = np.array([row["mean_square"] for row in rows])
    return result | {"truth": np.array([r["truth_square"] for r in records])}


def efficiency(m, i):
    """Return ⟨E g, g*⟩² / E|g|², summed over prompts: the gain of one group's step at the best common step size."""
    return m["dot"][i].sum() ** 2 / m["square"][i].sum()


def show_by_forks(records, rule):
    """Print the rule's cosine minus GRPO's with and without usable forks; groups with equal rewards are left out."""
    sums = np.zeros((len(records), 4))
    rate, gain = np.zeros(len(records)), np.zeros(len(records))
    for p, r in enumerate(records):
        mine, base = r["rules"][rule], r["rules"][TRUTH]
        rows = [
            (f[2] / max(f[0], 1), a - b, s > 0)
            for f, a, b, s in zip(r["groups_facts"], mine["cosine"], base["cosine"], base["square"], strict=True)
        ]
        rows = [(usable, minus) for usable, minus, alive in rows if alive]
        rate[p], gain[p] = np.mean(rows, 0) if rows else (np.nan, np.nan)
        for usable, minus in rows:
            sums[p] += [minus, 1, 0, 0] if usable > 0 else [0, 0, minus, 1]
    known = ~np.isnan(rate)
    sums, rate, gain = sums[known], rate[known], gain[known]
    with_forks, without = ratio(sums[:, 0], sums[:, 1]), ratio(sums[:, 2], sums[:, 3])
    count = len(sums)
    print(f"\n{rule} minus GRPO, cosine, {count} prompts, groups whose rewards differ:")
    print(f"- {int(sums[:, 1].sum())} groups with a usable fork: {interval(with_forks, count, 4, '+')}")
    print(f"- {int(sums[:, 3].sum())} groups without: {interval(without, count, 4, '+')}")
    print(f"- difference: {interval(lambda i: with_forks(i) - without(i), count, 4, '+')}")
    spread = interval(lambda i: np.corrcoef(rate[i], gain[i])[0, 1] if len(set(i)) > 2 else np.nan, count, 2, "+")
    print(f"- correlation over prompts of the usable rate with the difference to GRPO: {spread}")


def show_forkability(records):
    found = [Fork(f[0], f[1], f[2], tuple(f[3]), tuple(f[4])) for r in records for f in r["forks"]]
    same = np.mean([len(set(r["rewards"])) == 1 for r in records])
    lengths = np.mean([np.mean(r["lengths"]) for r in records])
    reward, distinct = np.mean([np.mean(r["rewards"]) for r in records]), np.mean([r["distinct"] for r in records])
    print(f"reward {reward:.3f}, equal rewards {same:.0%}, length {lengths:.1f}, distinct {distinct:.2f}")
    stretches = {"all": fork_rates(found), **fork_rates_by_position(found)}
    for where, rates in stretches.items():
        if rates["boundaries"]:
            cells = []
            for name in ("fire", "usable"):
                between = rates[f"{name}_interval"]
                assert isinstance(between, tuple)
                cells.append(f"{rates[f'{name}_rate']:.3f} ({between[0]:.3f} to {between[1]:.3f})")
            cells += [f"{rates['group_size']:.2f}", f"{rates['reward_spread']:.3f}"]
            print(f"| {where} | {rates['boundaries']} | {' | '.join(cells)} |")
    for rule in records[0]["mass"]:
        rows = [r["mass"][rule] for r in records if sum(r["mass"][rule][0]) > 0]
        parts = [np.mean([row[k] for row in rows], 0) for k in (0, 1)]
        shares = [" ".join(f"{x:.3f}" for x in part) for part in parts]
        print(f"| {rule} | {shares[0]} | {shares[1]} | {len(rows)} groups |")
