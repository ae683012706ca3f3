"""Stage rl: a learner with a run directory, which takes steps, logs them, validates, saves and resumes."""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import peft
import torch
from accelerate import Accelerator

from leaf.config import LeafConfig
from leaf.credit import BatchCredit, CreditRule
from leaf.data.fingerprint import rows_fingerprint
from leaf.data.given import training_and_validation
from leaf.evaluation.evaluate import Evaluation
from leaf.memory import peak_bytes, reset_peak
from leaf.model.checks import check_policy
from leaf.model.policy import Policy
from leaf.model.sampler import Sampler
from leaf.progress import Busy
from leaf.rewards.total import Rewards
from leaf.runs.alike import refuse_unlike
from leaf.runs.checkpoints import Checkpoints, check_space
from leaf.runs.directory import RunDirectory, run_path
from leaf.runs.lost import lost_adapter
from leaf.runs.provenance import Given
from leaf.train.choosing import passed_over_statistics
from leaf.train.describing import describe_adapter
from leaf.train.learner import Learner
from leaf.train.making import RewardFunctions, check_rows, make_accelerator, parts_from_model, parts_from_recipe
from leaf.train.parts import RECORDED, credited_together, gathered
from leaf.train.recipe import note_on_validation
from leaf.train.records import group_record, rollout_statistics, step_line
from leaf.train.rollout import Rollout
from leaf.train.schedule import check_stage, is_warm_restart
from leaf.train.steps import take_steps
from leaf.train.streaks import Streaks
from leaf.train.tracking import Tracking
from leaf.train.validation import scores_line, write_signatures

OnStep = Callable[[dict[str, Any]], None]


