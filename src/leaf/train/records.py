"""What a step leaves behind: statistics for metrics.jsonl, whole groups with their trees, and a line for a person."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leaf.credit import credit_mass, fork_rates, forks, select_boundaries
from leaf.credit.sets import shares_of_draw
from leaf.model.sampling import Group


def rollout_statistics(
    groups: Sequence[Group],
    rewards: Sequence[Tensor],
    advantages: Sequence[Tensor],
    shares: Sequence[Tensor],
    by_function: Sequence[Mapping[str, Tensor]] = (),
) -> dict[str, float | None]:
    """Compute reward, length, fork and credit statistics of one rollout; also each function's, from its own rewards.

    Means over completions are weighted with their `shares` (K,): those of distinct completions estimate what the policy
    does on average, not what the likely and the unlikely ones of a set do alike.
    """
    share = torch.cat([one.cpu().double() for one in shares])
    share = share / share.sum()
    cut = torch.cat([group.truncated for group in groups])
    tokens = sum(int(group.lengths.sum()) for group in groups)
    nodes = sum(group.tree.num_nodes for group in groups)
    return {
        **_reward_statistics(rewards, shares),
        **_function_statistics(by_function, shares),
        "length_mean": float(share @ torch.cat([group.lengths for group in groups]).double()),
        # Shares add up to 1 but for rounding, and `Streaks` asks whether all were cut.
        "truncated": 1.0 if bool(cut.all()) else float(share @ cut.double()),
        "completions": len(share),
        "tokens_decoded": sum(group.tokens_decoded for group in groups),
        **_draw_statistics(groups),
        **_fork_statistics(groups, rewards),
        # A token that several completions begin with is one node of the tree.
        "tokens_shared": 1 - nodes / tokens if tokens else 0.0,
        **_credit_statistics(groups, advantages, shares),
    }


def _draw_statistics(groups: Sequence[Group]) -> dict[str, float]:
    """Count different completions in a group, as a share of all; of distinct ones also add up their probability."""
    different = [len({tuple(row) for row in group.tokens.tolist()}) / len(group.tokens) for group in groups]
    found = {"different_completions": sum(different) / len(different)}
    masses = [group.draw.mass for group in groups if group.draw is not None]
    return found | ({"set_mass": sum(masses) / len(masses)} if masses else {})


def _reward_statistics(rewards: Sequence[Tensor], shares: Sequence[Tensor]) -> dict[str, float | None]:
    """Compute the mean reward, the mean deviation within a group, and the share of groups that teach nothing.

    None where too few completions were scored.
    """
    scored = [reward[~reward.isnan()].double() for reward in rewards]  # NaN = unscored
    every = torch.cat(scored)
    parts = [one.cpu().double()[~reward.isnan()] for one, reward in zip(shares, rewards, strict=True)]
    counted = torch.cat(parts)
    spreads = [_deviation(one, part) for one, part in zip(scored, parts, strict=True)]
    spreads = [spread for spread in spreads if spread is not None]
    flat = [reward for reward in scored if len(reward) == 0 or bool((reward == reward[0]).all())]
    return {
        "reward_mean": float(counted @ every / counted.sum()) if len(every) else None,
        "reward_std": sum(spreads) / len(spreads) if spreads else None,
        "unscored": sum(len(reward) for reward in rewards) - len(every),
        "zero_variance_groups": len(flat) / len(rewards),
    }


def _function_statistics(
    by_function: Sequence[Mapping[str, Tensor]], shares: Sequence[Tensor]
) -> dict[str, float | None]:
    """Compute mean and deviation over all completions of what each function gave, under TRL's names.

    None where too few completions were scored.
    """
    statistics: dict[str, float | None] = {}
    for name in by_function[0] if by_function else ():
        values = torch.cat([one[name] for one in by_function]).double()
        known = ~values.isnan()  # NaN = unscored
        values, share = values[known], torch.cat([one.cpu().double() for one in shares])[known]
        count = float(share.sum())
        statistics[f"rewards/{name}/mean"] = float(share @ values) / count if count > 0 else None
        statistics[f"rewards/{name}/std"] = _deviation(values, share)
    return statistics


def _deviation(values: Tensor, share: Tensor) -> float | None:
    """Compute the deviation of values (N,) that stand for `share` (N,) completions each; None of one or none."""
    count = float(share.sum())
    if count <= 1:
        return None
    mean = share @ values / count
    return math.sqrt(float(share @ (values - mean) ** 2) / (count - 1))


def _fork_statistics(groups: Sequence[Group], rewards: Sequence[Tensor]) -> dict[str, float | None]:
    """Count forks at LEAF's own boundaries (B = 2), whatever credit rule trains, so that methods can be compared."""
    found = [
        fork
        for group, reward in zip(groups, rewards, strict=True)
        for fork in forks(
            group.tree, reward, select_boundaries(group.surprisal, group.lengths), shares_of_draw(group.draw)
        )
    ]
    rates: dict[str, Any] = fork_rates(found)
    return {"fork_fire_rate": rates["fire_rate"], "usable_fork_rate": rates["usable_rate"]}


