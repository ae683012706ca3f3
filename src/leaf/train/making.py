"""Make what `RLTrainer` takes: credit rule, rewards, Accelerate and policy, from a recipe or from a model and rows.

What can be known to be wrong without the model is refused before the model is loaded.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate import Accelerator

from leaf.config import LeafConfig, refuse_from_python
from leaf.credit import CREDIT_RULES, SET_RULES, CreditRule, credit_rule
from leaf.data import load
from leaf.errors import ConfigError, DataError, shown
from leaf.model.demo import resolve_model
from leaf.model.device import take_device
from leaf.model.from_recipe import trainable_policy
from leaf.model.policy import Policy
from leaf.plugins import load_plugins
from leaf.rewards.functions import RewardFunction
from leaf.rewards.total import Rewards, rewards_from
from leaf.runs.directory import run_path
from leaf.runs.processes import Processes
from leaf.runs.provenance import recorded_arguments
from leaf.train.schedule import check_stage, in_steps

RewardFunctions = Sequence[str | RewardFunction] | RewardFunction


def parts_from_recipe(
    config: LeafConfig, rewards: RewardFunctions | None, credit: str | CreditRule | None
) -> dict[str, Any]:
    """Make the arguments of `RLTrainer` from a recipe; `rewards` and `credit`, where given, replace the recipe's."""
    rule, functions = _rule_and_rewards(config, rewards, credit)
    rows = load(config.task, config.train_split, limit=config.train_items, columns=config.columns)
    check_rows(config, functions, rows)
    accelerator = make_accelerator(config)
    policy = _policy(config, resolve_model(config.model), None, None, accelerator)
    policy.base_name = config.model  # not the folder in which the embedded model is assembled
    return {
        "policy": policy,
        "rewards": functions,
        "rule": rule,
        "config": config,
        "train_rows": rows,
        "eval_rows": load(config.task, config.eval_split, columns=config.columns) if config.eval_every else None,
        "given": recorded_arguments(config.model, rewards, credit, None, from_recipe=True),
        "accelerator": accelerator,
    }


def parts_from_model(
    model: str | Path | torch.nn.Module,
    config: LeafConfig,
    train_rows: Any,
    rewards: RewardFunctions | None,
    credit: str | CreditRule | None,
    processor: Any,
    lora: peft.LoraConfig | None,
) -> dict[str, Any]:
    """Make the arguments of `RLTrainer` from a model and rows; see `RLTrainer.from_model`."""
    rule, functions = _rule_and_rewards(config, rewards, credit)
    check_rows(config, functions, train_rows)
    accelerator = make_accelerator(config)
    return {
        "policy": _policy(config, model, processor, lora, accelerator),
        "rewards": functions,
        "rule": rule,
        "config": config,
        "train_rows": train_rows,
        "given": recorded_arguments(model, rewards, credit, lora, from_recipe=False),
        "accelerator": accelerator,
    }


def _rule_and_rewards(
    config: LeafConfig, rewards: RewardFunctions | None, credit: str | CreditRule | None
) -> tuple[CreditRule, Rewards]:
    """Find the credit rule and the reward functions of a recipe, or those given in their place."""
    load_plugins(config.plugins)  # they may bring both
    check_stage(config)
    if credit is None:
        refuse_from_python("credit", config.credit)
    check_rollout(config, credit or config.credit)
    return credit_rule(credit or config.credit, **config.credit_options), rewards_from(config, rewards)


def check_rollout(config: LeafConfig, credit: str | CreditRule) -> None:
    """Refuse a rollout and a credit rule that do not go together, and what distinct completions do not allow."""
    weighs = isinstance(credit, str) and credit in SET_RULES
    if weighs != (config.rollout == "distinct"):
        allowed = ", ".join(SET_RULES if config.rollout == "distinct" else CREDIT_RULES)
        raise ConfigError(
            f"credit is {shown(credit)} and rollout is {config.rollout}: rules for independent completions take plain "
            f"means, those for distinct ones weigh each. With rollout: {config.rollout} use {allowed}."
        )
    if not weighs:
        return
    if config.top_p < 1:
        raise ConfigError(
            f"top_p is {config.top_p} and rollout is distinct: the weights are those of the whole policy. Set top_p=1."
        )
    if config.completions_per_update is not None:
        raise ConfigError(
            f"completions_per_update is {config.completions_per_update} and rollout is distinct: the weights of a set "
            "hold for all of it together. Set completions_per_update=null."
        )


def check_rows(config: LeafConfig, rewards: Rewards, rows: Any) -> None:
    """Refuse rows that the rewards cannot use, or none, and numbers of steps that contradict each other."""
    if rows is None or len(rows) == 0:
        raise DataError("There are no training rows; give rows with prompt, audio and reference.")
    in_steps(config, len(rows))
    rewards.check_rows(rows)


def make_accelerator(config: LeafConfig) -> Accelerator:
    """Make Accelerate's handle on processes and tracker, on the recipe's device."""
    accelerator = Accelerator(
        cpu=take_device(config.device).type == "cpu",
        mixed_precision="no",  # the precision is the recipe's, not the launcher's
        log_with=config.track_with,
        project_dir=run_path(config),  # until the run has its directory
    )
    if config.prompts_per_rollout < accelerator.num_processes:
        raise ConfigError(
            f"prompts_per_rollout is {config.prompts_per_rollout} for {accelerator.num_processes} processes; give "
            "every process at least one prompt."
        )
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
