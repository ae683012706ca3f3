"""True values by re-sampling: how good prefix means are, what boundaries expose, which rule's credit is right."""

import numpy as np
import torch

from benchmarks.resampling.bench import BUDGET, DRAWS, MASS_RULES, Bench, bounded, file_of, short
from benchmarks.resampling.estimators import between_variance
from leaf.credit import credit_rule, entropy_boundaries, even_boundaries, random_boundaries, select_boundaries
from leaf.credit.values import known_rewards, prefix_values, scored_completions, shrunken_values
from leaf.files import append_row
from leaf.model.draws import step_generator
from leaf.model.scoring import score


def values(args):
    """Re-sample from every prefix of one group per prompt (`--only-boundaries`: from those at boundaries)."""
    bench = Bench(args)
    for index, row in bounded(bench, args.minutes):
        prompt = bench.embedded(row)
        group = bench.groups([prompt], [index], bench.config.num_completions, 0)[0]
        tree, rewards = group.tree, bench.rewards(row, group.texts(bench.policy.tokenizer))
        with torch.no_grad():
            entropy = score(bench.policy, [prompt], [tree]).entropies[0]
        cuts = boundary_choices(group, entropy, step_generator(bench.seed, index, 1))
        root = tree.num_nodes
        wanted = {root, *range(root)}
        if args.only_boundaries:
            wanted = {root}
            for choice in cuts.values():
                for t in {t for one in choice for t in one.tolist()}:
                    wanted |= {root if node < 0 else node for node in tree.prefix_group(t).tolist()}
                    wanted |= {root if node < 0 else node for node in tree.prefix_group(t + 1).tolist()}
        generator = step_generator(bench.seed, index, 2)
        value, error, spread = bench.true_values(row, prompt, tree, rewards, wanted, args.samples, generator)
        mean = rewards.mean()
        record = {**bench.facts, "id": row["id"], "samples": args.samples, "completions": len(rewards)}
        record |= {"reward": float(mean), "reward_variance": spread[root], "root": short([value[root], error[root]])}
        known = [node for node in sorted(wanted) if node != root and not tree.is_leaf[node]]
        estimate = tree.node_mean(rewards)
        record["nodes"] = [
            [int(tree.depth[n]) + 1, int(tree.count[n]), *short([estimate[n], value[n], error[n], spread[n]])]
            for n in known
        ]
        record["root_mean"] = float(mean)
        leaf_nodes = {n for t in cuts["surprisal"][0].tolist() for n in tree.prefix_group(t).tolist()}
        record["leaf_nodes"] = [i for i, n in enumerate(known) if n in leaf_nodes and tree.count[n] >= 2]
        record["choices"] = {
            name: average([separation(tree, t, value, error) for one in draws for t in one.tolist()])
            for name, draws in cuts.items()
        }
        if not args.only_boundaries:
            record |= token_sums(group, rewards, value, error)
        append_row(file_of("values"), record)


def boundary_choices(group, entropy, generator):
    """Return way of choosing → list of boundaries (B,); several draws of the random one."""
    options = {"max_boundaries": BUDGET}
    return {
        "surprisal": [select_boundaries(group.surprisal, group.lengths, **options)],
        "entropy": [entropy_boundaries(entropy, group.lengths, **options)],
        "even": [even_boundaries(group.lengths, **options)],
        "random": [random_boundaries(group.lengths, generator=generator, **options) for _ in range(DRAWS)],
    }


def separation(tree, t, value, error):
    """Return what a boundary exposes, as the credit laboratory defines it, with the noise of values taken off.

    children: variance of the true value of the prefix through token t within each set of two or more completions that
    share the t tokens before, summed over all completions (0 for those alone) and divided by their number. nodes:
    variance over completions of the true value of the prefix before t. fires: whether there is such a set.
    """
    before, through = tree.prefix_group(t).numpy(), tree.prefix_group(t + 1).numpy()
    within, fires = 0.0, False
    for node in np.unique(before):
        members = through[before == node]
        if len(members) >= 2:
            fires = True
            within += len(members) / len(before) * between_variance(members, value[members], error[members])
    nodes = between_variance(before, value[before], error[before])
    return {"children": within, "nodes": nodes, "fires": float(fires), "position": float(t)}


def average(rows):
    """Return the mean of each key over dictionaries, with their number; None without any."""
    if not rows:
        return None
    return {key: float(f"{np.mean([row[key] for row in rows]):.6g}") for key in rows[0]} | {"boundaries": len(rows)}


def token_sums(group, rewards, value, error):
    """Return sums over tokens: of rules' advantages with the true Q − V, and of baselines' errors against the true V.

    credit: rule → [Σ a·x, Σ a², Σ x², noise in Σ x²] with a the advantage and x = V(prefix through) − V(prefix before),
    as moments about 0. baseline: name → Σ (b − V)², noise taken off. Tokens whose child has one value are exact.
    """
    tree = group.tree
    real = (tree.node >= 0).numpy()
    node = np.where(real, tree.node.numpy(), tree.num_nodes)
    before = np.concatenate([np.full((len(node), 1), tree.num_nodes), node[:, :-1]], 1)
    truth, noise = (value[node] - value[before])[real], (error[node] + error[before])[real]
    result = {"tokens": int(real.sum()), "credit": {}, "baseline": {}}
    for name, rule in {**MASS_RULES, "spo": credit_rule("spo", credited="branching")}.items():
        a = rule(tree, rewards, surprisal=group.surprisal).numpy()[real]
        result["credit"][name] = short([(a * truth).sum(), (a * a).sum(), (truth * truth).sum(), noise.sum()])
    scored = scored_completions(tree, rewards)
    reward = known_rewards(rewards, scored)
    count, mean = prefix_values(tree, reward, scored)
    others = (reward.sum() - reward) / (len(reward) - 1)
    baselines = {"mean of all": reward.mean().expand_as(node_like(tree)), "mean of the others": others[:, None]}
    for kappa in (0.0, 1.0, 4.0):
        for own in (True, False):
            v = shrunken_values(count, mean, reward, kappa, leave_one_out=not own)[:, :-1]
            baselines[f"shrunken {'own in' if own else 'own out'}, kappa={kappa:g}"] = v
    for name, b in baselines.items():
        b = b.expand_as(node_like(tree)).numpy()[real]
        result["baseline"][name] = float(f"{((b - value[before][real]) ** 2 - error[before][real]).sum():.6g}")
    return result


def node_like(tree):
    return torch.empty(tree.node.shape)
