"""`RLTrainer` in the shape of TRL's trainers, so that a script written for TRL needs few changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch

from leaf.config import LeafConfig
from leaf.credit import CreditRule
from leaf.errors import RunError
from leaf.runs.pushing import push_run
from leaf.train.making import RewardFunctions, parts_from_model
from leaf.train.trainer import RLTrainer


class LeafTrainer(RLTrainer):
    """`RLTrainer` in the shape of TRL's trainers.

    recipe.yaml of the run records what ran. Arguments replace the recipe's values; objects are recorded by name only,
    and `leaf` refuses to run such a recipe without the script.

    Args:
        model: checkpoint directory or hub id, a transformers model, or a `Policy` that carries its adapter.
        reward_funcs: names, import paths or callables with TRL's signature, or one callable; default the recipe's.
        args: the recipe.
        train_dataset, eval_dataset: rows with `prompt`, `audio` and `reference`; further columns reach the rewards. A
            list of dicts, a `datasets.Dataset` or a DataFrame of pandas (leaf.data.given.rows_from).
        processing_class: the processor, where `model` is a transformers model.
        peft_config: LoRA settings; default the recipe's.
        credit: a credit rule in place of the recipe's name, called as `rule(tree, rewards, surprisal=..., **options)`.
        say, on_step: see `RLTrainer`.
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        reward_funcs: RewardFunctions | None = None,
        args: LeafConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: peft.LoraConfig | None = None,
        *,
        credit: str | CreditRule | None = None,
        say: Callable[[str], None] = print,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ):
        config = LeafConfig() if args is None else args
        rows = (train_dataset, eval_dataset)
        parts = parts_from_model(model, config, *rows, reward_funcs, credit, processing_class, peft_config)
        super().__init__(**parts, say=say, on_step=on_step)

    @property
    def args(self) -> LeafConfig:
        """The recipe, under TRL's name."""
        return self.config

    def push_to_hub(
        self,
        repo_id: str | None = None,
        *,
        adapter: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str | None = None,
    ) -> str:
        """Push an adapter of the run with its model card to the hub, and return its address; see `push_run`.

        Only the main process pushes; the others get "".
        """
        if self.run is None:
            raise RunError("There is no run yet, so there is nothing to push. Call train() first.")
        if not self.processes.main:
            return ""
        options = {"revision": revision, "create_pr": create_pr, "commit_message": commit_message}
        return push_run(self.run, repo_id, adapter=adapter, private=private, token=token, **options)
