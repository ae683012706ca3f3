"""TRL's GRPOTrainer with leaf's credit: one advantage per token, by any credit rule, for text and vision models.

TRL samples, rewards, scores and updates as ever. Only the advantages are replaced.
"""

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from leaf.credit import BatchCredit, CreditRule
from leaf.engines.common import find_rule, group_advantages, reads
from leaf.errors import ConfigError, DataError, install_extra

try:
    from trl.models.utils import disable_gradient_checkpointing
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer
except ModuleNotFoundError as error:
    if error.name is None or error.name.split(".")[0] != "trl":
        raise
    raise ModuleNotFoundError(
        f"leaf.engines.trl needs TRL, which is not installed: {install_extra('trl')}.", name="trl"
    ) from error

# What `generation_kwargs` may hold where the log-probabilities are computed afterwards: it changes no probability.
_PLAIN = "max_new_tokens max_length use_cache cache_implementation disable_compile num_return_sequences".split()


class LeafGRPOTrainer(GRPOTrainer):
    """Train as TRL's GRPOTrainer does, with the advantages of a credit rule of leaf.

    A group is what TRL calls one: the `num_generations` completions of a prompt, over all processes. Unscored
    completions (all reward functions gave None) get no credit and count in no mean. Rules that read surprisal get that
    of vLLM where it samples, else one more forward pass computes it.

    `scale_rewards` group and none make no difference: the rule says how credit is scaled.

    Args:
        model, reward_funcs, args, train_dataset, eval_dataset: of GRPOTrainer.
        credit: name of a credit rule, a function `rule(tree, rewards, *, surprisal=None)`, or a `BatchCredit`.
        credit_options: of the rule, by name.
        others: GRPOTrainer's other arguments.

    Raises:
        ConfigError: the rule is unknown or does not take its options, or TRL was asked for what does not go with
            credit per token.
    """

    _tag_names: ClassVar = ["trl", "grpo", "leaf"]  # of the model card
    model: Any  # transformers writes that it may be None; here there always is one
    args: Any

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        credit: str | CreditRule | BatchCredit = "leaf",
        credit_options: Mapping[str, Any] | None = None,
        **others: Any,
    ):
        self.rule = find_rule(credit, **(credit_options or {}))
        self.reads = reads(self.rule)
        if others.get("tools") or others.get("environment_factory") is not None:
            raise ConfigError(
                "tools and environment_factory put other tokens between those that the model said, and leaf credits "
                "completions that are one stretch of tokens. Train without them."
            )
        if args is not None:
            check_config(args, computes="surprisal" in self.reads and others.get("rollout_func") is None)
        self._scored: Tensor | None = None
        self._said: list[list[int]] = []
        super().__init__(model, reward_funcs, args, train_dataset, eval_dataset, **others)
        if "surprisal" in self.reads and self.use_vllm and self.vllm_mode == "server":
            self._check_server()

    def _check_server(self) -> None:
        """Refuse a vLLM server whose log-probabilities are not those of the distribution it draws from."""
        if not self.accelerator.is_main_process:  # only the main process talks to the server
            return
        mode = self.vllm_generation.vllm_client.get_server_info()["model_config"]["logprobs_mode"]
        if mode != "processed_logprobs":
            raise ConfigError(
                f"The vLLM server runs with --logprobs-mode {mode}, which leaves temperature and top-p out of the "
                "surprisal that this credit rule reads. Start it with --logprobs-mode processed_logprobs."
            )

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: list[list[int]]
    ) -> Tensor:
        """Keep the rewards of all processes, (N, functions), and what was said here."""
        self._said = completion_ids_list
        scored = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._scored = scored
        return scored

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        """Replace TRL's advantages (B,) by the rule's, (B, T)."""
        self._scored = None
        output = super()._generate_and_score_completions(inputs)
        if self._scored is None:
            raise ConfigError("This version of TRL does not call _calculate_rewards; leaf is tested with TRL 1.16.")
        if "tool_mask" in output:
            raise DataError(
                "The rollout function gave an env_mask: tokens that the model did not say are inside its completions, "
                "and leaf credits completions that are one stretch of tokens."
            )
        output["advantages"] = self._credit(output)
        return output

    def _credit(self, output: dict[str, Any]) -> Tensor:
        """Compute the advantages (B, T) of this process's completions, with the groups of all processes in view."""
        ids = output["completion_ids"]
        # TRL's own mask leaves truncated completions out if asked to. Their rewards count, here as there.
        lengths = torch.tensor([len(said) for said in self._said], device=ids.device)
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
        log_probs, entropy = self._sampled_under(output, mask)
        earned = self._earned()
        if log_probs is not None:
            log_probs = self._everyone(log_probs)
        everyone = self._everyone(mask)
        if log_probs is not None:  # vLLM gives NaN where it could not tell; leaf's own loop leaves these unscored, too
            odd = (~log_probs.isfinite() & everyone.bool()).any(1)
            earned = earned.masked_fill(odd, torch.nan)
            log_probs = log_probs.masked_fill(odd[:, None], 0.0)
        size: Any = self.num_generations if self.model.training else self.num_generations_eval
        advantages = group_advantages(
            torch.arange(len(everyone)) // size,  # TRL deals the completions of a prompt out next to each other
            self._everyone(ids),
            everyone,
            log_probs,
            earned,
            self.rule,
            entropy=None if entropy is None else self._everyone(entropy),
        )
        self._show(advantages, everyone)
        first = self.accelerator.process_index * len(ids)
        return advantages[first : first + len(ids), : ids.shape[1]]

    def _earned(self) -> Tensor:
        """Sum up what all completions earned, (N,), by TRL's weights; NaN where no function scored one."""
        assert self._scored is not None
        weighted = self._scored * self.reward_weights.to(self._scored.device)
        return weighted.nansum(1).masked_fill(self._scored.isnan().all(1), torch.nan)

    def _sampled_under(self, output: dict[str, Any], mask: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Find the log-probabilities (B, T) under which the tokens were drawn, and the entropy there, if it is read."""
        given = output.get("sampling_per_token_logps")
        if not self.reads or (given is not None and "entropy" not in self.reads):
            return given if self.reads else None, None
        # Images and what else a forward pass takes stand in the output under the names of the method's arguments.
        forward = self._get_per_token_logps_and_entropies
        taken = {name: output[name] for name in inspect.signature(forward).parameters if name in output}
        batch = self.args.per_device_train_batch_size if self.model.training else self.args.per_device_eval_batch_size
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            log_probs, entropy, _ = forward(
                self.model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], 1),
                torch.cat([output["prompt_mask"], mask], 1),
                mask.shape[1],
                batch_size=batch,
                compute_entropy="entropy" in self.reads,
                **taken,
            )
        return log_probs if given is None else given, entropy

    def _everyone(self, values: Tensor) -> Tensor:
        """Gather (B, T) of every process to (N, T), at the width of the longest, with 0 as padding."""
        padded = self.accelerator.pad_across_processes(values.contiguous(), dim=1)
        gathered: Any = self.accelerator.gather(padded)
        return gathered

    def _show(self, advantages: Tensor, mask: Tensor) -> None:
        """Put the mean advantage of each completion into TRL's table, in place of the one that TRL computed."""
        shown = self._logs["advantages"]
        for _ in range(min(len(advantages), len(shown))):
            shown.pop()
        shown.extend((advantages.sum(1) / mask.sum(1).clamp_min(1)).tolist())


def check_config(args: GRPOConfig, *, computes: bool) -> None:
    """Refuse settings of TRL that credit per token would change the meaning of.

    Args:
        args: TRL's.
        computes: whether the rule reads surprisal that no rollout function gives.

    Raises:
        ConfigError: which, and what to set.
    """
    if args.multi_objective_aggregation != "sum_then_normalize":
        raise ConfigError(
            f"multi_objective_aggregation is {args.multi_objective_aggregation}, which scales every reward function "
            "by itself; a credit rule sees one reward per completion. Set it to sum_then_normalize."
        )
    if args.scale_rewards == "batch":
        raise ConfigError(
            "scale_rewards is batch, and the credit rule says how credit is scaled. Leave scale_rewards out and choose "
            "a rule that looks at the whole batch, such as credit='leaf_batch' or 'reinforce_pp_baseline'."
        )
    if args.loss_type == "vespo":
        raise ConfigError(
            "loss_type is vespo, which weighs a whole completion by the sign of its advantage; here every token has "
            "its own. Set loss_type to dapo, grpo, dr_grpo, bnpo, cispo, sapo or luspo."
        )
    if args.off_policy_mask_threshold is not None:
        raise ConfigError(
            "off_policy_mask_threshold drops whole completions by the sign of their advantage; here every token has "
            "its own. Leave it out."
        )
    if computes and not args.use_vllm:
        _check_sampling(args)


def _check_sampling(args: GRPOConfig) -> None:
    """Refuse to sample from another distribution than the one whose log-probabilities are computed afterwards."""
    kwargs: Any = args.generation_kwargs or {}
    shaped = {
        "top_p": args.top_p < 1,
        "top_k": args.top_k > 0,
        "min_p": bool(args.min_p),
        "repetition_penalty": args.repetition_penalty != 1,
        **{f"generation_kwargs {name}": True for name in kwargs if name not in _PLAIN},
    }
    found = [name for name, used in shaped.items() if used]
    if found:
        raise ConfigError(
            f"This credit rule reads the surprisal under the distribution that tokens are drawn from, and TRL computes "
            f"it without {', '.join(found)}. Leave {'it' if len(found) == 1 else 'them'} out, sample with vLLM "
            "(use_vllm=True), or choose a rule that reads no surprisal, such as credit='grpo'."
        )