def _credit_statistics(
    groups: Sequence[Group], advantages: Sequence[Tensor], shares: Sequence[Tensor]
) -> dict[str, float]:
    """Compute which share of all credit falls on each fifth of the completions, from the first to the last."""
    found = [
        credit_mass(one.cpu() * share.cpu()[:, None], group.lengths)
        for group, one, share in zip(groups, advantages, shares, strict=True)
    ]
    mass = torch.stack(found).sum(0)  # a group without credit has zeros here
    if float(mass.sum()) > 0:
        mass = mass / mass.sum()
    return {f"credit_mass/{i}": float(share) for i, share in enumerate(mass)}


def step_line(record: dict[str, Any]) -> str:
    """Write what a person wants to see of one step in a line."""
    return (
        f"reward {figure(record['reward_mean'])}  kl {figure(record['kl'], 4)}  "
        f"grad {figure(record['grad_norm'], 2)}  "
        f"len {record['length_mean']:.1f}  usable forks {record['usable_fork_rate']:.2f}  "
        f"{record['seconds/step']:.1f} s"
    )


def figure(value: float | None, digits: int = 3) -> str:
    """Format a number for a person; None, which was not measured, is `none`."""
    return "none" if value is None else f"{value:.{digits}f}"


def group_record(
    row: dict[str, Any],
    group: Group,
    rewards: Tensor,
    advantages: Tensor,
    share: Tensor,
    tokenizer: Any,
    by_function: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, Any]:
    """Describe one group in JSON: prompt, reference, completions, tokens, surprisal, advantages, tree, boundaries."""
    tree, share = group.tree, share.cpu()  # where tree and rewards are
    spans = list(enumerate(group.lengths.tolist()))
    audio = row.get("audio")
    audio = audio if isinstance(audio, list) else [audio.get("path") if isinstance(audio, Mapping) else audio]
    return {
        "id": None if row.get("id") is None else str(row["id"]),
        "prompt": _without_audio(row["prompt"]),
        "audio": [Path(name).name for name in audio if isinstance(name, str)],  # records do not tell where files are
        "text": row.get("text"),
        "reference": row.get("reference"),
        "completions": group.texts(tokenizer),
        "rewards": _without_nan(rewards.tolist()),
        "rewards_by_function": {name: _without_nan(one.tolist()) for name, one in (by_function or {}).items()},
        "extra": {name: [_plain(value) for value in values] for name, values in (extra or {}).items()},
        "truncated": group.truncated.tolist(),
        "token_ids": [group.tokens[i, :length].tolist() for i, length in spans],
        "tokens": [tokenizer.convert_ids_to_tokens(group.tokens[i, :length].tolist()) for i, length in spans],
        "surprisal": [_rounded(group.surprisal[i, :length]) for i, length in spans],
        "advantages": [_rounded(advantages[i, :length]) for i, length in spans],
        "boundaries": select_boundaries(group.surprisal, group.lengths).tolist(),
        **_draw_record(group, share),
        "tree": {
            "node": [tree.node[i, :length].tolist() for i, length in spans],
            "parent": tree.parent.tolist(),
            "depth": tree.depth.tolist(),
            "count": tree.count.tolist(),
            "value": _without_nan(_rounded(tree.node_mean(rewards, None if group.draw is None else share))),
        },
    }


def _draw_record(group: Group, share: Tensor) -> dict[str, Any]:
    """Describe the draw of distinct completions: log-probabilities and weights, mass of the set, and what is outside.

    `log_rest` and `threshold` are those of `SetDraw`, None where nothing is left.
    """
    draw = group.draw
    if draw is None:
        return {}
    weights = [float(f"{weight:.4g}") for weight in (share / share.sum()).tolist()]
    outside = {"log_rest": float(draw.log_rest), "threshold": float(draw.threshold)}
    left = {name: round(value, 4) if math.isfinite(value) else None for name, value in outside.items()}
    return {"log_prob": _rounded(draw.log_prob), "weight": weights, "mass": draw.mass, **left}


def _without_audio(prompt: Any) -> Any:
    """Copy a prompt as it may be written: messages keep their text parts; an audio part keeps its type alone."""
    if isinstance(prompt, str):
        return prompt
    return [
        {
            "role": message["role"],
            "content": message["content"]
            if isinstance(message["content"], str)
            else [part if part.get("type") == "text" else {"type": part.get("type")} for part in message["content"]],
        }
        for message in prompt
    ]


def _plain(value: Any) -> Any:
    """Keep what JSON has, and write anything else as text."""
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _without_nan(values: Sequence[float]) -> list[float | None]:
    """Put None, which JSON has, in place of NaN, which it has not."""
    return [None if value != value else value for value in values]


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
