"""Pieces that every stage trains with: start-up checks, optimiser, learning-rate schedule, seeds of dropout."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType

from leaf.config import LeafConfig, RunConfig, SftConfig
from leaf.errors import ConfigError, did_you_mean, install_extra
from leaf.evaluation.registry import DEFAULT_METRICS, is_plain, is_reward, metric, name_and_options
from leaf.evaluation.reward_metrics import best_reward
from leaf.model.draws import step_generator
from leaf.rewards.total import Rewards, rewards_from


def check_stage(config: RunConfig, rewards: Rewards | None = None) -> None:
    """Refuse what would fail only once a run has begun: a metric that cannot run, a tracker that the stage has not.

    Args:
        config: the recipe.
        rewards: that `best_metric` may name; None for those of the recipe.
    """
    if config.schedule == "published" and config.warmup_steps:
        raise ConfigError(
            f"warmup_steps is {config.warmup_steps} and schedule is published, which has a warm-up of its own. Leave "
            "warmup_steps out."
        )
    if config.eval_items_seed is not None and config.eval_items is None:
        raise ConfigError(
            f"eval_items_seed is {config.eval_items_seed} without eval_items, so all rows validate and nothing is "
            "drawn. Set eval_items to how many rows to draw, or leave eval_items_seed out."
        )
    if len(config.adam_betas) != 2 or not all(0 <= beta < 1 for beta in config.adam_betas):
        raise ConfigError(f"adam_betas is {config.adam_betas}; it must be two numbers of at least 0 and below 1.")
    if isinstance(config, LeafConfig):
        check_mix(config)
    if config.track_with is not None and not isinstance(config, LeafConfig):
        raise ConfigError(
            f"track_with is {config.track_with!r}, and stage {config.stage} writes only metrics.jsonl and "
            "validation.jsonl; only stage rl has trackers. Set track_with=null."
        )
    if config.track_with is not None:
        check_tracker(config.track_with)
    if isinstance(config, LeafConfig | SftConfig) and config.eval_every:
        if isinstance(config, SftConfig) and is_reward(name_and_options(config.best_metric)[0]):
            raise ConfigError(
                f"best_metric is {config.best_metric!r}, and stage sft has no rewards. Allowed are metrics of texts, "
                f"such as {', '.join(DEFAULT_METRICS)}."
            )
        if rewards is None and isinstance(config, LeafConfig) and not is_plain(config.best_metric):
            rewards = rewards_from(config)
        if best_reward(config.best_metric, rewards) is None:
            metric(config.best_metric)


def check_mix(config: LeafConfig) -> None:
    """Refuse lanes of prompts that updates cannot take equally many completions from."""
    size = config.completions_per_update
    if size is not None and (config.prompts_per_rollout % config.mix_prompts or size % config.mix_prompts):
        raise ConfigError(
            f"mix_prompts is {config.mix_prompts}; it must divide prompts_per_rollout, "
            f"{config.prompts_per_rollout}, and completions_per_update, {size}."
        )


def check_tracker(name: str) -> None:
    """Refuse a tracker that Accelerate does not know or whose package is missing; Accelerate would leave it out."""
    known = [one for one in LoggerType.list() if one != "all"]
    if name not in known and name not in LOGGER_TYPE_TO_CLASS:
        raise ConfigError(f"track_with is {name!r}; allowed are {', '.join(known)}.{did_you_mean(name, known)}")
    if name in known and name not in [one.value for one in get_available_trackers()]:
        package = f"pip install {name.replace('_', '-')}"
        how = install_extra(name) if name == "tensorboard" else package
        raise ConfigError(f"track_with is {name!r}, whose package is not installed: {how}.")


def build_optimizer(parameters: Iterable[Any], config: RunConfig) -> torch.optim.AdamW:
    """Make AdamW over parameters or parameter groups with the recipe's learning rate, betas and weight decay."""
    first, second = config.adam_betas
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(first, second), weight_decay=config.weight_decay
    )


class Length(NamedTuple):
    """How long a run is, in steps of its recipe.

    Attributes:
        steps: all of them.
        cycle: how many the learning-rate schedule covers: all, or those of one epoch.
    """

    steps: int
    cycle: int


def run_length(config: RunConfig, num_rows: int) -> Length:
    """Compute how long a run on so many training rows is."""
    if isinstance(config, LeafConfig) and config.epochs is not None:
        epoch = math.ceil(num_rows / config.prompts_per_rollout)
        return Length(config.epochs * epoch, epoch)
    assert config.max_steps is not None  # a recipe without it gets a default or has epochs
    return Length(config.max_steps, config.max_steps)


def is_warm_restart(length: Length, step: int) -> bool:
    """Tell whether a step (counted from 1) begins an epoch after the first; the optimiser then begins afresh."""
    return step > 1 and (step - 1) % length.cycle == 0


def build_schedule(
    optimizer: torch.optim.Optimizer,
    config: RunConfig,
    updates: int,
    *,
    restarts: bool = False,
    updates_per_step: int = 1,
) -> torch.optim.lr_scheduler.LambdaLR:
    """Make the learning-rate schedule: linear warm-up, then cosine, linear or constant to `min_lr_ratio` of the peak.

    It covers so many optimiser updates. With `restarts` it then begins again, otherwise it keeps its last value.

    The schedule `published` is that of LEAF's code (arXiv 2606.07610): a warm-up over 5 % of a horizon, then
    max(min_lr_ratio, cosine to 0) that runs on beyond it. The horizon counts rollouts and the schedule is stepped at
    every update, `updates_per_step` times as often. With 8 that makes four cycles, and the run ends near 0.7 of the
    peak.
    """
    factor = Factor(config, max(updates, 1), restarts, updates_per_step)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@dataclass
class Factor:
    """Compute the share of the peak learning rate at an update; see `build_schedule`.

    Attributes:
        config: the recipe.
        total: updates that the schedule covers. A resumed run of version 0.1 may have another number.
        restarts: whether it begins again after them.
        updates_per_step: for the schedule `published`.
    """

    config: RunConfig
    total: int
    restarts: bool
    updates_per_step: int = 1

    def __call__(self, step: int) -> float:
        """Give the share at an update, counted from 0."""
        config = self.config
        step = step % self.total if self.restarts else step
        if config.schedule == "published":
            return self._published(step)
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        progress = min((step - config.warmup_steps) / max(self.total - config.warmup_steps, 1), 1.0)
        decay = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
        return config.min_lr_ratio + (1 - config.min_lr_ratio) * decay[config.schedule]

    def _published(self, step: int) -> float:
        horizon = self.total / self.updates_per_step
        warmup = 0.05 * horizon
        if step < warmup:
            return step / warmup
        progress = (step - warmup) / (horizon - warmup)
        return max(self.config.min_lr_ratio, 0.5 * (1 + math.cos(math.pi * progress)))


def seed_dropout(seed: int, step: int, *, update: int = 0, process: int = 0) -> None:
    """Seed torch, and so dropout, for one optimiser update.

    The seed is a function of its arguments, so a resumed run draws what the uninterrupted one draws. Each process has
    a stream of its own: the same mask on different completions would be noise that does not average out.

    Args:
        seed: of the recipe.
        step: counted from 1.
        update: number of the update in its step, counted from 0.
        process: index of this process.
    """
    # The streams from 0 on are those of the prompts' samplers.
    torch.manual_seed(step_generator(seed, step, -1 - update).initial_seed() + process)
