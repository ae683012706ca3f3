"""The RL loop: rollout, reward, credit, update. It does not know which credit rule runs."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate import Accelerator
from torch import Tensor

from leaf.config import LeafConfig, refuse_from_python
from leaf.credit import credit_rule
from leaf.data.rows import batch_indices, row_name, take
from leaf.errors import AudioError, ConfigError, DataError, shown
from leaf.evaluation.evaluate import Evaluation, evaluate
from leaf.evaluation.predict import Decoding
from leaf.evaluation.registry import Scoring, less_is_better, validation_metrics
from leaf.memory import peak_bytes, reset_peak, within_memory
from leaf.model.checks import check_policy
from leaf.model.device import take_device
from leaf.model.draws import step_generator
from leaf.model.from_recipe import has_dropout, set_token_budget, trainable_policy
from leaf.model.policy import Prompt
from leaf.model.sampling import Group, sample
from leaf.model.scoring import largest_batch, score
from leaf.model.usable import rows_with_audio
from leaf.plugins import load_plugins
from leaf.rewards.total import rewards_from
from leaf.runs.checkpoints import Checkpoints, check_space
from leaf.runs.directory import RunDirectory, run_path
from leaf.runs.processes import Processes
from leaf.runs.provenance import recorded_arguments
from leaf.runs.signals import StopRequested, StopSignals
from leaf.runs.skipped import MOST_SKIPPED, SkippedSteps, diagnose, take_or_skip
from leaf.train.records import group_record, rollout_statistics
from leaf.train.rollout import RECORDED, Rollout, unscore_unsampled
from leaf.train.schedule import build_optimizer, build_schedule, check_stage, in_steps, is_warm_restart
from leaf.train.streaks import Streaks
from leaf.train.update import add_gradient, update_record, update_statistics, update_weights


class LeafTrainer:
    """Post-train a speech-aware LLM with a credit rule over sampled groups.

    The run's recipe.yaml, and `args` of the trainer, say what ran: of arguments that stand in place of the recipe's
    values their names, and of objects that they came from Python, which `leaf` refuses to run from the recipe alone.

    Args:
        model: checkpoint directory or hub id, a transformers model, or a `Policy` that already carries its adapter.
        reward_funcs: names, import paths or callables with TRL's signature, or one callable; default the recipe's.
        args: the recipe.
        train_dataset, eval_dataset: rows with `prompt`, `audio` and `reference`; further columns reach the rewards.
        processing_class: the processor, where `model` is a transformers model.
        peft_config: LoRA settings; default the recipe's.
        credit: a credit rule in place of the recipe's name, called as `rule(tree, rewards, surprisal=..., **options)`.
        from_recipe: model and rows are those that the recipe names, loaded ahead, so that it goes on naming them.
        run: the run directory to write; made from the recipe if left out.
        report: called with every line meant for a person.
        on_step: called with the record of every step in place of `report`, for a live display.
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        reward_funcs: Sequence[str | Callable[..., Any]] | Callable[..., Any] | None = None,
        args: LeafConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: peft.LoraConfig | None = None,
        *,
        credit: Callable[..., Tensor] | None = None,
        from_recipe: bool = False,
        run: RunDirectory | None = None,
        report: Callable[[str], None] = print,
        on_step: Callable[[dict[str, Any]], None] | None = None,
    ):
        self.args = args = args or LeafConfig()
        if train_dataset is None or len(train_dataset) == 0:
            raise DataError("LeafTrainer has no training rows; pass train_dataset with prompt, audio and reference.")
        self.args = args = in_steps(args, len(train_dataset))
        self.train_rows, self.eval_rows = train_dataset, eval_dataset
        load_plugins(args.plugins)  # before the rule and the rewards, which they may bring
        check_stage(args)
        if credit is None:
            refuse_from_python("credit", args.credit)
        self.rule = credit_rule(credit or args.credit, **args.credit_options)
        self.rewards = rewards_from(args, reward_funcs)
        self.rewards.check_rows(train_dataset)
        self.given = recorded_arguments(model, reward_funcs, credit, peft_config, from_recipe=from_recipe)
        self.args = args = replace(args, **self.given)
        self.accelerator = _accelerator(args)
        self.processes = Processes(self.accelerator)
        if args.prompts_per_rollout < self.processes.count:
            raise ConfigError(
                f"prompts_per_rollout is {args.prompts_per_rollout} for {self.processes.count} processes; give every "
                "process at least one prompt."
            )
        torch.manual_seed(args.seed)
        device = self.accelerator.device
        # Where layers are sharded, they go to their device one by one.
        at_first = torch.device("cpu") if self.processes.sharded else device
        self.policy = trainable_policy(args, model, processing_class, peft_config, device=at_first, runs_on=device)
        self.processes.shard(self.policy)
        set_token_budget(self.policy, args, args.num_completions * args.max_new_tokens)
        self.trained = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        self.parameters = list(self.trained.values())
        rollout = args.prompts_per_rollout * args.num_completions
        self.updates_per_rollout = args.passes_per_rollout * math.ceil(
            rollout / (args.completions_per_update or rollout)
        )
        self.on_policy = self.updates_per_rollout == 1 and not has_dropout(self.policy)
        optimizer = build_optimizer(self.parameters, args)
        schedule = build_schedule(optimizer, args, self.updates_per_rollout, restarts=args.epochs is not None)
        self._optimizer = optimizer
        self.processes.agree(self.parameters)
        # The policy itself is not wrapped: gradients are added once per optimiser step (leaf.runs.processes).
        # Accelerate would not take an optimiser without a wrapped model under FSDP2, and would change nothing.
        self.optimizer: Any = optimizer if self.processes.sharded else self.accelerator.prepare(optimizer)
        self.schedule = schedule
        self.run, self.report, self.on_step = run, report, on_step
        self.checkpoints: Checkpoints | None = None
        self.stop = StopSignals()
        # Where the run stands, as a checkpoint keeps it: last step done, whether its validation is still to come, best.
        self.done, self.validation_due = 0, bool(args.eval_every)
        self.best: float | None = None
        self._saved: tuple[int, bool] | None = None
        self.seconds: dict[str, float] = {}
        self.skips = SkippedSteps(MOST_SKIPPED, self.policy.base.dtype, self._say)
        self.streaks = Streaks(self._say)

    # -- the loop ------------------------------------------------------------------------------------------------------
    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> RunDirectory:
        """Run the recipe to its last step and return the run directory.

        Args:
            resume_from_checkpoint: True continues the run directory of the recipe (or a path: that directory) from its
                last intact checkpoint, and starts it if it was killed before there was one. False or None: a new run.

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
        start = range(min(2, len(self.train_rows)))
        first, _, _ = self._embedded(start, lambda line: self._say(f"start: {line}"))
        for line in check_policy(self.policy, first):
            self._say(line)
        self._say(f"token budget: {self.policy.token_budget} padded tokens a forward")
        if self.args.track_with:
            assert self.run is not None
            self.accelerator.project_configuration.set_directories(str(self.run.path))
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
            self.stop.safe = self.processes.alone
            rollout = self.processes.together(lambda step=step: self.rollout(step))
            self.stop.safe = False
            whole = rollout.gathered(self.processes)
            for line in whole.unsaid:
                self._say(line)
            statistics = rollout_statistics(whole.groups, whole.rewards, whole.advantages)
            record = {"step": step, **statistics, **whole.accidents, **self.update(rollout)}
            self.streaks.step(record)
            record["token_budget"] = self.policy.token_budget
            record["learning_rate"] = self.schedule.get_last_lr()[0]
            spent = {f"seconds/{stage}": value for stage, value in self.seconds.items()}
            spent["seconds/step"] = time.perf_counter() - began
            spent["memory/peak_gb"] = peak_bytes(self.policy.device) / 1e9
            record |= self.processes.max(spent)
            self._on_main(partial(self._log, step, record, whole))
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
        return self.processes.sum([float(self.stop.received is not None)])[0] > 0

    def start(self, resume: bool | str | Path | None = None) -> int:
        """Make the run directory (or reopen it) ahead of `train`, and return the last step done."""
        resume = resume or False  # None is what scripts written for transformers pass
        if self.checkpoints is not None and self.run is not None and not resume:
            if self.accelerator.is_main_process:
                self.run.lock(self._say)
            return self.done
        args = self.args
        if self.run is not None:
            self.run.release()
        path = run_path(args, resume) if resume or self.run is None else self.run.path

        def open_run() -> None:
            have = len(list((path / "checkpoints").glob("step-*")))
            check_space(path, self.trained, args.keep_checkpoints, have)
            if resume or self.run is None:
                self.run = RunDirectory.begin(args, resume, self._say)
            else:
                self.run.lock(self._say)

        self._on_main(open_run)
        run = self.run = RunDirectory(path) if self.run is None else self.run
        facts = {
            "training rows": len(self.train_rows),
            "rewards": list(self.rewards.functions),
        }
        training = (self.trained, self._optimizer, self.schedule)
        checkpoints = self.checkpoints = Checkpoints(run, args, *training, facts=facts, given=self.given, say=self._say)
        main = self.accelerator.is_main_process
        try:
            self._take_up(self.processes.together(lambda: checkpoints.begin(bool(resume), main=main)))
        except BaseException:
            run.release()
            self.checkpoints = None
            raise
        return self.done

    def rollout(self, step: int) -> Rollout:
        """Embed this process's prompts of the step, sample groups, score them with rewards and credit.

        What a prompt draws depends on the seed, the step and its position among all prompts of the step, so the number
        of processes changes no completion.
        """
        args = self.args
        positions = list(self.processes.positions(args.prompts_per_rollout))
        unsaid: list[str] = []

        def say(line: str) -> None:
            if self.accelerator.is_main_process:
                self.report(f"step {step}: {line}")
            else:
                unsaid.append(f"step {step}, process {self.processes.index}: {line}")

        with self._stage("embed"):
            indices = batch_indices(len(self.train_rows), args.prompts_per_rollout, step - 1, args.seed)
            rows, prompts, bad_audio = self._embedded([indices[i] for i in positions], say)
        with self._stage("sample"):
            groups = sample(
                self.policy,
                prompts,
                num_completions=args.num_completions,
                max_new_tokens=args.max_new_tokens,
                temperature=args.temperature,
                top_p=args.top_p,
                generator=[step_generator(args.seed, step, position) for position in positions],
            )
        with self._stage("reward"):
            rewards, reward_errors = self._score(rows, groups, say)
            groups, rewards, unsampled = unscore_unsampled(groups, rewards)
            if unsampled:
                say(f"{unsampled} completions came from logits that are not finite; left unscored")
        with self._stage("credit"):
            advantages = [self._credit(*one) for one in zip(rows, groups, rewards, strict=True)]
        device = self.accelerator.device
        # On-policy and without dropout the update's own forward is the old policy: the ratio is 1 by construction.
        old = None if self.on_policy else self._log_probs("old", groups, nullcontext())
        reference = self._log_probs("reference", groups, self.policy.reference()) if args.kl_coef else None
        accidents = {"reward_errors": reward_errors, "bad_audio": bad_audio}
        advantages = [advantage.to(device) for advantage in advantages]
        return Rollout(step, rows, groups, rewards, advantages, old, reference, positions, accidents, unsaid)

    def _embedded(
        self, indices: Sequence[int], say: Callable[[str], None]
    ) -> tuple[list[dict[str, Any]], list[Prompt], int]:
        """Return training rows, their prompts, and how many rows without usable audio gave way to the next one."""
        rows = take(self.train_rows, indices)
        try:
            return rows, self.policy.embed(rows), 0
        except AudioError:
            if self.args.tolerate == "stop":
                raise
        rows, replaced = rows_with_audio(self.policy, self.train_rows, indices, say)
        return rows, self.policy.embed(rows), replaced

    def _score(
        self, rows: list[dict[str, Any]], groups: list[Group], say: Callable[[str], None]
    ) -> tuple[list[Tensor], int]:
        """Return the rewards per group, and on how many completions a reward function failed."""
        rewards, result = self.rewards.of(rows, groups, self.policy.tokenizer)
        for message in result.messages:
            say(f"left unscored: {message}")
        return rewards, int(result.failed.sum())

    def _credit(self, row: dict[str, Any], group: Group, reward: Tensor) -> Tensor:
        """Return the rule's advantages (K, T) in float32; a rule of the user's own may give anything."""
        given = self.rule(group.tree, reward, surprisal=group.surprisal)
        if not isinstance(given, Tensor) or given.shape != group.tree.node.shape:
            came = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else shown(given)
        elif not given.float().isfinite().all():
            came = "advantages that are not finite in float32"
        else:
            return given.float()
        raise ConfigError(
            f"The credit rule gave {came} for row {row_name(row)!r} with rewards {shown(reward.tolist())}; it must "
            f"return a tensor of finite advantages of shape {tuple(group.tree.node.shape)}, one per token."
        )

    @torch.no_grad()
    def _log_probs(self, stage: str, groups: list[Group], mode: Any) -> list[Tensor]:
        """Score groups without a graph, dropout off, in the layout of the update."""
        self.policy.eval()
        with self._stage(stage), mode:
            prompts, trees = [g.prompt for g in groups], [g.tree for g in groups]
            largest = partial(largest_batch, self.policy, prompts, trees)
            return within_memory(self.policy, lambda: score(self.policy, prompts, trees), largest=largest).log_probs

    def update(self, rollout: Rollout) -> dict[str, float | None]:
        """Take the optimiser steps of one rollout and return what is recorded of them (`update_record`)."""
        args = self.args
        self.policy.train()
        updates: list[tuple[dict[str, float], bool]] = []
        with self._stage("update"):
            for _ in range(args.passes_per_rollout):
                for part in rollout.parts(args.completions_per_update, args.prompts_per_rollout):
                    updates.append(self._optimizer_step(part, len(updates)))
        return update_record(updates)

    def _optimizer_step(self, part: Rollout, count: int) -> tuple[dict[str, float], bool]:
        """Accumulate the gradient of one part of a rollout, within memory, and step once.

        Returns its statistics, and whether the step was taken: not where loss or gradient are not finite. Weights and
        moments then stay as they were; the schedule moves on, because it counts updates.
        """
        args = self.args
        weights = update_weights(part, args, self.processes, self.policy.device)

        def accumulate() -> dict[str, float]:
            self.optimizer.zero_grad()
            # Of dropout: another stream in every process, the step's own with one.
            torch.manual_seed(step_generator(args.seed, part.step, -1 - count).initial_seed() + self.processes.index)
            return add_gradient(self.policy, part, weights, args)

        prompts, trees = [g.prompt for g in part.groups], [g.tree for g in part.groups]
        largest = partial(largest_batch, self.policy, prompts, trees)
        sums = self.processes.together(lambda: within_memory(self.policy, accumulate, largest=largest))
        stats = update_statistics(sums, self.processes)
        self.processes.add_gradients(self.parameters)
        norm = self.accelerator.clip_grad_norm_(self.parameters, args.max_grad_norm)
        stats["grad_norm"] = math.nan if norm is None else float(norm)
        finite = math.isfinite(stats["grad_norm"]) and math.isfinite(stats["loss"])  # the same in every process
        take_or_skip(self.optimizer, self.schedule, finite)
        if finite:
            self.skips.taken()
        else:
            given = [part.advantages, part.old_log_probs, part.ref_log_probs]
            tensors = list(zip(*(one for one in given if one is not None), strict=True))
            names = [row_name(row) for row in part.rows]
            diagnoses = self.processes.gather(
                diagnose(self.policy, names, prompts, part.groups, tensors, self.parameters)
            )
            diagnosis = next((text for text in diagnoses if text.startswith("It comes")), diagnoses[0])
            self.skips.skipped(part.step, stats["loss"], stats["grad_norm"], diagnosis)
        return stats, finite

    # -- bookkeeping ---------------------------------------------------------------------------------------------------
    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.stop.check()
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def _on_main(self, action: Callable[[], None]) -> None:
        """Run an action in the main process while the others wait; where it fails, all stop."""
        self.processes.together(action if self.accelerator.is_main_process else lambda: None)

    def _say(self, line: str) -> None:
        if self.accelerator.is_main_process:
            self.report(line)

    def _log(self, step: int, record: dict[str, Any], rollout: Rollout) -> None:
        assert self.run is not None
        args = self.args
        self.run.append("metrics.jsonl", record)
        if args.track_with:
            self.accelerator.log({k: v for k, v in record.items() if v is not None and k != "step"}, step=step)
        if args.record_every and (step == 1 or step % args.record_every == 0):
            for i in range(min(RECORDED, len(rollout.groups))):
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
        run = self.run
        assert run is not None

        self.stop.safe = self.processes.alone
        result = self.evaluate(step)
        self.stop.safe = False

        def record() -> None:
            score = result.scores[self.args.best_metric]
            spans = {}
            for name, (low, high) in result.intervals.items():
                spans |= {f"{name}/low": low, f"{name}/high": high}
            run.append("validation.jsonl", {"step": step, **result.values(), **spans})
            if self.args.track_with:
                self.accelerator.log({f"validation/{k}": v for k, v in result.values().items()}, step=step)
            self._say(f"step {step}/{self.args.max_steps}  validation  " + _line(result))
            if step > 0 and (self.best is None or _beats(self.args.best_metric, score, self.best)):
                self.best = score
                run.replace_directory("best", self.policy.save_adapter)

        self._on_main(record)
        self.validation_due = False

    def evaluate(self, step: int = 0) -> Evaluation:
        """Score the validation rows with the recipe's decoding, shared among the processes."""
        args = self.args
        indices = range(min(len(self.eval_rows), args.eval_items or len(self.eval_rows)))
        rows = take(self.eval_rows, indices)
        if args.tolerate == "skip":
            rows, _ = rows_with_audio(
                self.policy, self.eval_rows, indices, lambda line: self._say(f"validation: {line}")
            )
        return evaluate(
            self.policy,
            rows,
            Decoding.of_recipe(args, greedy=args.eval_greedy),
            Scoring(validation_metrics(args.best_metric), intervals=True),
            progress=lambda count: self.stop.check(),
            processes=self.processes,
        )

    def _save(self) -> None:
        """Write last/ (adapter) and the checkpoint of the last step done.

        The checkpoint comes last: whatever a kill leaves undone before it, the resumed run does again.
        """
        run, checkpoints = self.run, self.checkpoints
        assert run is not None
        assert checkpoints is not None

        def write() -> None:
            if self.done > 0:
                run.replace_directory("last", self.policy.save_adapter)
            checkpoints.save(
                self.done,
                validation_due=self.validation_due,
                best=self.best,
                token_budget=self.policy.token_budget,
                rows_at_once=self.policy.rows_at_once,
                sampled_at_once=self.policy.sampled_at_once,
                processes=self.processes.count,
                skipped_in_a_row=self.skips.in_a_row,
                streaks=self.streaks.lengths,
            )

        self._on_main(write)
        self._saved = (self.done, self.validation_due)

    def _take_up(self, state: dict[str, Any] | None) -> None:
        """Stand where a checkpoint stood, or write the first one."""
        if state is None:
            self._save()
            return
        self.done, self.validation_due, self.best = state["step"], state["validation_due"], state["best"]
        self._saved = (self.done, self.validation_due)
        self.skips.in_a_row, self.streaks.lengths = state["skipped_in_a_row"], state["streaks"]
        if self.processes.count != state["processes"]:
            noise = ", as will the noise of LoRA dropout" if self.args.lora_dropout else ""
            self._say(f"{self.processes.count} processes, was {state['processes']}: the last bits will differ{noise}")
        if self.args.token_budget == state["recipe"]["token_budget"]:
            # Other micro-batches would add up to other last bits.
            self.policy.token_budget = state["token_budget"]
            self.policy.rows_at_once = state.get("rows_at_once", self.policy.rows_at_once)  # older ones do not say
            self.policy.sampled_at_once = state.get("sampled_at_once")


def _accelerator(args: LeafConfig) -> Accelerator:
    """Return the accelerator of a recipe, on its device and with its tracker."""
    return Accelerator(
        cpu=take_device(args.device).type == "cpu",
        mixed_precision="no",  # the precision is the recipe's, not the launcher's
        log_with=args.track_with,
        project_dir=run_path(args),  # until the run has its directory
    )


def _beats(metric: str, score: float, best: float) -> bool:
    return score < best if less_is_better(metric) else score > best


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
