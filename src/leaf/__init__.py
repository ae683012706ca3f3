"""RL post-training for speech LLMs: LEAF, GRPO and relatives, on prefix trees of sampled completions.

Reading order, one step of training from the rows to the update:

    data/rows.py         what a row holds
    model/policy.py      embeds prompts, decodes, reads
    model/sampling.py    draws a group of completions for a prompt
    rewards/total.py     scores completions
    credit/tree.py       merges the completions of a group into their prefix tree
    credit/spans.py      turns rewards into one advantage per token
    train/rollout.py     puts these together: one batch of groups
    model/scoring.py     computes log-probabilities on the packed tree
    train/update.py      computes the loss and its gradient
    train/trainer.py     repeats all this, validates, saves

On a first day everything else can be skipped.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leaf.config import LeafConfig, RLConfig
    from leaf.credit import grpo_advantages, leaf_advantages, select_boundaries
    from leaf.errors import LeafError
    from leaf.model.policy import Policy
    from leaf.train.leaf_trainer import LeafTrainer
    from leaf.train.trainer import RLTrainer

__all__ = [
    "LeafConfig",
    "LeafError",
    "LeafTrainer",
    "Policy",
    "RLConfig",
    "RLTrainer",
    "grpo_advantages",
    "leaf_advantages",
    "select_boundaries",
]

# Each name is imported on first use: torch and transformers take seconds, and `leaf --help` needs neither.
_HOME = {
    "LeafConfig": "leaf.config",
    "LeafError": "leaf.errors",
    "LeafTrainer": "leaf.train.leaf_trainer",
    "Policy": "leaf.model.policy",
    "RLConfig": "leaf.config",
    "RLTrainer": "leaf.train.trainer",
    "grpo_advantages": "leaf.credit",
    "leaf_advantages": "leaf.credit",
    "select_boundaries": "leaf.credit",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'leaf' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
