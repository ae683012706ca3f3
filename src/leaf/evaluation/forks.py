"""Forkability of a checkpoint: sample groups of rows, cut them where LEAF would, and count what could be credited."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from leaf.config import LeafConfig
from leaf.credit import Fork, fork_rates, fork_rates_by_position, forks, select_boundaries
from leaf.model.draws import step_generator
from leaf.model.policy import Policy
from leaf.model.sampling import sample
from leaf.rewards.total import Rewards

EDGES = (1, 2, 5, 10, 20, 50, 100)  # token positions at which a stretch begins; the last one is open


def boundary_options(config: LeafConfig) -> dict[str, int]:
    """Read how boundaries are chosen: by the recipe's credit options where it has them, else the published 2 and 1."""
    given = {"max_boundaries": 2, "min_prefix": 1}
    return {key: config.credit_options.get(key, value) for key, value in given.items()}


def fork_statistics(
    policy: Policy,
    rows: Sequence[dict[str, Any]],
    rewards: Rewards,
    config: LeafConfig,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> list[Fork]:
    """Sample `num_completions` completions of each row as training does, and describe every boundary of their groups.

    Args:
        policy: samples.
        rows: with `prompt`, `audio` and what the rewards take. Draws depend on the recipe's seed and a row's number.
        rewards: of the recipe.
        config: temperature, top_p, max_new_tokens, num_completions, and `boundary_options`.
        progress: called with the number of rows after each batch.
    """
    found: list[Fork] = []
    for at in range(0, len(rows), config.prompts_per_rollout):
        batch = list(rows[at : at + config.prompts_per_rollout])
        groups = sample(
            policy,
            policy.embed(batch),
            num_completions=config.num_completions,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            generator=[step_generator(config.seed, at + i) for i in range(len(batch))],
        )
        earned, _ = rewards.of(batch, groups, policy.tokenizer)
        for number, (group, reward) in enumerate(zip(groups, earned, strict=True), at):
            cuts = select_boundaries(group.surprisal, group.lengths, **boundary_options(config))
            found += forks(group.tree, reward, cuts, prompt=number)
        progress(len(batch))
    return found


def as_record(found: Sequence[Fork]) -> dict[str, Any]:
    """Collect the rates over all boundaries, by stretches of positions, and the counts of every single position.

    `positions` has the published statistics: there `usable` asks for no difference in reward, so it is `fires` here.
    """
    by_position: dict[int, list[Fork]] = defaultdict(list)
    for fork in found:
        by_position[fork.position].append(fork)
    stretches = fork_rates_by_position(found, edges=EDGES)
    return {
        **fork_rates(found),
        "stretches": [{"from": first, "to": end, **rates} for (first, end), rates in stretches.items()],
        "positions": [{"position": at, **fork_rates(some)} for at, some in sorted(by_position.items())],
    }


def table_of(records: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Write systems as lines of a table: rates in %, with their intervals, and the groups that share a prefix."""

    def rate(record: Mapping[str, Any], name: str) -> str:
        if not record["boundaries"]:
            return "–"  # of nothing there is no rate
        low, high = record[f"{name}_interval"]
        return f"{100 * record[f'{name}_rate']:.1f} ({100 * low:.1f} to {100 * high:.1f})"

    return [
        [
            system,
            str(record["boundaries"]),
            rate(record, "fire"),
            rate(record, "usable"),
            f"{record['group_size']:.2f}",
            f"{record['reward_spread']:.3f}",
        ]
        for system, record in records.items()
    ]


HEADERS = ("system", "boundaries", "fire %", "usable %", "group size", "reward spread")
