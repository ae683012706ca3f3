"""The RL loop: rollout, reward, credit, update. It does not know which credit rule runs."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate import Accelerator
from torch import Tensor

from leaf.checks import check_policy
from leaf.config import LeafConfig
from leaf.credit import credit_rule, policy_loss, token_weights
from leaf.errors import ConfigError, DataError, RunError
from leaf.evaluate import Evaluation, evaluate
from leaf.memory import available_bytes, peak_bytes, reset_peak, token_budget, within_memory
from leaf.plugins import load_plugins
from leaf.records import group_record, rollout_statistics
from leaf.rewards import RewardSum
from leaf.run import RunDirectory
from leaf.speech.policy import Policy
from leaf.speech.sampling import Group, sample
from leaf.training import batch_indices, build_optimizer, build_schedule, pick_device, step_generator, take

# Beyond these a larger batch of rows is no faster: caches on the CPU, full occupancy on a GPU.
AUTOMATIC_BUDGET = {"cpu": 512, "cuda": 32768}


@dataclass(frozen=True)
class Rollout:
    """Hold one batch of groups with what they earned: rewards (K,), advantages (K, T) and log-probabilities (K, T)."""

    step: int
    rows: list[dict[str, Any]]
    groups: list[Group]
    rewards: list[Tensor]
    advantages: list[Tensor]
    old_log_probs: list[Tensor] | None
    ref_log_probs: list[Tensor] | None


class LeafTrainer:
    """Post-train a speech-aware LLM with a credit rule over sampled groups.

    Args:
        model: checkpoint directory or hub id, a transformers model, or a `Policy` that already carries its adapter.
        reward_funcs: names, import paths or callables with TRL's signature; default the recipe's.
        args: the recipe.
        train_dataset, eval_dataset: rows with `prompt`, `audio` and `reference`; further columns reach the rewards.
        processing_class: the processor, where `model` is a transformers model.
        peft_config: LoRA settings; default the recipe's.
        credit: a credit rule in place of the recipe's name, called as `rule(tree, rewards, surprisal=..., **options)`.
        run: the run directory to write; made from the recipe if left out.
        report: called with every line meant for a person.
        on_step: called with the record of every step in place of `report`, for a live display.
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        reward_funcs: Sequence[str | Callable[..., Any]] | None = None,
        args: LeafConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: peft.LoraConfig | None = None,
        *,
        credit: Callable[..., Tensor] | None = None,
        run: RunDirectory | None = None,
        report: Callable[[str], None] = print,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ):
        self.args = args = args or LeafConfig()
        if train_dataset is None or len(train_dataset) == 0:
            raise DataError("LeafTrainer has no training rows; pass train_dataset with prompt, audio and reference.")
        self.train_rows, self.eval_rows = train_dataset, eval_dataset
        self.rule = credit_rule(credit or args.credit, **args.credit_options)
        self.rewards = RewardSum(
            reward_funcs or args.rewards, weights=args.reward_weights, timeout_s=args.reward_timeout
        )
        self.accelerator = Accelerator(
            cpu=pick_device(args.device).type == "cpu",
            log_with=args.track_with,
            project_dir=args.output_dir,
        )
        world = self.accelerator.num_processes
        if args.prompts_per_rollout % world:
            raise ConfigError(
                f"prompts_per_rollout is {args.prompts_per_rollout}, which {world} processes cannot share equally; "
                f"choose a multiple of {world}."
            )
        torch.manual_seed(args.seed)
        self.policy = self._policy(model, processing_class, peft_config)
        self.parameters = [p for p in self.policy.parameters() if p.requires_grad]
        self.on_policy = (
            args.lora_dropout == 0.0 and args.completions_per_update is None and args.passes_per_rollout == 1
        )
        rollout = args.prompts_per_rollout * args.num_completions
        self.updates_per_rollout = args.passes_per_rollout * math.ceil(
            rollout / (args.completions_per_update or rollout)
        )
        optimizer = build_optimizer(self.parameters, args)
        schedule = build_schedule(optimizer, args, self.updates_per_rollout)
        self.model, self.optimizer = self.accelerator.prepare(self.policy, optimizer)
        self.schedule = schedule
        self.run, self.report, self.on_step = run, report, on_step
        self.best: float | None = None
        self.seconds: dict[str, float] = {}

    def _policy(self, model: Any, processor: Any, lora: peft.LoraConfig | None) -> Policy:
        args, device = self.args, self.accelerator.device
        load_plugins(args.plugins)
        if isinstance(model, Policy):
            return self._budgeted(model.to(device))
        lora = lora or peft.LoraConfig(
            r=args.lora_r,
            lora_alpha=args.lora_alpha,
            lora_dropout=args.lora_dropout,
            target_modules=args.lora_layers,
        )
        options: dict[str, Any] = {
            "temperature": args.temperature,
            "max_prompt_tokens": args.max_prompt_tokens,
            "gradient_checkpointing": args.gradient_checkpointing,
        }
        if isinstance(model, torch.nn.Module):
            if processor is None:
                raise ConfigError("A model object needs its processor: pass processing_class=AutoProcessor(...).")
            return self._budgeted(Policy.wrap(model.to(device), processor, lora=lora, **options))
        trust = args.trust_remote_code
        policy = Policy.load(
            model,
            lora=lora,
            dtype=args.dtype,
            device=device,
            trust_remote_code=trust,
            attention=args.attention,
            **options,
        )
        return self._budgeted(policy)

    def _budgeted(self, policy: Policy) -> Policy:
        """Set the token budget of the recipe, or one that the memory left beside the weights allows."""
        args = self.args
        if args.token_budget is not None:
            policy.token_budget = args.token_budget
            return policy
        # A prompt and completions that share nothing: the longest row there can be.
        prompt = args.max_prompt_tokens or 1024
        longest = prompt + args.num_completions * args.max_new_tokens
        fits = token_budget(policy.memory(), available_bytes(policy.device), longest=longest)
        policy.token_budget = min(fits, AUTOMATIC_BUDGET[policy.device.type])
        return policy

    # -- the loop ------------------------------------------------------------------------------------------------------
    def train(self, resume_from_checkpoint: bool | str | Path = False) -> RunDirectory:
        """Run the recipe to its last step and return the run directory.

        Args:
            resume_from_checkpoint: True continues the run directory of the recipe (or a path: that directory) from its
                last checkpoint.

        Raises:
            ModelError: a start-up check failed: the packed forward, or the audio does not reach the model.
            RunError: the run directory exists already and is not being resumed.
        """
        args = self.args
        start = self.start(resume_from_checkpoint)
        assert self.run is not None
        first = take(self.train_rows, range(min(2, len(self.train_rows))))
        for line in check_policy(self.policy, first):
            self._say(line)
        self._say(f"token budget: {self.policy.token_budget} padded tokens a forward")
        if args.track_with:
            self.accelerator.init_trackers("leaf")
        if start == 0 and args.eval_every:
            self._validate(0)
        for step in range(start + 1, args.max_steps + 1):
            self.seconds = {}
            began = time.perf_counter()
            reset_peak(self.policy.device)
            rollout = self.rollout(step)
            record = {"step": step, **self._statistics(rollout), **self.update(rollout)}
            record["token_budget"] = self.policy.token_budget
            record["memory/peak_gb"] = peak_bytes(self.policy.device) / 1e9
            record["learning_rate"] = self.schedule.get_last_lr()[0]
            record |= {f"seconds/{stage}": value for stage, value in self.seconds.items()}
            record["seconds/step"] = time.perf_counter() - began
            self._log(step, record, rollout)
            last = step == args.max_steps
            if args.eval_every and (last or step % args.eval_every == 0):
                self._validate(step)
            if last or step % args.save_every == 0:
                self._save(step)
        if args.track_with:
            self.accelerator.end_training()
        return self.run

    def start(self, resume: bool | str | Path = False) -> int:
        """Make the run directory (or reopen it) ahead of `train`, and return the last step done."""
        if resume:
            self.run = RunDirectory.open(self.args.output_dir or "runs/run" if resume is True else resume)
            return self._restore()
        if self.run is None:
            if self.accelerator.is_main_process:
                self.run = RunDirectory.create(self.args)
            self.accelerator.wait_for_everyone()
            self.run = self.run or RunDirectory(self.args.output_dir or "runs/run")
        return 0

    def rollout(self, step: int) -> Rollout:
        """Embed this step's prompts, sample groups, score them with rewards and credit."""
        args, world = self.args, self.accelerator.num_processes
        with self._stage("embed"):
            indices = batch_indices(len(self.train_rows), args.prompts_per_rollout, step - 1, args.seed)
            rows = take(self.train_rows, indices[self.accelerator.process_index :: world])
            prompts = self.policy.embed(rows)
        with self._stage("sample"):
            groups = within_memory(
                self.policy,
                lambda: sample(
                    self.policy,
                    prompts,
                    num_completions=args.num_completions,
                    max_new_tokens=args.max_new_tokens,
                    temperature=args.temperature,
                    top_p=args.top_p,
                    generator=step_generator(args.seed, step, self.accelerator.process_index),
                ),
            )
        with self._stage("reward"):
            rewards = self._score(rows, groups)
        with self._stage("credit"):
            advantages = [
                self.rule(group.tree, reward, surprisal=group.surprisal).float()
                for group, reward in zip(groups, rewards, strict=True)
            ]
        device = self.accelerator.device
        # On-policy and without dropout the update's own forward is the old policy: the ratio is 1 by construction.
        old = None if self.on_policy else self._log_probs("old", groups, nullcontext())
        reference = self._log_probs("reference", groups, self.policy.reference()) if args.kl_coef else None
        return Rollout(step, rows, groups, rewards, [a.to(device) for a in advantages], old, reference)

    def _score(self, rows: list[dict[str, Any]], groups: list[Group]) -> list[Tensor]:
        """Call the reward functions once on the whole rollout; columns are repeated K times, as in TRL."""
        size = self.args.num_completions
        texts = [text for group in groups for text in group.texts(self.policy.tokenizer)]
        columns = {key: [row[key] for row in rows for _ in range(size)] for key in rows[0]}
        ids = [
            row[:length].tolist()
            for group in groups
            for row, length in zip(group.tokens, group.lengths.tolist(), strict=True)
        ]
        totals = self.rewards(completions=texts, prompts=columns.pop("prompt"), completion_ids=ids, **columns).totals
        return list(torch.as_tensor(totals, dtype=torch.float64).reshape(len(groups), size))

    @torch.no_grad()
    def _log_probs(self, stage: str, groups: list[Group], mode: Any) -> list[Tensor]:
        """Score groups without a graph, dropout off, in the layout of the update."""
        self.policy.eval()
        with self._stage(stage), mode:
            prompts, trees = [g.prompt for g in groups], [g.tree for g in groups]
            largest = partial(self.policy.largest_batch, prompts, trees)
            return within_memory(self.policy, lambda: self.policy(prompts, trees), largest=largest).log_probs

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Take the optimiser steps of one rollout and return their mean statistics."""
        args = self.args
        self.policy.train()
        totals: dict[str, float] = {}
        count = 0
        with self._stage("update"):
            for _ in range(args.passes_per_rollout):
                for part in _parts(rollout, args.completions_per_update):
                    for key, value in self._optimizer_step(part, count).items():
                        totals[key] = totals.get(key, 0.0) + value
                    count += 1
        return {key: value / count for key, value in totals.items()}

    def _optimizer_step(self, part: Rollout, count: int) -> dict[str, float]:
        """Accumulate the gradient of one part of a rollout, within memory, and step once."""
        args = self.args

        def accumulate() -> dict[str, float]:
            self.optimizer.zero_grad()
            torch.manual_seed(step_generator(args.seed, part.step, -1 - count).initial_seed())  # of dropout
            return self._gradient(part)

        # Among several processes one must not repeat what the others have already joined in.
        alone = self.accelerator.num_processes == 1
        prompts, trees = [g.prompt for g in part.groups], [g.tree for g in part.groups]
        largest = partial(self.policy.largest_batch, prompts, trees)
        stats = within_memory(self.policy, accumulate, largest=largest) if alone else accumulate()
        norm = self.accelerator.clip_grad_norm_(self.parameters, args.max_grad_norm)
        stats["grad_norm"] = math.nan if norm is None else float(norm)
        if not math.isfinite(stats["grad_norm"]) or not math.isfinite(stats["loss"]):
            raise RunError(
                f"The loss is {stats['loss']} and the gradient norm {stats['grad_norm']}: training stops before they "
                "reach the weights. The last checkpoint is intact; lower the learning rate or use dtype: float32."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        return stats

    def _gradient(self, part: Rollout) -> dict[str, float]:
        """Run the loss forward and backward over micro-batches of packed groups and return its statistics."""
        args, device = self.args, self.accelerator.device
        masks = [(group.tree.node >= 0).to(device) for group in part.groups]
        weights = token_weights(masks, reduction=args.reduction, constant_length=args.max_new_tokens)
        batches = self.policy.batches([g.prompt for g in part.groups], [g.tree for g in part.groups])
        stats: dict[str, float] = {"loss": 0.0, "packed_tokens": 0, "plain_tokens": 0, "entropy": 0.0}
        for number, batch in enumerate(batches):
            waits = self.accelerator.no_sync(self.model) if number + 1 < len(batches) else nullcontext()
            with waits:
                scores = self.model([part.groups[i].prompt for i in batch], [part.groups[i].tree for i in batch])
                loss = torch.zeros((), device=device)
                for position, i in enumerate(batch):
                    new = scores.log_probs[position]
                    one, extra = policy_loss(
                        new,
                        new.detach() if part.old_log_probs is None else part.old_log_probs[i],
                        part.advantages[i],
                        masks[i],
                        weights=weights[i],
                        clip=args.clip,
                        clip_high=args.clip_high,
                        ref_logp=None if part.ref_log_probs is None else part.ref_log_probs[i],
                        kl_coef=args.kl_coef,
                    )
                    loss = loss + one
                    share = weights[i] / sum(w.sum() for w in weights)
                    stats["entropy"] += float((scores.entropies[position] * share).sum())
                    for key, value in extra.items():
                        stats[key] = stats.get(key, 0.0) + float(value) / len(part.groups)
                self.accelerator.backward(loss)
            stats["loss"] += loss.item()
            stats["packed_tokens"] += scores.packed_tokens
            stats["plain_tokens"] += scores.plain_tokens
        return stats

    # -- bookkeeping ---------------------------------------------------------------------------------------------------
    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def _say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            self.report(line)

    def _statistics(self, rollout: Rollout) -> dict[str, float | None]:
        return rollout_statistics(rollout.groups, rollout.rewards, rollout.advantages)

    def _log(self, step: int, record: dict[str, Any], rollout: Rollout) -> None:
        if not self.accelerator.is_main_process or self.run is None:
            return
        args = self.args
        self.run.append("metrics.jsonl", record)
        if args.track_with:
            self.accelerator.log({k: v for k, v in record.items() if v is not None and k != "step"}, step=step)
        if args.record_every and (step == 1 or step % args.record_every == 0):
            for i in range(min(2, len(rollout.groups))):
                what = (rollout.rows[i], rollout.groups[i], rollout.rewards[i], rollout.advantages[i])
                self.run.append("groups.jsonl", {"step": step, **group_record(*what, self.policy.tokenizer)})
        if self.on_step is not None:
            self.on_step(record)
        else:
            self._say(f"step {step}/{args.max_steps}  {step_line(record)}")

    def _validate(self, step: int) -> None:
        if self.eval_rows is None or len(self.eval_rows) == 0:
            return
        if self.accelerator.is_main_process and self.run is not None:
            result = self.evaluate(step)
            score = result.scores[self.args.best_metric]
            self.run.append("validation.jsonl", {"step": step, **result.values()})
            self._say(f"step {step}/{self.args.max_steps}  validation  " + _line(result))
            if step > 0 and (self.best is None or score > self.best):
                self.best = score
                self.run.replace_directory("best", self.policy.save_adapter)
        self.accelerator.wait_for_everyone()

    def evaluate(self, step: int = 0) -> Evaluation:
        """Score the validation rows with the recipe's decoding."""
        args = self.args
        rows = take(self.eval_rows, range(min(len(self.eval_rows), args.eval_items or len(self.eval_rows))))
        metrics = tuple(dict.fromkeys((args.best_metric, "bleu", "exact_match", "chrf")))
        return evaluate(
            self.policy,
            rows,
            greedy=args.eval_greedy,
            temperature=args.eval_temperature,
            top_p=args.eval_top_p,
            max_new_tokens=args.max_new_tokens,
            metrics=metrics,
        )

    def _save(self, step: int) -> None:
        """Write last/ (adapter) and checkpoint/ (adapter, optimiser, schedule, step)."""
        if self.accelerator.is_main_process and self.run is not None:
            self.run.replace_directory("last", self.policy.save_adapter)
            self.run.replace_directory("checkpoint", lambda path: self._write_checkpoint(path, step))
        self.accelerator.wait_for_everyone()

    def _write_checkpoint(self, path: Path, step: int) -> None:
        self.policy.save_adapter(path / "adapter")
        state = {
            "step": step,
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "token_budget": self.policy.token_budget,
        }
        torch.save(state, path / "state.pt")

    def _restore(self) -> int:
        assert self.run is not None
        path = self.run.path / "checkpoint"
        if not path.is_dir():
            raise RunError(f"{self.run.path} has no checkpoint yet, so there is nothing to resume. Start it afresh.")
        state = torch.load(path / "state.pt", map_location=self.accelerator.device, weights_only=True)
        weights = peft.utils.load_peft_weights(str(path / "adapter"), device=str(self.accelerator.device))
        peft.set_peft_model_state_dict(self.policy.model, weights)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.best = state["best"]
        # Other micro-batches would add up to other last bits.
        self.policy.token_budget = state["token_budget"]
        self.run.forget_after(state["step"])
        self._say(f"resumed {self.run.path} after step {state['step']}")
        return int(state["step"])


