"""Check that all processes of a run were given the same: recipe, rows, model, the code of rewards
and credit rule, version of leaf, and later the checkpoint that is resumed.

Otherwise each would train on something else, and the sum of their gradients would be the gradient of nothing.
"""

import hashlib
import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch

from leaf.config import RunConfig, to_dict
from leaf.data.fingerprint import rows_fingerprint
from leaf.errors import RunError, shown
from leaf.model.policy import Policy
from leaf.plugins import code_mark, import_module
from leaf.runs.processes import Processes

_SAMPLED = 64  # values of each tensor that its fingerprint looks at
_OF_A_PROCESS = ("device",)  # keys of the recipe in which processes may differ


def check_alike(
    processes: Processes,
    config: RunConfig,
    policy: Policy,
    rewards: Mapping[str, Any],
    rule: Any,
    train_rows: Any,
    eval_rows: Any,
) -> None:
    """Compare what this process was given with what the others were, before anything is shared out.

    Args:
        processes: of this run.
        config, policy, rule, train_rows, eval_rows: what the run is made of.
        rewards: name → reward function.

    Raises:
        RunError: a process has something else; it is named by its number.
    """
    if processes.alone:
        return
    recipe = {f"recipe's {key}": value for key, value in to_dict(config).items() if key not in _OF_A_PROCESS}
    mine = recipe | {
        "version of leaf": metadata.version("leaf-speech"),
        "reward functions": list(rewards),
        **{f"code of the reward {name}": code_mark(function) for name, function in rewards.items()},
        "code of the credit rule": code_mark(rule),
        **{f"code of the plugin {name}": code_mark(import_module(name)) for name in getattr(config, "plugins", ())},
        "training rows": f"{len(train_rows)} rows, {rows_fingerprint(train_rows)[:12]}",
        "validation rows": f"{len(eval_rows)} rows, {rows_fingerprint(eval_rows)[:12]}",
        "model": f"{type(policy.base).__name__}, {model_fingerprint(policy)[:12]}",
    }
    refuse_unlike(processes.gather(mine))


def refuse_unlike(given: list[Mapping[str, Any]]) -> None:
    """Refuse processes of which one was given something else than the first.

    Raises:
        RunError: there is one.
    """
    for number, theirs in enumerate(given):
        other = [what for what in {**given[0], **theirs} if theirs.get(what) != given[0].get(what)]
        if other:
            was, now = (shown(one.get(other[0])) for one in (given[0], theirs))
            more = f" It differs in {len(other) - 1} more." if len(other) > 1 else ""
            raise RunError(
                f"Process {number} of {len(given)} was given another {other[0]} than process 0: {now}, not {was}."
                f"{more} Start all processes with the same command, on the same files."
            )


@torch.no_grad()
def model_fingerprint(policy: Policy) -> str:
    """Compute the SHA-256 of a policy's configuration and of a sample of each of its weights, in hex.

    What a fresh adapter draws (lora_A) is left out: processes get it from the first one. A trained adapter shows in its
    other half.
    """
    described = {key: value for key, value in policy.base.config.to_dict().items() if key != "_name_or_path"}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for name, parameter in policy.named_parameters():
        if "lora_A" not in name:
            values = parameter.detach().flatten()[:: max(1, parameter.numel() // _SAMPLED)]
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(values.float().cpu().numpy().tobytes())
    return digest.hexdigest()
