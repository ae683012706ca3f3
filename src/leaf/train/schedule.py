"""Pieces that every stage trains with: start-up checks, optimiser, learning-rate schedule, seeds of dropout."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType

from leaf.config import LeafConfig, RunConfig, SftConfig
from leaf.errors import ConfigError, did_you_mean
from leaf.evaluation.registry import metric
from leaf.model.draws import step_generator


def check_stage(config: RunConfig) -> None:
    """Refuse what would fail only once a run has begun: a metric that cannot run, a tracker that the stage has not."""
    if config.track_with is not None and not isinstance(config, LeafConfig):
        raise ConfigError(
            f"track_with is {config.track_with!r}, and stage {config.stage} writes only metrics.jsonl and "
            "validation.jsonl; only stage rl has trackers. Set track_with=null."
        )
    if config.track_with is not None:
        check_tracker(config.track_with)
    if isinstance(config, LeafConfig | SftConfig) and config.eval_every:
        metric(config.best_metric)


def check_tracker(name: str) -> None:
    """Refuse a tracker that Accelerate does not know or whose package is missing; Accelerate would leave it out."""
    known = [one for one in LoggerType.list() if one != "all"]
    if name not in known and name not in LOGGER_TYPE_TO_CLASS:
        raise ConfigError(f"track_with is {name!r}; allowed are {', '.join(known)}.{did_you_mean(name, known)}")
    if name in known and name not in [one.value for one in get_available_trackers()]:
        extra = "'leaf-speech[tensorboard]'" if name == "tensorboard" else name.replace("_", "-")
        raise ConfigError(f"track_with is {name!r}, whose package is not installed: pip install {extra}")


def build_optimizer(parameters: Iterable[Any], config: RunConfig) -> torch.optim.AdamW:
    """Make AdamW over parameters or parameter groups with the recipe's learning rate and weight decay."""
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def in_steps(config: LeafConfig, num_rows: int) -> LeafConfig:
    """Return the recipe with `epochs` spelled out: max_steps, and a schedule that is laid out for one epoch.

    Raises:
        ConfigError: the recipe asks for other numbers of steps as well.
    """
    if config.epochs is None:
        return config
    steps = math.ceil(num_rows / config.prompts_per_rollout)
    # The recipe of a run has both spelled out already; with more epochs, or on other rows, they are anew.
    spelled_out = config.schedule_steps is not None and config.max_steps % config.schedule_steps == 0
    if not spelled_out and (config.schedule_steps, config.max_steps) != (None, LeafConfig().max_steps):
        raise ConfigError(
            f"max_steps is {config.max_steps}, schedule_steps {config.schedule_steps} and epochs {config.epochs}, "
            f"which makes it {config.epochs * steps} steps of a schedule of {steps}. Set epochs=null, or leave the "
            "others out."
        )
    return replace(config, max_steps=config.epochs * steps, schedule_steps=steps)


def is_warm_restart(config: LeafConfig, step: int) -> bool:
    """Tell whether a step (counted from 1) begins an epoch after the first; the optimiser then begins afresh."""
    return config.epochs is not None and step > 1 and (step - 1) % (config.schedule_steps or config.max_steps) == 0


def build_schedule(
    optimizer: torch.optim.Optimizer, config: RunConfig, updates_per_step: int = 1, *, restarts: bool = False
) -> torch.optim.lr_scheduler.LambdaLR:
    """Make the learning-rate schedule: linear warm-up, then cosine, linear or constant to `min_lr_ratio` of the peak.

    It counts optimiser updates. With `restarts` it begins again each time it has ended, otherwise it keeps its last
    value.
    """
    total = max((config.schedule_steps or config.max_steps) * updates_per_step, 1)

    def factor(step: int) -> float:
        step = step % total if restarts else step
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        progress = min((step - config.warmup_steps) / max(total - config.warmup_steps, 1), 1.0)
        decay = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
        return config.min_lr_ratio + (1 - config.min_lr_ratio) * decay[config.schedule]

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


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
