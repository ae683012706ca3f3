"""Forks at LEAF's boundaries and where each rule puts its credit."""

from benchmarks.resampling.bench import BUDGET, MASS_RULES, PROMPTS_AT_ONCE, Bench, bounded, file_of, short
from leaf.credit import credit_mass, credit_mass_by_position, forks, select_boundaries
from leaf.files import append_row


def forkability(args):
    """Record forks at LEAF's boundaries and every rule's credit mass, one group per prompt."""
    bench, waiting = Bench(args), []
    for index, row in bounded(bench, args.minutes):
        waiting.append((index, row))
        if len(waiting) < PROMPTS_AT_ONCE and row is not bench.rows[-1]:
            continue
        prompts = bench.policy.embed([row for _, row in waiting])
        groups = bench.groups(prompts, [index for index, _ in waiting], bench.config.num_completions, 0)
        for (_, one), group in zip(waiting, groups, strict=True):
            append_row(file_of("forkability"), fork_record(bench, one, group))
        waiting = []


def fork_record(bench, row, group):
    tree, rewards = group.tree, bench.rewards(row, group.texts(bench.policy.tokenizer))
    record = {**bench.facts, "id": row["id"], "rewards": short(rewards, 4), "lengths": group.lengths.tolist()}
    record["distinct"] = round(tree.num_nodes / int(group.lengths.sum()), 4)
    record["forks"] = [
        [f.position, f.fires, f.usable, list(f.sizes), short(f.spreads, 3)] for f in leaf_forks(group, rewards)
    ]
    record["mass"] = {}
    for name, rule in MASS_RULES.items():
        advantages = rule(tree, rewards, surprisal=group.surprisal)
        mass = credit_mass(advantages, group.lengths), credit_mass_by_position(advantages, group.lengths)
        record["mass"][name] = [short(part, 4) for part in mass]
    return record


def leaf_forks(group, rewards):
    return forks(group.tree, rewards, select_boundaries(group.surprisal, group.lengths, max_boundaries=BUDGET))


def fork_facts(group, rewards):
    """Return [boundaries, how many fire, how many are usable] at LEAF's boundaries."""
    found = leaf_forks(group, rewards)
    return [len(found), sum(fork.fires for fork in found), sum(fork.usable for fork in found)]
