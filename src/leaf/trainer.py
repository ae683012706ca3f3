"""The RL loop: rollout, reward, credit, update. It does not know which credit rule runs."""

import math
import time
import warnings
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

from leaf.accidents import SkippedSteps, Streaks, diagnose, rows_with_audio, unscore_unsampled
from leaf.checkpoints import Checkpoints, check_space
from leaf.checks import check_policy
from leaf.config import LeafConfig
from leaf.credit import credit_rule, policy_loss, token_weights
from leaf.errors import AudioError, ConfigError, DataError
from leaf.evaluate import Evaluation, evaluate
from leaf.memory import available_bytes, peak_bytes, reset_peak, token_budget, within_memory
from leaf.plugins import load_plugins
from leaf.records import group_record, rollout_statistics
from leaf.rewards import RewardSum
from leaf.run import RunDirectory, run_path
from leaf.signals import StopRequested, StopSignals
from leaf.speech.policy import Policy, Prompt
from leaf.speech.prompts import row_name
from leaf.speech.sampling import Group, sample
from leaf.training import (
    batch_indices,
    build_optimizer,
    build_schedule,
    in_steps,
    is_warm_restart,
    pick_device,
    step_generator,
    take,
)

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
    accidents: dict[str, int]  # what was left out: completions by reward_errors, rows by bad_audio


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
        self.args = args = in_steps(args, len(train_dataset))
        self.train_rows, self.eval_rows = train_dataset, eval_dataset
        self.rule = credit_rule(credit or args.credit, **args.credit_options)
        self.rewards = RewardSum(
            reward_funcs or args.rewards,
            weights=args.reward_weights,
            timeout_s=args.reward_timeout,
            on_error=args.on_reward_error,
            options=args.reward_options,
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
        self.trained = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        self.parameters = list(self.trained.values())
        self.on_policy = (
            args.lora_dropout == 0.0 and args.completions_per_update is None and args.passes_per_rollout == 1
        )
        rollout = args.prompts_per_rollout * args.num_completions
        self.updates_per_rollout = args.passes_per_rollout * math.ceil(
            rollout / (args.completions_per_update or rollout)
        )
        optimizer = build_optimizer(self.parameters, args)
        schedule = build_schedule(optimizer, args, self.updates_per_rollout, restarts=args.epochs is not None)
        self._optimizer = optimizer
        self.model, self.optimizer = self.accelerator.prepare(self.policy, optimizer)
        self.schedule = schedule
        self.run, self.report, self.on_step = run, report, on_step
        self.checkpoints: Checkpoints | None = None
        self.stop = StopSignals()
        # Where the run stands, as a checkpoint keeps it: last step done, whether its validation is still to come, best.
        self.done, self.validation_due = 0, bool(args.eval_every)
        self.best: float | None = None
        self._saved: tuple[int, bool] | None = None
        self.seconds: dict[str, float] = {}
        self.skips = SkippedSteps(args.max_skipped_steps, self.policy.base.dtype, self._say)
        self.streaks = Streaks(self._say)

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
                last intact checkpoint, and starts it if it was killed before there was one.

        Raises:
            ModelError: a start-up check failed: the packed forward, or the audio does not reach the model.
            RunError: the run directory exists already and is not being resumed, cannot be continued with this recipe,
                or cannot be written.
            RunInterrupted: SIGTERM, SIGUSR1 or Ctrl-C came, and the run is saved; only in the main thread.
        """
        self.start(resume_from_checkpoint)
        assert self.run is not None
        try:
            with self.stop:
                self._train()
        finally:
            self.run.release()
        return self.run

    def _train(self) -> None:
        first, _, _ = self._embedded(range(min(2, len(self.train_rows))), "start")
        for line in check_policy(self.policy, first):
            self._say(line)
        self._say(f"token budget: {self.policy.token_budget} padded tokens a forward")
        if self.args.track_with:
            self.accelerator.init_trackers("leaf")
        try:
            self._steps()
        except StopRequested:
            if self._saved != (self.done, self.validation_due):
                self._save()
            raise self.stop.interrupted(self.done, self.args.max_steps) from None
        finally:
            if self.args.track_with:
                self.accelerator.end_training()

    def _steps(self) -> None:
        """Take the steps that are left; the state is whole wherever `stop.safe` is set, and between steps."""
        args = self.args
        if self.validation_due:
            self._validate(self.done)
            self._save()
        for step in range(self.done + 1, args.max_steps + 1):
            self.seconds = {}
            began = time.perf_counter()
            reset_peak(self.policy.device)
            if is_warm_restart(args, step):
                self._optimizer.state.clear()
                self._say(f"step {step}: a new epoch begins; the optimiser and the schedule begin afresh")
            self.stop.safe = self.accelerator.num_processes == 1
            rollout = self.rollout(step)
            self.stop.safe = False
            record = {"step": step, **self._statistics(rollout), **rollout.accidents, **self.update(rollout)}
            self.streaks.step(record)
            record["token_budget"] = self.policy.token_budget
            record["memory/peak_gb"] = peak_bytes(self.policy.device) / 1e9
            record["learning_rate"] = self.schedule.get_last_lr()[0]
            record |= {f"seconds/{stage}": value for stage, value in self.seconds.items()}
            record["seconds/step"] = time.perf_counter() - began
            self._log(step, record, rollout)
            last = step == args.max_steps
            self.done, self.validation_due = step, args.eval_every > 0 and (last or step % args.eval_every == 0)
            if self.validation_due:
                self._validate(step)
            if last or step % args.save_every == 0:
                self._save()
            if not last and self._asked_to_stop():
                raise StopRequested

    def _asked_to_stop(self) -> bool:
        """Tell whether a signal asked any process to stop; they all get the same answer, so they stop together."""
        asked = self.stop.received is not None
        if self.accelerator.num_processes == 1:
            return asked
        votes: Any = self.accelerator.reduce(torch.tensor(float(asked), device=self.accelerator.device))
        return bool(votes > 0)

    def start(self, resume: bool | str | Path = False) -> int:
        """Make the run directory (or reopen it) ahead of `train`, and return the last step done."""
        if self.checkpoints is not None and self.run is not None and not resume:
            if self.accelerator.is_main_process:
                self.run.lock(self._say)
            return self.done
        args = self.args
        if self.run is not None:
            self.run.release()
        path = run_path(args, resume) if resume or self.run is None else self.run.path
        if self.accelerator.is_main_process:
            have = len(list((path / "checkpoints").glob("step-*")))
            check_space(path, self.trained, args.keep_checkpoints, have)
            if resume or self.run is None:
                self.run = RunDirectory.begin(args, resume, self._say)
            else:
                self.run.lock(self._say)
        self.accelerator.wait_for_everyone()
        run = self.run = RunDirectory(path) if self.run is None else self.run
        facts = {
            "processes": self.accelerator.num_processes,
            "training rows": len(self.train_rows),
            "rewards": list(self.rewards.functions),
        }
        training = (self.trained, self._optimizer, self.schedule)
        self.checkpoints = Checkpoints(run, args, *training, facts=facts, say=self._say)
        try:
            self._take_up(self.checkpoints.begin(bool(resume), main=self.accelerator.is_main_process))
        except BaseException:
            run.release()
            self.checkpoints = None
            raise
        self.accelerator.wait_for_everyone()
        return self.done

    def rollout(self, step: int) -> Rollout:
        """Embed this step's prompts, sample groups, score them with rewards and credit."""
        args, world = self.args, self.accelerator.num_processes
        with self._stage("embed"):
            indices = batch_indices(len(self.train_rows), args.prompts_per_rollout, step - 1, args.seed)
            rows, prompts, bad_audio = self._embedded(indices[self.accelerator.process_index :: world], f"step {step}")
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
            rewards, reward_errors = self._score(step, rows, groups)
            groups, rewards, unsampled = unscore_unsampled(groups, rewards)
            if unsampled:
                self._say(f"step {step}: {unsampled} completions came from logits that are not finite; left unscored")
        with self._stage("credit"):
            advantages = [
                self.rule(group.tree, reward, surprisal=group.surprisal).float()
                for group, reward in zip(groups, rewards, strict=True)
            ]
        device = self.accelerator.device
        # On-policy and without dropout the update's own forward is the old policy: the ratio is 1 by construction.
        old = None if self.on_policy else self._log_probs("old", groups, nullcontext())
        reference = self._log_probs("reference", groups, self.policy.reference()) if args.kl_coef else None
        accidents = {"reward_errors": reward_errors, "bad_audio": bad_audio}
        return Rollout(step, rows, groups, rewards, [a.to(device) for a in advantages], old, reference, accidents)

    def _embedded(self, indices: Sequence[int], when: str) -> tuple[list[dict[str, Any]], list[Prompt], int]:
        """Return training rows, their prompts, and how many rows without usable audio gave way to the next one."""
        rows = take(self.train_rows, indices)
        try:
            return rows, self.policy.embed(rows), 0
        except AudioError:
            if self.args.on_bad_audio == "stop":
                raise
        rows, replaced = rows_with_audio(
            self.policy, self.train_rows, indices, lambda line: self._say(f"{when}: {line}")
        )
        return rows, self.policy.embed(rows), replaced

    def _score(self, step: int, rows: list[dict[str, Any]], groups: list[Group]) -> tuple[list[Tensor], int]:
        """Call the reward functions once on the whole rollout; columns are repeated K times, as in TRL.

        Returns the rewards per group, and on how many completions a function failed.
        """
        size = self.args.num_completions
        texts = [text for group in groups for text in group.texts(self.policy.tokenizer)]
        columns = {key: [row[key] for row in rows for _ in range(size)] for key in rows[0]}
        ids = [
            row[:length].tolist()
            for group in groups
            for row, length in zip(group.tokens, group.lengths.tolist(), strict=True)
        ]
        result = self.rewards(completions=texts, prompts=columns.pop("prompt"), completion_ids=ids, **columns)
        for message in result.messages:
            self._say(f"step {step}: left unscored: {message}")
        totals = torch.as_tensor(result.totals, dtype=torch.float64).reshape(len(groups), size)
        return list(totals), int(result.failed.sum())

    @torch.no_grad()
    def _log_probs(self, stage: str, groups: list[Group], mode: Any) -> list[Tensor]:
        """Score groups without a graph, dropout off, in the layout of the update."""
        self.policy.eval()
        with self._stage(stage), mode:
            prompts, trees = [g.prompt for g in groups], [g.tree for g in groups]
            largest = partial(self.policy.largest_batch, prompts, trees)
            return within_memory(self.policy, lambda: self.policy(prompts, trees), largest=largest).log_probs

    def update(self, rollout: Rollout) -> dict[str, float | None]:
        """Take the optimiser steps of one rollout and return their mean statistics, None where all were skipped."""
        args = self.args
        self.policy.train()
        totals: dict[str, float] = {}
        count = skipped = 0
        with self._stage("update"):
            for _ in range(args.passes_per_rollout):
                for part in _parts(rollout, args.completions_per_update):
                    stats, taken = self._optimizer_step(part, count)
                    for key, value in stats.items():
                        totals[key] = totals.get(key, 0.0) + (value if taken else 0.0)
                    count += 1
                    skipped += not taken
        mean = {key: value / (count - skipped) if count > skipped else None for key, value in totals.items()}
        return {**mean, "skipped_steps": skipped}

    def _optimizer_step(self, part: Rollout, count: int) -> tuple[dict[str, float], bool]:
        """Accumulate the gradient of one part of a rollout, within memory, and step once.

        Returns its statistics, and whether the step was taken: not where loss or gradient are not finite. Weights and
        moments then stay as they were; the schedule moves on, because it counts updates.
        """
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
        finite = self._all(math.isfinite(stats["grad_norm"]) and math.isfinite(stats["loss"]))
        if finite:
            self.optimizer.step()
            self.skips.taken()
        self.optimizer.zero_grad()
        with warnings.catch_warnings():
            # Of a first update that was skipped; nothing a user could act on.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.schedule.step()
        if not finite:
            given = [part.advantages, part.old_log_probs, part.ref_log_probs]
            tensors = list(zip(*(one for one in given if one is not None), strict=True))
            names = [row_name(row) for row in part.rows]
            diagnosis = diagnose(self.policy, names, prompts, part.groups, tensors, self.parameters)
            self.skips.skipped(part.step, stats["loss"], stats["grad_norm"], diagnosis)
        return stats, finite

    def _all(self, good: bool) -> bool:
        """Tell whether something holds in every process; they all get the same answer."""
        if self.accelerator.num_processes == 1:
            return good
        votes: Any = self.accelerator.reduce(torch.tensor(float(not good), device=self.accelerator.device))
        return not bool(votes > 0)

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
        self.stop.check()
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
        """Score the validation rows, and keep the adapter as best/ if it is the best so far."""
        if self.eval_rows is None or len(self.eval_rows) == 0:
            self.validation_due = False
            return
        if self.accelerator.is_main_process and self.run is not None:
            self.stop.safe = self.accelerator.num_processes == 1
            result = self.evaluate(step)
            self.stop.safe = False
            score = result.scores[self.args.best_metric]
            self.run.append("validation.jsonl", {"step": step, **result.values()})
            self._say(f"step {step}/{self.args.max_steps}  validation  " + _line(result))
            if step > 0 and (self.best is None or score > self.best):
                self.best = score
                self.run.replace_directory("best", self.policy.save_adapter)
        self.validation_due = False
        self.accelerator.wait_for_everyone()

    def evaluate(self, step: int = 0) -> Evaluation:
        """Score the validation rows with the recipe's decoding."""
        args = self.args
        indices = range(min(len(self.eval_rows), args.eval_items or len(self.eval_rows)))
        rows = take(self.eval_rows, indices)
        if args.on_bad_audio == "skip":
            rows, _ = rows_with_audio(
                self.policy, self.eval_rows, indices, lambda line: self._say(f"validation: {line}")
            )
        metrics = tuple(dict.fromkeys((args.best_metric, "bleu", "exact_match", "chrf")))
        return evaluate(
            self.policy,
            rows,
            greedy=args.eval_greedy,
            temperature=args.eval_temperature,
            top_p=args.eval_top_p,
            max_new_tokens=args.max_new_tokens,
            metrics=metrics,
            progress=lambda count: self.stop.check(),
        )

    def _save(self) -> None:
        """Write last/ (adapter) and the checkpoint of the last step done.

        The checkpoint comes last: whatever a kill leaves undone before it, the resumed run does again.
        """
        if self.accelerator.is_main_process and self.run is not None and self.checkpoints is not None:
            if self.done > 0:
                self.run.replace_directory("last", self.policy.save_adapter)
            self.checkpoints.save(
                self.done,
                validation_due=self.validation_due,
                best=self.best,
                token_budget=self.policy.token_budget,
                skipped_in_a_row=self.skips.in_a_row,
                streaks=self.streaks.lengths,
            )
        self._saved = (self.done, self.validation_due)
        self.accelerator.wait_for_everyone()

    def _take_up(self, state: dict[str, Any] | None) -> None:
        """Stand where a checkpoint stood, or write the first one."""
        if state is None:
            self._save()
            return
        self.done, self.validation_due, self.best = state["step"], state["validation_due"], state["best"]
        self._saved = (self.done, self.validation_due)
        self.skips.in_a_row, self.streaks.lengths = state["skipped_in_a_row"], state["streaks"]
        if self.args.token_budget == state["recipe"]["token_budget"]:
            # Other micro-batches would add up to other last bits.
            self.policy.token_budget = state["token_budget"]


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
        f"reward {_number(record['reward_mean'])}  kl {_number(record['kl'], 4)}  "
        f"grad {_number(record['grad_norm'], 2)}  "
        f"len {record['length_mean']:.1f}  usable forks {record['usable_fork_rate']:.2f}  "
        f"{record['seconds/step']:.1f} s"
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def _line(result: Evaluation) -> str:
    return "  ".join(f"{name} {value:.2f}" for name, value in result.values().items())