class RLTrainer(Learner):
    """Train a speech LLM with a credit rule over sampled groups of completions, in a run directory.

    It takes finished things. `from_recipe` makes all of them from a recipe, `from_model` from a model and rows.

    Args:
        policy, rewards, rule, config, train_rows, eval_rows, say: see `Learner`.
        given: what a script passed in place of the recipe's values (leaf.runs.provenance).
        accelerator: Accelerate's handle on device, processes and tracker, made from the recipe if left out.
        on_step: takes the record of every step in place of `say`, for a live display.
        sampler: draws completions; default the recipe's.

    Raises:
        ConfigError, DataError: these things do not go together.
    """

    def __init__(
        self,
        policy: Policy,
        rewards: Rewards,
        rule: CreditRule | BatchCredit,
        config: LeafConfig,
        train_rows: Any,
        eval_rows: Any = None,
        *,
        given: Given | None = None,
        accelerator: Accelerator | None = None,
        say: Callable[[str], None] = print,
        on_step: OnStep | None = None,
        sampler: Sampler | None = None,
    ):
        check_stage(config, rewards)
        train_rows, eval_rows = training_and_validation(train_rows, eval_rows)
        check_rows(config, rewards, train_rows)
        self.given = given or Given()
        config = replace(config, **self.given.recipe)
        accelerator = accelerator or make_accelerator(config)
        super().__init__(policy, rewards, rule, config, train_rows, eval_rows, accelerator, say, sampler)
        self.on_step = on_step
        self.streaks = Streaks(self._say)
        self.tracking = Tracking(accelerator)
        self.run: RunDirectory | None = None
        self.checkpoints: Checkpoints | None = None
        # Where the run is; its checkpoints keep this.
        self.done, self.validation_due = 0, config.eval_every > 0
        self.best: float | None = None  # best_metric of the adapter in best/

    @classmethod
    def from_recipe(
        cls,
        config: LeafConfig,
        *,
        rewards: RewardFunctions | None = None,
        credit: str | CreditRule | None = None,
        say: Callable[[str], None] = print,
        on_step: OnStep | None = None,
    ) -> "RLTrainer":
        """Make a trainer from a recipe.

        Args:
            config: the recipe.
            rewards, credit: in place of the recipe's; see `from_model`.
            say, on_step: see the class.
        """
        return RLTrainer(**parts_from_recipe(config, rewards, credit, say), say=say, on_step=on_step)

    @classmethod
    def from_model(
        cls,
        model: str | Path | torch.nn.Module,
        config: LeafConfig,
        train_rows: Any,
        eval_rows: Any = None,
        *,
        rewards: RewardFunctions | None = None,
        credit: str | CreditRule | None = None,
        processor: Any = None,
        lora: peft.LoraConfig | None = None,
        say: Callable[[str], None] = print,
        on_step: OnStep | None = None,
    ) -> "RLTrainer":
        """Make a trainer from a model and rows; the recipe gives what is left out.

        Args:
            model: checkpoint directory or hub id, a transformers model, or a `Policy` that carries its adapter.
            config: the recipe.
            train_rows, eval_rows: see the class.
            rewards: names, import paths or callables with TRL's signature, or one callable.
            credit: name of a rule, or a rule, called as `rule(tree, rewards, surprisal=..., **options)`.
            processor: the processor, where `model` is a transformers model.
            lora: settings of a fresh adapter.
            say, on_step: see the class.
        """
        parts = parts_from_model(model, config, train_rows, eval_rows, rewards, credit, processor, lora)
        return RLTrainer(**parts, say=say, on_step=on_step)

    # -- a run ---------------------------------------------------------------------------------------------------------
    def train(self, resume_from_checkpoint: bool | str | Path | None = None) -> RunDirectory:
        """Train to the last step of the recipe and return the run directory.

        Args:
            resume_from_checkpoint: True continues the run directory of the recipe (or a path: that directory) from its
                last intact checkpoint, and starts it if it was killed before there was one. False or None: a new run.

        Raises:
            ModelError: a start-up check failed: the packed forward is wrong, or the audio does not reach the model.
            RunError: the run directory exists already and is not being resumed, cannot be continued with this recipe,
                or cannot be written.
            RunInterrupted: the run was asked to stop (leaf.runs.signals), and it is saved.
        """
        self.start(resume_from_checkpoint)
        assert self.run is not None
        try:
            with self.stop:
                self._check_policy()
                self.tracking.start(self.run, self.done, self._say)
                try:
                    take_steps(self)
                finally:
                    self.tracking.finish()
        finally:
            self.sampler.close()
            self.run.release()
        return self.run

    def start(self, resume: bool | str | Path | None = None) -> int:
        """Make the run directory (or reopen it) ahead of `train`, and return the last step taken."""
        resume = resume or False  # None is what scripts written for transformers pass
        if self.checkpoints is not None and self.run is not None and not resume:
            if self.processes.main:
                self.run.lock(self._say)
            return self.done
        self.reach_sampler()
        run = self._open(resume)
        facts = {"training rows": len(self.train_rows), "rewards": list(self.rewards.functions)}
        checkpoints = Checkpoints(
            run,
            self.config,
            self.trained,
            self.optimizer,
            self.schedule,
            facts=facts,
            script=self.given.script,
            rows=rows_fingerprint(self.train_rows),
            say=self._say,
        )
        self.checkpoints = checkpoints
        try:
            # Every process reads the checkpoint; only the main one writes.
            state = self.processes.together(lambda: checkpoints.begin(bool(resume), main=self.processes.main))
            refuse_unlike(self.processes.gather({"checkpoint to continue from": checkpoints.restored or "none"}))
            if state is None:
                self.save()
            else:
                self._restore(state)
                self.processes.on_main(self._restore_adapters)
        except BaseException:
            run.release()
            self.checkpoints = None
            raise
        return self.done

    def _open(self, resume: bool | str | Path) -> RunDirectory:
        """Open the run directory in every process; the main one makes and locks it, if its disk has the room."""
        if self.run is not None:
            self.run.release()
        path = run_path(self.config, resume)
        self.run = RunDirectory(path)

        def make() -> None:
            have = len(list((path / "checkpoints").glob("step-*")))
            check_space(path, self.trained, self.config.keep_checkpoints, have)
            self.run = RunDirectory.begin(self.config, resume, self._say)

        self.processes.on_main(make)
        return self.run

    def _check_policy(self) -> None:
        """Check, before the first step, that this model scores and hears as it should, and say what was found."""
        first = range(min(2, len(self.train_rows)))
        with Busy(self._say, "checking the model on training rows", quiet=True):
            found, left_out, _ = self._with_usable_audio(first, partial(check_policy, self.policy))
        for line in (*(f"start: {line}" for line in left_out), *found, *self.begin_sampler(first)):
            self._say(line)
        note = note_on_validation(self.config, self.train_rows, self.eval_rows)
        for line in (*([note] if note else []), *self.advice()):
            self._say(f"start: {line}")
        took = f", {self.measured.per_token / 1e6:.2f} MB each" if self.measured is not None else ""
        self._say(f"token budget: {self.policy.token_budget} padded tokens a forward{took}")
        if self.processes.sharded:
            self._say(
                f"frozen layers are sharded over {self.processes.count} processes (FSDP2). This is experimental: it "
                "was tested on CPUs only, never on a GPU"
            )

    # -- what the loop asks for (leaf.train.steps) ---------------------------------------------------------------------
    def step(self, number: int) -> None:
        """Take a step: roll out, update, record. A long one says every half minute that it goes on."""
        say = self._say if self.on_step is None else lambda line: None  # a live view shows the time
        with Busy(say, f"step {number}/{self.length.steps}", quiet=True):
            self._step(number)

    def _step(self, number: int) -> None:
        self.seconds = {}
        began = time.perf_counter()
        reset_peak(self.policy.device)
        if is_warm_restart(self.length, number):
            self.optimizer.state.clear()
            self._say(f"step {number}: a new epoch begins; the optimiser and the schedule begin afresh")
        # A rollout changes nothing that is saved, so a signal may end it. With several processes it may not: the
        # others would wait for this one in the next collective.
        with self.stop.obeyed(self.processes.alone):
            self.sync_sampler(number - 1)
            rolled_out = self.processes.together(lambda: self.rollout(number))
            rolled_out = self.choose_groups(rolled_out)
            rolled_out = credited_together(rolled_out, self.rule, self.config, self.processes, self.policy.tokenizer)
        mismatch = self.check_mismatch(rolled_out)
        whole = gathered(rolled_out, self.processes)
        for line in whole.left_out:
            self._say(line)
        record = {
            "step": number,
            **rollout_statistics(whole.groups, whole.rewards, whole.advantages, whole.shares, whole.by_function),
            **passed_over_statistics(whole),
            **{f"logged/{name}": value for name, value in whole.logged.items()},
            "reward_errors": whole.reward_errors,
            "bad_audio": whole.bad_audio,
            **mismatch,
            **self.update(rolled_out),
        }
        self.streaks.step(record)
        record["token_budget"] = self.policy.token_budget
        record["learning_rate"] = self.schedule.get_last_lr()[0]
        spent = {f"seconds/{name}": value for name, value in self.seconds.items()}
        spent["seconds/step"] = time.perf_counter() - began
        spent["memory/peak_gb"] = peak_bytes(self.policy.device) / 1e9
        record |= self.processes.max(spent)  # of the slowest and the largest process
        self.processes.on_main(partial(self._log, number, record, whole))

    def validate(self) -> None:
        """Score the validation rows, and keep the adapter as best/ if it is the best so far."""
        if len(self.eval_rows) == 0:
            return
        with self.stop.obeyed(self.processes.alone):
            result = self.evaluate()
        self.processes.on_main(partial(self._log_validation, result))

    def save(self) -> None:
        """Write last/ (adapter) and the checkpoint of the last step taken."""
        self.processes.on_main(self._write)

    def asked_to_stop(self) -> bool:
        """Tell whether any process was asked to stop; all get the same answer, so that they stop together."""
        return self.processes.sum([float(self.stop.asked)])[0] > 0

    # -- bookkeeping ---------------------------------------------------------------------------------------------------
    def _log(self, step: int, record: dict[str, Any], rollout: Rollout) -> None:
        assert self.run is not None
        config = self.config
        self.run.append("metrics.jsonl", record)
        self.tracking.step(step, record)
        if config.record_every and (step == 1 or step % config.record_every == 0):
            self.tracking.completions(step, rollout, RECORDED, self.policy.tokenizer)
            for i in range(min(RECORDED, len(rollout.groups))):
                earned = (rollout.rewards[i], rollout.advantages[i], rollout.shares[i])
                what = (rollout.rows[i], rollout.groups[i], *earned)
                more = (rollout.by_function[i], rollout.extra[i])
                self.run.append("groups.jsonl", {"step": step, **group_record(*what, self.policy.tokenizer, *more)})
        if self.on_step is not None:
            self.on_step(record)
        else:
            self.say(f"step {step}/{self.length.steps}  {step_line(record)}")

    def _log_validation(self, result: Evaluation) -> None:
        assert self.run is not None
        step, values = self.done, result.values()
        bounds = {}
        for name, (low, high) in result.intervals.items():
            bounds |= {f"{name}/low": low, f"{name}/high": high}
        self.run.append("validation.jsonl", {"step": step, **values, **bounds})
        write_signatures(self.run, result.signatures)
        self.tracking.validation(step, values)
        for note in result.notes:
            self.say(f"step {step}: validation: {note}")
        self.say(f"step {step}/{self.length.steps}  validation  {scores_line(values)}")
        assert self.validation is not None
        score = result.scores.get(self.validation.best)
        if score is None:
            self.say(f"step {step}: {self.validation.best} was not measured, so best/ stays as it is")
        elif step > 0 and (self.best is None or self.validation.beats(score, self.best)):
            self.best = score
            self.run.replace_directory("best", self._save_adapter)

    def _write(self) -> None:
        assert self.run is not None
        assert self.checkpoints is not None
        if self.done > 0:
            self._write_last()
        # The checkpoint comes last: whatever a kill leaves undone before it, the resumed run does again.
        self.checkpoints.save(
            self.done,
            validation_due=self.validation_due,
            best=self.best,
            token_budget=self.policy.token_budget,
            rows_at_once=self.policy.rows_at_once,
            sampled_at_once=self.policy.sampled_at_once,
            keeps_prompts=self.policy.keeps_prompts,
            processes=self.processes.count,
            skipped_in_a_row=self.skips.in_a_row,
            streaks=self.streaks.lengths,
        )

    def _write_last(self) -> None:
        assert self.run is not None
        self.run.replace_directory("last", self._save_adapter)

    def _save_adapter(self, folder: Path) -> None:
        """Write the adapter with its model card."""
        assert self.run is not None
        self.policy.save_adapter(folder)
        describe_adapter(folder, self.run, self.done, self.policy, projector=self.config.projector is not None)

    def _restore_adapters(self) -> None:
        """Write last/ again where it is lost, and say so of best/, which the next validation then writes."""
        assert self.run is not None
        if self.done > 0 and (lost := lost_adapter(self.run.path / "last")):
            self._say(f"{lost}; it is written again, from the checkpoint")
            self._write_last()
        if self.best is not None and (lost := lost_adapter(self.run.path / "best")):
            self._say(f"{lost}; the best adapter from here on takes its place")
            self.best = None

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Take the position of the run, and what memory was found to allow, from the state of a checkpoint."""
        config, policy = self.config, self.policy
        self.done, self.best = state["step"], state["best"]
        self.validation_due = state["validation_due"] and config.eval_every > 0
        self.skips.in_a_row = state["skipped_in_a_row"]
        self.streaks.restore(state["streaks"])
        if self.processes.count != state["processes"]:
            noise = ", as will the noise of LoRA dropout" if config.lora_dropout else ""
            self._say(f"{self.processes.count} processes, was {state['processes']}: the last bits will differ{noise}")
        if config.token_budget == state["recipe"]["token_budget"]:
            # Other micro-batches would add up to other last bits.
            policy.token_budget = state["token_budget"]
            policy.rows_at_once = state.get("rows_at_once", policy.rows_at_once)  # older checkpoints do not say
            policy.sampled_at_once = state.get("sampled_at_once")
            policy.keeps_prompts = state.get("keeps_prompts", policy.keeps_prompts)