def _parts(rollout: Rollout, size: int | None) -> Iterator[Rollout]:
    """Cut a rollout into parts of `size` completions, group by group; None keeps it whole."""
    if size is None:
        yield rollout
        return
    cells = [(i, k) for i, group in enumerate(rollout.groups) for k in range(group.tokens.shape[0])]
    for at in range(0, len(cells), size):
        chosen: dict[int, list[int]] = {}
        for i, k in cells[at : at + size]:
            chosen.setdefault(i, []).append(k)
        yield replace(
            rollout,
            rows=[rollout.rows[i] for i in chosen],
            groups=[rollout.groups[i].select(ks) for i, ks in chosen.items()],
            rewards=[rollout.rewards[i][ks] for i, ks in chosen.items()],
            advantages=[rollout.advantages[i][ks] for i, ks in chosen.items()],
            old_log_probs=_select(rollout.old_log_probs, chosen),
            ref_log_probs=_select(rollout.ref_log_probs, chosen),
        )


def _select(tensors: list[Tensor] | None, chosen: dict[int, list[int]]) -> list[Tensor] | None:
    return None if tensors is None else [tensors[i][ks] for i, ks in chosen.items()]


def step_line(record: dict[str, Any]) -> str:
    """Return what a person wants to see of one step."""
    return (
        f"reward {_number(record['reward_mean'])}  kl {record['kl']:.4f}  grad {record['grad_norm']:.2f}  "
        f"len {record['length_mean']:.1f}  usable forks {record['usable_fork_rate']:.2f}  "
        f"{record['seconds/step']:.1f} s"
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _line(result: Evaluation) -> str:
    return "  ".join(f"{name} {value:.2f}" for name, value in result.values().items())
