"""Make what `RLTrainer` takes: credit rule, rewards, Accelerate and policy, from a recipe or from a model and rows.

What can be known to be wrong without the model is refused before the model is loaded.
"""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate import Accelerator, InitProcessGroupKwargs

from leaf.config import LeafConfig
from leaf.credit import CreditRule
from leaf.data.given import training_and_validation
from leaf.data.rows import check_references
from leaf.errors import DataError
from leaf.model.demo import resolve_model
from leaf.model.device import take_device
from leaf.model.from_recipe import trainable_policy
from leaf.model.policy import Policy
from leaf.progress import Busy
from leaf.rewards.functions import REWARDS
from leaf.rewards.total import Rewards, rewards_from
from leaf.runs.directory import run_path
from leaf.runs.processes import Processes
from leaf.runs.provenance import recorded_arguments
from leaf.train.recipe import RewardFunctions, check_processes, check_recipe, check_targets, find_rule, load_rows

# How long processes wait for one that judges, saves or samples. NCCL would give up after 10 minutes and end the run; a
# process that died is noticed by the launcher, not by this.
PATIENCE = timedelta(hours=2)


def parts_from_recipe(
    config: LeafConfig,
    rewards: RewardFunctions | None,
    credit: str | CreditRule | None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Make the arguments of `RLTrainer` from a recipe; `rewards` and `credit`, where given, replace the recipe's."""
    check_recipe(config, rewards, credit)
    functions = rewards_from(config, rewards)
    train_rows, eval_rows = load_rows(config)
    check_rows(config, functions, train_rows)
    check_targets(config, train_rows, eval_rows)
    accelerator = make_accelerator(config)
    tell = say if accelerator.is_main_process else lambda line: None
    checkpoint = resolve_model(config.model, say=tell)
    with Busy(tell, f"loading the model {config.model}"):
        policy = _policy(config, checkpoint, None, None, accelerator)
    policy.base_name = config.model  # not the folder in which the embedded model is assembled
    return {
        "policy": policy,
        "rewards": functions,
        "rule": find_rule(config, credit),
        "config": config,
        "train_rows": train_rows,
        "eval_rows": eval_rows,
        "given": recorded_arguments(config.model, rewards, credit, None, from_recipe=True),
        "accelerator": accelerator,
    }


def parts_from_model(
    model: str | Path | torch.nn.Module,
    config: LeafConfig,
    train_rows: Any,
    eval_rows: Any,
    rewards: RewardFunctions | None,
    credit: str | CreditRule | None,
    processor: Any,
    lora: peft.LoraConfig | None,
) -> dict[str, Any]:
    """Make the arguments of `RLTrainer` from a model and rows; see `RLTrainer.from_model`."""
    check_recipe(config, rewards, credit, has_model=True)
    functions = rewards_from(config, rewards)
    train_rows, eval_rows = training_and_validation(train_rows, eval_rows)
    check_rows(config, functions, train_rows)
    check_targets(config, train_rows, eval_rows)
    accelerator = make_accelerator(config)
    named = model
    if isinstance(model, str):
        model = resolve_model(model)  # `demo` and `base` are names here, too
    given = recorded_arguments(named, rewards, credit, lora, from_recipe=False)
    if eval_rows is train_rows:
        given = given._replace(script={**given.script, "eval_split": "the training rows"})
    policy = _policy(config, model, processor, lora, accelerator)
    if isinstance(named, str):
        policy.base_name = named  # not the folder in which the embedded model is assembled
    return {
        "policy": policy,
        "rewards": functions,
        "rule": find_rule(config, credit),
        "config": config,
        "train_rows": train_rows,
        "eval_rows": eval_rows,
        "given": given,
        "accelerator": accelerator,
    }


def check_rows(config: LeafConfig, rewards: Rewards, rows: Any) -> None:
    """Refuse rows that the rewards cannot use, or none."""
    if rows is None or len(rows) == 0:
        raise DataError("There are no training rows; give rows with prompt, audio and reference.")
    rewards.check_rows(rows)
    reader = rewards.columns.get("reference")
    if reader in REWARDS:  # a function of the user's own may take an empty text
        check_references(rows, f"The reward {reader} compares answers with")


def make_accelerator(config: LeafConfig) -> Accelerator:
    """Make Accelerate's handle on processes and tracker, on the recipe's device."""
    accelerator = Accelerator(
        cpu=take_device(config.device).type == "cpu",
        mixed_precision="no",  # the precision is the recipe's, not the launcher's
        log_with=config.track_with,
        project_dir=run_path(config),  # until the run has its directory
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    check_processes(config, accelerator.num_processes)
    return accelerator


def _policy(
    config: LeafConfig, model: Any, processor: Any, lora: peft.LoraConfig | None, accelerator: Accelerator
) -> Policy:
    """Load or wrap the model that is trained."""
    torch.manual_seed(config.seed)  # of a fresh adapter's values
    device = accelerator.device
    # Where layers are sharded, they go to their device one by one, since all of them together need not fit there.
    at_first = torch.device("cpu") if Processes(accelerator).sharded else device
    return trainable_policy(config, model, processor, lora, device=at_first, runs_on=device)
