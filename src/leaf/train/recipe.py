"""Check a recipe as far as that goes without a model, and load the rows that it names.

To download, assemble or read a model takes up to minutes. What is wrong with a recipe should not wait for that.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leaf.config import AlignConfig, LeafConfig, LoraFields, RunConfig, SftConfig
from leaf.credit import (
    BATCH_RULES,
    CREDIT_RULES,
    SET_RULES,
    BatchCredit,
    CreditRule,
    distinct_rules,
    find_credit,
    surrogate,
    weighs_draws,
)
from leaf.data import load
from leaf.data.rows import check_references
from leaf.engines.samplers import check_sampler
from leaf.errors import ConfigError, DataError, did_you_mean, shown
from leaf.evaluation.fitting import fitting_metrics, texts_and_languages
from leaf.evaluation.metrics import METRICS
from leaf.evaluation.model_metrics import BUILDERS
from leaf.evaluation.registry import name_and_options
from leaf.memory import available_bytes
from leaf.model.device import take_device
from leaf.plugins import load_plugins
from leaf.rewards.functions import RewardFunction
from leaf.rewards.total import rewards_from
from leaf.runs.checkpoints import changed_keys
from leaf.runs.directory import RunDirectory, is_empty, refuse_existing, run_path
from leaf.runs.provenance import refuse_resume
from leaf.train.choosing import check_choosing
from leaf.train.schedule import check_stage

RewardFunctions = Sequence[str | RewardFunction] | RewardFunction
# Of a rollout: a token's id, and its surprisal, advantage, and two log-probabilities in float32.
_BYTES_A_TOKEN = 8 + 4 * 4
# Layers of the embedded model's decoder. Of other models they are known when the model is.
_DEMO_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def recipe_checks(
    config: RunConfig,
    rewards: RewardFunctions | None = None,
    credit: str | CreditRule | None = None,
    *,
    has_model: bool = False,
) -> dict[str, Callable[[], object]]:
    """List by subject the checks of a recipe that need neither model nor data; each raises a LeafError.

    Args:
        config: the recipe.
        rewards, credit: what a script passes in place of the recipe's.
        has_model: whether a script passes the model.
    """
    checks: dict[str, Callable[[], object]] = {
        "settings": lambda: _check_settings(config, rewards),
        "device": lambda: take_device(config.device),
        "processes": lambda: check_processes(config, int(os.environ.get("WORLD_SIZE", "1"))),  # as launchers set it
        "projector": lambda: _check_projector(config),
        "size": lambda: _check_size(config),
    }
    if not has_model:
        checks["adapter"] = lambda: _check_layers(config)
    if isinstance(config, LeafConfig):
        checks["credit"] = lambda: find_rule(config, credit)
        checks["groups"] = lambda: check_choosing(config)
        checks["loss"] = lambda: surrogate(config.loss, **config.loss_options)
        checks["sampler"] = lambda: check_sampler(config)
        checks["rewards"] = lambda: rewards_from(config, rewards)
    return checks


def check_recipe(
    config: RunConfig,
    rewards: RewardFunctions | None = None,
    credit: str | CreditRule | None = None,
    *,
    has_model: bool = False,
) -> None:
    """Import the plugins of a recipe, and refuse what is wrong with it as far as that shows without model and data.

    The arguments are those of `recipe_checks`.

    Raises:
        LeafError: see there.
    """
    load_plugins(config.plugins)  # they may register what the recipe names
    for check in recipe_checks(config, rewards, credit, has_model=has_model).values():
        check()


def check_run(config: RunConfig, *, resume: bool) -> None:
    """Refuse a run directory that exists already or, to resume it, one that this recipe would alter.

    Raises:
        RunError: it is one.
    """
    path = run_path(config)
    if not resume:
        refuse_existing(path)
    elif not is_empty(path):
        run = RunDirectory.open(path)
        refuse_resume(run)
        changed_keys(path, run.config(), config, {}, {})


def load_rows(config: RunConfig) -> tuple[Any, Any]:
    """Load the training rows, those of an sft recipe's further tasks too, and the validation rows.

    There are no validation rows where the recipe never validates.

    Raises:
        DataError: a task, split or column is not there, or there are no training rows.
    """
    from datasets import concatenate_datasets

    tasks = [config.task, *(config.extra_tasks if isinstance(config, SftConfig) else [])]
    parts = [load(task, config.train_split, limit=config.train_items, columns=config.columns) for task in tasks]
    for name in parts[0].column_names:
        if len(kinds := {str(part.features[name]) for part in parts if name in part.column_names}) > 1:
            raise DataError(
                f"The tasks {', '.join(map(str, tasks))} have values of different kinds in the column {name}: "
                f"{' and '.join(sorted(kinds))}. Write them in one way, or rename the column in one of the files."
            )
    training = concatenate_datasets(parts)
    if len(training) == 0:
        raise DataError(f"{config.task} has no rows in its split {config.train_split}. Choose another train_split.")
    validation = load(config.task, config.eval_split, columns=config.columns) if config.eval_every else []
    return training, validation


def check_targets(config: RunConfig, training: Any, validation: Any) -> None:
    """Refuse rows without references where the stage teaches them, or where validation compares with them.

    Raises:
        ConfigError: `best_metric` cannot be computed for the languages of the validation rows.
        DataError: there are such rows.
    """
    if isinstance(config, SftConfig):
        check_references(training, "Stage sft imitates")
    elif isinstance(config, AlignConfig):
        check_references(training, "Stage align learns to write")
    if not config.eval_every or validation is None or len(validation) == 0:
        return
    best = config.best_metric if isinstance(config, LeafConfig | SftConfig) else "token_error_rate"
    otherwise = ", or validate nothing with eval_every=0"
    if isinstance(config, LeafConfig):
        if name_and_options(best)[0] not in (*METRICS, *BUILDERS):  # a reward, which says itself what it reads
            return
        otherwise = f", or let a reward choose with best_metric=reward{otherwise}"
    check_references(validation, f"The validation metric {best} compares answers with", otherwise)
    if not isinstance(config, AlignConfig):
        fitting_metrics(best, *texts_and_languages(validation))


def note_on_validation(config: RunConfig, training: Any = None, validation: Any = None) -> str | None:
    """Say that a run validates on the rows that it trains on; None if it does not, as far as that shows."""
    if not config.eval_every:
        return None
    if config.train_split == config.eval_split:
        what = f"train_split and eval_split are both {config.eval_split}"
    elif training is not None and training is validation:
        what = "the same rows are given for training and validation"
    else:
        return None
    return (
        f"{what}: validation scores say how well the training rows are learnt, not what the model does on new ones"
        + (", and they choose best/" if isinstance(config, LeafConfig) else "")
    )


def find_rule(config: LeafConfig, credit: str | CreditRule | None = None) -> CreditRule | BatchCredit:
    """Find the credit rule of a recipe, or the one that a script passes in its place.

    Raises:
        ConfigError: it is unknown, does not take its options, or does not go with the recipe's rollout.
    """
    chosen = config.credit if credit is None else credit
    if isinstance(chosen, str) and chosen not in CREDIT_RULES | BATCH_RULES | SET_RULES:
        return find_credit(chosen)  # which refuses it by its name
    if config.rollout == "distinct":
        _check_distinct(config, chosen)
    elif isinstance(chosen, str) and chosen in SET_RULES:
        raise ConfigError(
            f"credit is {chosen} and rollout is independent: it weighs distinct completions. Set rollout=distinct, or "
            f"use {', '.join(CREDIT_RULES | BATCH_RULES)}."
        )
    return find_credit(chosen, **config.credit_options)


def _check_distinct(config: LeafConfig, chosen: str | CreditRule) -> None:
    """Refuse what does not go with distinct completions."""
    if not weighs_draws(chosen):
        raise ConfigError(
            f"credit is {shown(chosen)} and rollout is distinct: this rule takes plain means, and distinct completions "
            f"have weights. With rollout: distinct use {', '.join(distinct_rules())}, or a function that takes `draw`."
        )
    if config.top_p < 1:
        raise ConfigError(
            f"top_p is {config.top_p} and rollout is distinct: the weights are those of the whole policy. Set top_p=1."
        )
    if config.completions_per_update is not None:
        raise ConfigError(
            f"completions_per_update is {config.completions_per_update} and rollout is distinct: the weights of a set "
            "hold for all of it together. Set completions_per_update=null."
        )
    if config.tree_key == "words":
        raise ConfigError(
            "tree_key is words and rollout is distinct: completions are distinct by their tokens, and so are their "
            "weights. Set tree_key=tokens."
        )
    if config.uncertain_share < 1:
        raise ConfigError(
            f"uncertain_share is {config.uncertain_share} and rollout is distinct, which records no entropy. Set "
            "uncertain_share=1."
        )


def check_processes(config: RunConfig, processes: int) -> None:
    """Refuse a recipe that cannot run in so many processes."""
    if not isinstance(config, LeafConfig):
        if processes > 1:
            raise ConfigError(
                f"Stage {config.stage} runs in one process and was launched with {processes}; start it as `leaf "
                f"{config.stage} RECIPE`, without a launcher. Stage rl takes several."
            )
    elif config.prompts_per_rollout < processes:
        raise ConfigError(
            f"prompts_per_rollout is {config.prompts_per_rollout} for {processes} processes; give every process at "
            "least one prompt."
        )


def _check_settings(config: RunConfig, rewards: RewardFunctions | None) -> None:
    given = rewards_from(config, rewards) if rewards is not None and isinstance(config, LeafConfig) else None
    check_stage(config, given)


def _check_size(config: RunConfig) -> None:
    """Refuse a rollout of which the tokens alone would not fit into memory."""
    if isinstance(config, LeafConfig):
        tokens = config.prompts_per_rollout * config.num_completions * config.max_new_tokens
        needed, free = tokens * _BYTES_A_TOKEN, available_bytes("cpu")
        if needed > free:
            raise ConfigError(
                f"A rollout of {config.prompts_per_rollout} prompts, {config.num_completions} completions and "
                f"{config.max_new_tokens} new tokens takes {needed / 1e9:.0f} GB for its tokens alone, and "
                f"{free / 1e9:.0f} GB are free. Lower prompts_per_rollout, num_completions or max_new_tokens."
            )


def _check_projector(config: RunConfig) -> None:
    if config.projector is not None and not Path(config.projector).is_file():
        raise ConfigError(
            f"The projector {config.projector} does not exist. Name the projector.safetensors of a run of stage align, "
            "or the one in last/ of stage sft."
        )


def _check_layers(config: RunConfig) -> None:
    if not isinstance(config, LoraFields):
        return
    numbers = config.layers_to_transform
    if numbers is not None and (not numbers or min(numbers) < 0):
        raise ConfigError(
            f"layers_to_transform is {numbers}; name the decoder's layers by their numbers from 0, or leave it out for "
            "all of them."
        )
    if config.lora_layers is None:
        return
    if not config.lora_layers:
        raise ConfigError("lora_layers is empty; name linear layers as q_proj, or leave it out for all of them.")
    unknown = [layer for layer in config.lora_layers if layer not in _DEMO_LAYERS]
    if unknown and config.model in ("base", "demo"):
        raise ConfigError(
            f"The embedded model has no linear layer {unknown[0]!r}; it has {', '.join(_DEMO_LAYERS)}."
            f"{did_you_mean(unknown[0], _DEMO_LAYERS)}"
        )
