"""RL post-training for speech-aware LLMs: LEAF, GRPO and relatives, with prefix-tree credit and tree-packed compute."""

from typing import TYPE_CHECKING, Any

from leaf.credit import grpo_advantages, leaf_advantages, select_boundaries
from leaf.errors import LeafError

if TYPE_CHECKING:
    from leaf.config import LeafConfig
    from leaf.model.policy import Policy
    from leaf.train.trainer import LeafTrainer

__all__ = [
    "LeafConfig",
    "LeafError",
    "LeafTrainer",
    "Policy",
    "grpo_advantages",
    "leaf_advantages",
    "select_boundaries",
]

# Loaded on first use: the credit functions alone should not pull in transformers.
_LAZY = {"LeafConfig": "leaf.config", "LeafTrainer": "leaf.train.trainer", "Policy": "leaf.model.policy"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'leaf' has no attribute {name!r}")
