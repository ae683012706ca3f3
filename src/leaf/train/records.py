"""What a step leaves behind: statistics for metrics.jsonl, and whole groups with their trees for the report."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from leaf.credit import credit_mass, fork_rates, forks, select_boundaries
from leaf.model.sampling import Group


def rollout_statistics(
    groups: Sequence[Group], rewards: Sequence[Tensor], advantages: Sequence[Tensor]
) -> dict[str, float | None]:
    """Return reward, length, truncation, fork and credit statistics of one rollout; None where nothing was scored.

    Forks are counted at LEAF's own boundaries (B = 2), whatever credit rule trains, so that methods can be compared.
    """
    reward = torch.cat(list(rewards)).double()
    scored = reward[~reward.isnan()]
    lengths = torch.cat([group.lengths for group in groups]).double()
    found = [
        fork
        for group, r in zip(groups, rewards, strict=True)
        for fork in forks(group.tree, r, select_boundaries(group.surprisal, group.lengths))
    ]
    rates = fork_rates(found)
    within = [r[~r.isnan()] for r in rewards]
    shares = [credit_mass(a.cpu(), group.lengths) for group, a in zip(groups, advantages, strict=True)]
    mass = torch.stack(shares).sum(0)
    mass = mass / mass.sum() if float(mass.sum()) > 0 else mass  # groups without credit have no say
    tokens = sum(int(group.lengths.sum()) for group in groups)
    nodes = sum(group.tree.num_nodes for group in groups)
    record: dict[str, Any] = {
        "reward_mean": float(scored.mean()) if scored.numel() else None,
        "reward_std": float(torch.stack([r.std() for r in within if r.numel() > 1]).mean())
        if any(r.numel() > 1 for r in within)
        else None,
        "unscored": int(reward.isnan().sum()),
        "zero_variance_groups": sum(bool((r == r[0]).all()) if r.numel() else True for r in within) / len(groups),
        "length_mean": float(lengths.mean()),
        "truncated": float(torch.cat([group.truncated for group in groups]).double().mean()),
        "fork_fire_rate": rates["fire_rate"],
        "usable_fork_rate": rates["usable_rate"],
        "tokens_shared": 1 - nodes / tokens if tokens else 0.0,
    }
    return record | {f"credit_mass/{i}": float(share) for i, share in enumerate(mass)}


def group_record(
    row: dict[str, Any], group: Group, rewards: Tensor, advantages: Tensor, tokenizer: Any
) -> dict[str, Any]:
    """Return one group as JSON: prompt, reference, completions, tokens, surprisal, advantages, tree and boundaries."""
    tree = group.tree
    spans = [(i, length) for i, length in enumerate(group.lengths.tolist())]
    audio = row.get("audio")
    audio = audio if isinstance(audio, list) else [audio]
    return {
        "id": row.get("id"),
        "prompt": _text_of(row["prompt"]),
        "audio": [Path(name).name for name in audio if isinstance(name, str)],
        "text": row.get("text"),
        "reference": row.get("reference"),
        "completions": group.texts(tokenizer),
        "rewards": [None if value != value else value for value in rewards.tolist()],
        "truncated": group.truncated.tolist(),
        "token_ids": [group.tokens[i, :length].tolist() for i, length in spans],
        "tokens": [tokenizer.convert_ids_to_tokens(group.tokens[i, :length].tolist()) for i, length in spans],
        "surprisal": [_rounded(group.surprisal[i, :length]) for i, length in spans],
        "advantages": [_rounded(advantages[i, :length]) for i, length in spans],
        "boundaries": select_boundaries(group.surprisal, group.lengths).tolist(),
        "tree": {
            "node": [tree.node[i, :length].tolist() for i, length in spans],
            "parent": tree.parent.tolist(),
            "depth": tree.depth.tolist(),
            "count": tree.count.tolist(),
            "value": [None if value != value else round(value, 4) for value in tree.node_mean(rewards).tolist()],
        },
    }


def _text_of(prompt: Any) -> Any:
    """Return a prompt as it may be written: messages keep their text parts; an audio part keeps its type alone."""
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


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
