"""Samplers by their name in a recipe, and what each of them takes."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from leaf.config import LeafConfig
from leaf.credit.correction import Correction
from leaf.engines.vllm.options import VllmOptions, vllm_options
from leaf.engines.vllm.sampler import VllmSampler
from leaf.errors import ConfigError
from leaf.model.demo import model_cache
from leaf.model.sampler import LocalSampler, Sampler
from leaf.runs.directory import run_path


def check_sampler(config: LeafConfig) -> None:
    """Refuse a recipe whose sampler does not take its options, or does not draw as the recipe says.

    Raises:
        ConfigError: it is one.
    """
    if config.sampler == "local":
        if config.sampler_options:
            raise ConfigError(
                f"sampler_options is {config.sampler_options} and sampler is local, which takes none. Set "
                "sampler=vllm, or leave the options out."
            )
        return
    vllm_options(config.sampler_options)
    if config.rollout == "distinct":
        raise ConfigError(
            "rollout is distinct and sampler is vllm: a server draws completions independently. Set sampler=local, or "
            "rollout=independent with a rule for it."
        )
    if config.top_p < 1:
        # The policy's log-probabilities are those of all tokens, the server's those of the nucleus. They would differ
        # by its mass, up to -log(top_p), at every token, which would hide a server that is wrong by as much.
        raise ConfigError(
            f"top_p is {config.top_p} and sampler is vllm: a server's log-probabilities are then those of the nucleus, "
            "and can be neither checked against the policy's nor weighed by them. Set top_p=1. (eval_top_p may be any.)"
        )


def make_sampler(config: LeafConfig, say: Callable[[str], None] = print, *, beside: str = "") -> Sampler:
    """Make the sampler of a recipe.

    Args:
        config: the recipe.
        say: takes lines about servers that go and come back.
        beside: tells this sampler from that of the recipe's run, which may be at work at the same time.

    Raises:
        ConfigError: see `check_sampler`.
    """
    check_sampler(config)
    if config.sampler == "local":
        return LocalSampler()
    options = vllm_options(config.sampler_options)
    return VllmSampler(options, _folder(config, options, beside), say=say)


def _folder(config: LeafConfig, options: VllmOptions, beside: str) -> Path:
    """Name the folder for the adapters of a run: the same in all its processes, and in no other run."""
    run = sha256(f"{run_path(config).absolute()}{beside}".encode()).hexdigest()[:12]
    return (Path(options.adapter_dir) if options.adapter_dir else model_cache() / "adapters") / run


def allowed_by(config: LeafConfig) -> float | None:
    """Find how far the recipe lets a sampler elsewhere be off, in nats per token; None leaves it to the precision."""
    return None if config.sampler == "local" else vllm_options(config.sampler_options).tolerance


def overlaps(config: LeafConfig) -> bool:
    """Tell whether the next rollout is drawn while the update runs."""
    return config.sampler != "local" and vllm_options(config.sampler_options).overlap


def weighing(config: LeafConfig) -> Correction:
    """Find how the recipe weighs what a sampler elsewhere drew."""
    return Correction() if config.sampler == "local" else vllm_options(config.sampler_options).weighing()
