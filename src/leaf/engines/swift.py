"""ms-swift's GRPO with leaf's credit, by a file that is given to it as `--external_plugins`.

ms-swift samples, rewards and updates as ever, for text, vision and its audio models. Only the advantages are replaced.
It needs an environment of its own; of leaf this imports what runs with torch alone.
"""

from typing import Any, ClassVar

import torch
from accelerate.utils import gather_object
from swift.rlhf_trainers import GRPOTrainer  # pyright: ignore[reportMissingImports]
from swift.trainers.trainer_factory import TrainerFactory  # pyright: ignore[reportMissingImports]
from torch import Tensor

from leaf.credit.batches import BatchCredit
from leaf.credit.rules import CreditRule
from leaf.engines.common import find_rule, group_advantages, reads
from leaf.errors import ConfigError, DataError, shown

# Settings of ms-swift that credit per token would change the meaning of → what they may be.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "advantage_estimator": ("grpo",),
    "scale_rewards": (None, "group", "none"),
    "kl_in_reward": (None, False),
    "loss_type": (None, "grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"),
    "off_policy_sequence_mask_delta": (None,),
    "advantage_reweight": (None,),
    "multi_turn_scheduler": (None,),
    "use_gym_env": (None, False),
}
# The sampling whose log-probabilities a forward pass computes. vLLM gives those of any other.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "top_p": (None, 1),
    "top_k": (None, -1, 0),
    "min_p": (None, 0),
    "repetition_penalty": (None, 1),
}


def use_leaf(credit: str | CreditRule | BatchCredit = "leaf", **options: Any) -> None:
    """Let `swift rlhf --rlhf_type grpo` train with a credit rule; call it in a file given as `--external_plugins`.

    Args:
        credit: name of a credit rule, a function `rule(tree, rewards, *, surprisal=None)`, or a `BatchCredit`.
        options: of the rule.

    Raises:
        ConfigError: the rule is unknown or does not take its options.
    """
    LeafSwiftTrainer.rule = find_rule(credit, **options)
    LeafSwiftTrainer.reads = reads(LeafSwiftTrainer.rule)
    TrainerFactory.TRAINER_MAPPING["grpo"] = f"{LeafSwiftTrainer.__module__}.{LeafSwiftTrainer.__qualname__}"


