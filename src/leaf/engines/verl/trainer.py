"""verl's trainers with leaf's credit: they replace the advantages and leave everything else to verl.

trainer.v1.trainer_mode=leaf_sync algorithm.adv_estimator=grpo
+algorithm.leaf.rule=leaf +algorithm.leaf.options.max_boundaries=2
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transfer_queue as tq  # pyright: ignore[reportMissingImports]
from omegaconf import DictConfig, OmegaConf  # pyright: ignore[reportMissingImports]
from tensordict import TensorDict  # pyright: ignore[reportMissingImports]
from verl.trainer.ppo.utils import need_critic  # pyright: ignore[reportMissingImports]
from verl.trainer.ppo.v1 import (  # pyright: ignore[reportMissingImports]
    PPOTrainerColocateAsync,
    PPOTrainerSeparateAsync,
    PPOTrainerSync,
    register_trainer,
)
from verl.workers.utils.padding import response_to_nested  # pyright: ignore[reportMissingImports]

from leaf.credit.registry import find_credit
from leaf.engines.common import group_advantages
from leaf.errors import ConfigError, DataError, did_you_mean, shown
from leaf.plugins import load_plugins

PREFIX = "leaf_"  # of the names of verl's trainers
_HOW_TO_RECORD = {
    "surprisal": (
        "Set actor_rollout_ref.rollout.calculate_log_probs=True and "
        "actor_rollout_ref.rollout.logprobs_mode=processed_logprobs."
    ),
    "entropy": "Set algorithm.rollout_correction.bypass_mode=False, so that verl scores what was sampled.",
}


@dataclass(frozen=True)
class Credit:
    """What `algorithm.leaf` says.

    Attributes:
        rule: a name of `CREDIT_RULES` or `BATCH_RULES`.
        options: of the rule.
        plugins: modules or Python files with rules of the user's own.
    """

    rule: str = "leaf"
    options: dict[str, Any] = field(default_factory=dict)
    plugins: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, config: DictConfig) -> "Credit":
        """Read and check the part of verl's configuration that is leaf's.

        Raises:
            ConfigError: it has an unknown key, or the rule is unknown or does not take its options.
        """
        given = OmegaConf.select(config, "algorithm.leaf")
        given = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else given or {}
        if not isinstance(given, Mapping):
            raise ConfigError(f"algorithm.leaf is {shown(given)}; give +algorithm.leaf.rule=leaf.")
        allowed = tuple(cls.__dataclass_fields__)
        for key in given:
            if key not in allowed:
                raise ConfigError(
                    f"algorithm.leaf has the key {key!r}.{did_you_mean(key, allowed)} Allowed are {', '.join(allowed)}."
                )
        credit = cls(**given)
        load_plugins(credit.plugins)
        find_credit(credit.rule, **credit.options)
        return credit


def sampled_exactly(config: DictConfig) -> bool:
    """Tell whether the log-probabilities of verl's rollout are those of the distribution that was drawn from."""
    rollout = config.actor_rollout_ref.rollout
    if not rollout.calculate_log_probs:
        return False
    plain = rollout.temperature == 1 and rollout.top_p == 1 and rollout.top_k in (-1, 0)
    return plain or rollout.get("logprobs_mode") == "processed_logprobs"


class LeafCredit:
    """Replace the advantages of a trainer of verl; stands before it among the bases."""

    def __init__(self, config: DictConfig):
        if need_critic(config):
            raise ConfigError(
                f"algorithm.adv_estimator is {config.algorithm.adv_estimator}, which trains a critic that leaf's "
                "credit has no use for. Set algorithm.adv_estimator=grpo; leaf replaces its advantages."
            )
        self.credit = Credit.of(config)
        self.exact = sampled_exactly(config)
        _try(self.credit, exact=self.exact, entropy=not bypasses(config))
        # verl compares the mode with its own names, and takes every other one for an asynchronous trainer.
        config.trainer.v1.trainer_mode = config.trainer.v1.trainer_mode.removeprefix(PREFIX)
        super().__init__(config)  # pyright: ignore[reportCallIssue]

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """Let verl compute what it does beside advantages, and put leaf's in the place of its own.

        Beside them it penalises KL in the rewards, weighs by importance and rejects. A token that it rejects leaves the
        loss and not the tree: it was sampled, and the rewards of others speak of it.
        """
        _refuse_several_outputs(batch.keys)
        names = ["uid", "responses", "response_mask", "rollout_log_probs", "entropy"]
        before = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=names)
        batch = super()._compute_advantage(batch, metrics)  # pyright: ignore[reportAttributeAccessIssue]
        rewards = "token_level_rewards" if self.config.algorithm.use_kl_in_reward else "rm_scores"  # pyright: ignore[reportAttributeAccessIssue]
        after = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=[rewards])

        padded = before.exclude("uid").to_padded_tensor()
        real = torch.tensor([not tag.get("is_padding", False) for tag in batch.tags])
        uid = [one for one, is_real in zip(_plain(before["uid"]), real.tolist(), strict=True) if is_real]
        entropy = padded.get("entropy", None)
        advantages = torch.zeros(padded["responses"].shape)
        advantages[real] = group_advantages(
            uid,
            padded["responses"][real],
            padded["response_mask"][real],
            padded["rollout_log_probs"][real] if self.exact else None,
            after.to_padded_tensor()[rewards].sum(1)[real],
            self.credit.rule,
            entropy=None if entropy is None else entropy[real],
            how_to_record=_HOW_TO_RECORD,
            **self.credit.options,
        )
        nested = response_to_nested(advantages, before["response_mask"])
        fields = TensorDict({"advantages": nested, "returns": nested.clone()}, batch_size=len(batch))
        return tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id, fields=fields)


def bypasses(config: DictConfig) -> bool:
    """Tell whether verl takes the rollout's log-probabilities as they are and computes no entropy."""
    return bool(OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode", default=False))


def _try(credit: Credit, *, exact: bool, entropy: bool) -> None:
    """Credit two completions with what the engine will give, so that a rule which reads more is refused at once."""
    ones = torch.ones(2, 2)
    group_advantages(
        ["a", "a"],
        torch.tensor([[0, 0], [0, 1]]),
        ones,
        -ones if exact else None,
        torch.tensor([0.0, 1.0]),
        credit.rule,
        entropy=ones if entropy else None,
        how_to_record=_HOW_TO_RECORD,
        **credit.options,
    )


def _plain(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _refuse_several_outputs(keys: list[str]) -> None:
    """Refuse agent loops that answer a prompt in several pieces; a key is {uid}_{session}_{piece}."""
    if any(key.rsplit("_", 1)[-1] != "0" for key in keys):
        raise DataError(
            "An agent loop gave several outputs for one completion, as tools and summaries do; leaf credits "
            "completions that are one stretch of tokens. Use single_turn_agent."
        )


@register_trainer("leaf_sync")
class LeafTrainerSync(LeafCredit, PPOTrainerSync):
    """verl's synchronous trainer with leaf's credit."""


@register_trainer("leaf_colocate_async")
class LeafTrainerColocateAsync(LeafCredit, PPOTrainerColocateAsync):
    """verl's asynchronous trainer on the same GPUs with leaf's credit."""


@register_trainer("leaf_separate_async")
class LeafTrainerSeparateAsync(LeafCredit, PPOTrainerSeparateAsync):
    """verl's asynchronous trainer on GPUs of its own with leaf's credit."""