class LeafSwiftTrainer(GRPOTrainer):
    """ms-swift's GRPOTrainer, whose advantages (B, T) are those of a credit rule; `use_leaf` puts it in place.

    Raises:
        ConfigError: ms-swift was asked for what does not go with credit per token.
    """

    rule: ClassVar[Any] = None
    reads: ClassVar[set[str]] = set()

    def __init__(self, *given: Any, **named: Any):
        check_settings(named["args"], computes="surprisal" in self.reads and not named["args"].use_vllm)
        super().__init__(*given, **named)
        if self.template.sequence_parallel_size > 1:
            raise ConfigError("sequence_parallel_size above 1 was not tried with leaf's credit. Set it to 1.")

    def _postprocess_batch(self, samples: list[Any], batch_encoded_inputs: list[dict[str, Any]]) -> None:
        """Let ms-swift do its part, and replace the advantages of every micro-batch by the rule's."""
        super()._postprocess_batch(samples, batch_encoded_inputs)
        if self.dynamic_num_samples:
            raise ConfigError("The rollout changed the number of completions, so leaf cannot tell groups apart.")
        if any(inputs["grpo_batch"].teacher_per_token_logps is not None for inputs in batch_encoded_inputs):
            raise ConfigError(
                "A teacher has advantages of its own, which those of the credit rule would replace. Train without "
                "teacher_model and without a column teacher_prompt."
            )
        chunks = self.split_by_mini_batches(samples)
        here = [
            one
            for chunk, inputs in zip(chunks, batch_encoded_inputs, strict=True)
            for one in self._completions(chunk, inputs)
        ]
        everyone = gather_object(here)  # in the order of the processes, as the rewards are
        advantages = self._credit(everyone)
        first = self.accelerator.process_index * len(here)
        mine = iter(advantages[first : first + len(here)])
        for inputs in batch_encoded_inputs:
            batch = inputs["grpo_batch"]
            mask = batch.completion_mask.bool()
            batch.advantages = torch.zeros(mask.shape, device=mask.device)
            for row, places in enumerate(mask):
                count = int(places.sum())
                batch.advantages[row, places] = next(mine)[:count].to(mask.device)
        shown = self._logs["advantages"]
        for _ in range(min(len(everyone), len(shown))):
            shown.pop()
        lengths = torch.tensor([max(len(ids), 1) for ids, *_ in everyone])
        shown.extend((advantages.sum(1) / lengths).tolist())

    def _completions(self, samples: list[Any], inputs: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Read token ids of what a micro-batch said, and log-probabilities and entropies where the rule reads them."""
        batch = inputs["grpo_batch"]
        log_probs, entropy = self._sampled_under(inputs)
        found = []
        for row, (sample, mask) in enumerate(zip(samples, batch.completion_mask.bool(), strict=True)):
            ids = [int(token) for token in sample.encoded["labels"] if token != -100]
            places = mask.nonzero().flatten()
            if len(ids) != len(places) or (len(ids) and int(places[-1] - places[0]) + 1 != len(ids)):
                raise DataError(
                    f"A completion of {len(ids)} tokens has {len(places)} places in the loss, or places with gaps, as "
                    "turns of a tool leave them; leaf credits completions that are one stretch of tokens."
                )
            read = (None if one is None else one[row, mask].float().tolist() for one in (log_probs, entropy))
            found.append((ids, *read))
        return found

    def _sampled_under(self, inputs: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """Find the log-probabilities (B, T) under which the tokens were drawn, and the entropy, where they are read."""
        batch, entropy = inputs["grpo_batch"], None
        if "entropy" in self.reads:
            with torch.no_grad():
                entropy = self._get_per_token_logps_and_entropies(
                    self.model, inputs["model_inputs"], batch, compute_entropy=True
                )[1]
        if "surprisal" not in self.reads:
            return None, entropy
        if not self.args.use_vllm:
            return batch.old_per_token_logps, entropy
        if batch.rollout_per_token_logps is None:
            raise DataError(
                "vLLM gave no log-probability of every token, and this credit rule reads their surprisal. Use a vLLM "
                "of 0.10.2 or later, or choose a rule that reads none, such as grpo."
            )
        return batch.rollout_per_token_logps, entropy

    def _credit(self, everyone: list[tuple[Any, ...]]) -> Tensor:
        """Compute the advantages (N, T) of all completions."""
        ids, log_probs, entropy = (list(column) for column in zip(*everyone, strict=True))
        size = self.num_generations if self.model.training else self.num_generations_eval
        scored = self._rewards_per_func.cpu()
        earned = (scored * self.reward_weights.cpu()).nansum(1).masked_fill(scored.isnan().all(1), torch.nan)
        return group_advantages(
            torch.arange(len(ids)) // size,  # ms-swift deals the completions of a prompt out next to each other
            _padded(ids, torch.long),
            _padded([[1] * len(one) for one in ids], torch.long),
            _padded(log_probs, torch.float32) if "surprisal" in self.reads else None,
            earned,
            self.rule,
            entropy=_padded(entropy, torch.float32) if "entropy" in self.reads else None,
        )


def check_settings(args: Any, *, computes: bool) -> None:
    """Refuse settings of ms-swift that credit per token would change the meaning of.

    Args:
        args: ms-swift's.
        computes: whether the rule reads surprisal that ms-swift computes by itself, without vLLM.

    Raises:
        ConfigError: which, and what to set.
    """
    for name, allowed in {**_ALLOWED, **(_PLAIN if computes else {})}.items():
        value = getattr(args, name, None)
        if value not in allowed:
            advice = ", or sample with vLLM" if name in _PLAIN else ""
            raise ConfigError(
                f"{name} is {shown(value)}, which does not go with leaf's credit per token; allowed are "
                f"{', '.join(str(one) for one in allowed if one is not None)}{advice}."
                if any(one is not None for one in allowed)
                else f"{name} is {shown(value)}, which does not go with leaf's credit per token. Leave it out."
            )


def _padded(rows: list[Any], dtype: torch.dtype) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=dtype) for row in rows], batch_first=True)
