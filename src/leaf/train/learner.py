"""The steps of reinforcement learning: a rollout, then updates. Which credit rule runs does not show here."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers.trainer_callback import TrainerState

from leaf.config import LeafConfig
from leaf.credit import BatchCredit, CreditRule
from leaf.credit.correction import DIFFERENCE, Correction
from leaf.data.rows import batch_indices, subset, take
from leaf.engines.samplers import allowed_by, make_sampler, overlaps, weighing
from leaf.errors import AudioError
from leaf.evaluation.evaluate import Evaluation, evaluate
from leaf.evaluation.fitting import reward_advice, texts_and_languages
from leaf.evaluation.predict import Decoding
from leaf.evaluation.registry import Scoring
from leaf.model.draws import step_generator
from leaf.model.from_recipe import has_dropout, set_token_budget
from leaf.model.policy import Policy, Prompt
from leaf.model.sampler import Sampler
from leaf.model.sampler_check import check_sampler, random_adapter, tolerance_of
from leaf.model.sampling import Group
from leaf.model.usable import rows_with_audio, unusable_audio
from leaf.progress import Busy
from leaf.rewards.total import Rewards
from leaf.runs.alike import check_alike
from leaf.runs.processes import Processes
from leaf.runs.signals import StopSignals
from leaf.runs.skipped import SkippedSteps
from leaf.train.ahead import Drawn, copied, in_background, with_weights
from leaf.train.choosing import choose, chooses, further_rows
from leaf.train.elsewhere import Agreement, Source, compare, over_processes
from leaf.train.parts import cut
from leaf.train.phases import watched_by
from leaf.train.rollout import Rollout, drawing_of, embed, rollout
from leaf.train.schedule import build_optimizer, build_schedule, run_length
from leaf.train.update import optimizer_step, update_record
from leaf.train.validation import plan_validation

T = TypeVar("T")


class Learner:
    """Roll out, update and validate by a recipe, with its share of the work in each process.

    A learner knows no run directory: `leaf.train.trainer.RLTrainer` adds one.

    Args:
        policy: the model with the adapter that is trained; it is moved to the recipe's device.
        rewards: the reward functions.
        rule: the credit rule, as `leaf.credit.credit_rule` gives it: called as `rule(tree, rewards, surprisal=...)`.
        config: the recipe.
        train_rows, eval_rows: rows with `prompt`, `audio` and `reference`; further columns reach the rewards.
        accelerator: Accelerate's handle on device and processes.
        say: takes every line meant for a person, in the main process.
        sampler: draws the completions of rollouts and validation; default the recipe's.
    """

    def __init__(
        self,
        policy: Policy,
        rewards: Rewards,
        rule: CreditRule | BatchCredit,
        config: LeafConfig,
        train_rows: Any,
        eval_rows: Any,
        accelerator: Accelerator,
        say: Callable[[str], None],
        sampler: Sampler | None = None,
    ):
        self.policy, self.rewards, self.rule, self.config = policy, rewards, rule, config
        self.train_rows, self.eval_rows = train_rows, [] if eval_rows is None else eval_rows
        self.stop = StopSignals()
        self.accelerator, self.say = accelerator, self.stop.heard(say)
        self.done = 0  # steps taken
        self.validation = plan_validation(config, rewards, self.eval_rows, train_rows) if len(self.eval_rows) else None
        self.processes = Processes(accelerator)
        self.sampler: Sampler = sampler or make_sampler(config, self._say)
        functions = {name: found.function for name, found in rewards.functions.items()}
        check_alike(self.processes, config, policy, functions, rule, train_rows, self.eval_rows)
        self.processes.place(policy)
        behind = config.num_completions * config.max_new_tokens
        self.measured = self.processes.together(lambda: set_token_budget(policy, config, behind))
        policy.token_budget = min(self.processes.gather(policy.token_budget))
        self.trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        self.processes.agree(self.parameters)
        completions = config.prompts_per_rollout * config.num_completions
        parts = math.ceil(completions / (config.completions_per_update or completions))
        self.updates_per_rollout = config.passes_per_rollout * parts
        # Otherwise the update scores with another model than the one that sampled: with dropout, after an update, or
        # because an engine elsewhere sampled.
        self.on_policy = self.updates_per_rollout == 1 and not has_dropout(policy) and self.sampler.exact
        self.optimizer: torch.optim.Optimizer = build_optimizer(self.parameters, config)
        self.length = run_length(config, len(train_rows))
        self.schedule = build_schedule(
            self.optimizer,
            config,
            self.length.cycle * self.updates_per_rollout,
            restarts=config.epochs is not None,
            updates_per_step=self.updates_per_rollout,
        )
        self.skips = SkippedSteps(policy.base.dtype, self._say)
        self.agreement = Agreement(tolerance_of(policy, allowed_by(config)), self._say)
        self._ahead: Drawn | None = None
        self.seconds: dict[str, float] = {}  # phase of the step → seconds

    @property
    def parameters(self) -> list[Tensor]:
        """The trained parameters."""
        return list(self.trained.values())

    def rollout(self, step: int) -> Rollout:
        """Roll out this process's prompts of a step.

        What a prompt draws depends on the seed, the step and its position among all prompts of the step, so the number
        of processes changes no completion.
        """
        return self._roll_out(step, 0)

    def choose_groups(self, rollout: Rollout) -> Rollout:
        """Choose the groups that the step learns from, after further rounds where the recipe asks for them."""
        if not chooses(self.config):
            return rollout

        def further(number: int) -> Rollout | None:
            if len(self._rows_of_all(rollout.step, number)) < self.processes.count:  # every process has at least one
                return None
            return self.processes.together(lambda: self._roll_out(rollout.step, number))

        return choose(rollout, self.config, self.processes, further)

    def _roll_out(self, step: int, number: int) -> Rollout:
        """Roll out this process's prompts of a round of a step; 0 is the first."""
        config = self.config
        positions = self._positions(step, number)
        how: dict[str, Any] = {"on_policy": self.on_policy, "trainer_state": self._trainer_state(step - 1)}
        # Further rounds would keep more prompts than the token budget is for.
        how["keep_prompts"] = self.on_policy and not chooses(config) and not self.processes.sharded

        def roll_out(rows: list[dict[str, Any]], groups: list[Group] | None = None) -> Rollout:
            how["source"] = Source(self.sampler, weighing(config), groups)
            return rollout(self.policy, rows, self.rule, self.rewards, config, self._draws(step, number), **how)

        with watched_by(self._phase):
            if overlaps(config):
                made, lines, replaced = self._rollout_ahead(step, roll_out)
            else:
                made, lines, replaced = self._with_usable_audio(self._rows(step, number), roll_out)
        # The main process says all lines, so those of the others name their process.
        who = f"step {step}" if self.processes.main else f"step {step}, process {self.processes.index}"
        left_out = [f"{who}: {line}" for line in (*lines, *made.left_out)]
        return replace(made, step=step, positions=positions, bad_audio=replaced, left_out=left_out)

    def _rows_of_all(self, step: int, number: int) -> list[int]:
        """Choose the training rows of a round of a step, those of all processes."""
        first = batch_indices(len(self.train_rows), self.config.prompts_per_rollout, step - 1, self.config.seed)
        return further_rows(self.config, len(self.train_rows), step, first, number) if number else first

    def _rows(self, step: int, number: int = 0) -> list[int]:
        """Choose the training rows of a round that are this process's."""
        indices = self._rows_of_all(step, number)
        return [indices[i] for i in self.processes.positions(len(indices))]

    def _positions(self, step: int, number: int = 0) -> list[int]:
        """Tell where this process's prompts of a round are among all prompts of the step."""
        before = number * self.config.prompts_per_rollout
        return [before + i for i in self.processes.positions(len(self._rows_of_all(step, number)))]

    def _draws(self, step: int, number: int = 0) -> list[torch.Generator]:
        """Make the random generators of this process's prompts of a round."""
        return [step_generator(self.config.seed, step, position) for position in self._positions(step, number)]

    def _rollout_ahead(
        self, step: int, roll_out: Callable[[list[dict[str, Any]], list[Group]], Rollout]
    ) -> tuple[Rollout, list[str], int]:
        """Take the completions that were drawn ahead, let those of the next step be drawn, and go on with the first."""
        drawn = self._ahead if self._ahead is not None and self._ahead.step == step else self._draw_ahead(step)
        groups = drawn.groups()
        stale = drawn.version != step - 1
        self._ahead = self._draw_ahead(step + 1) if step < self.length.steps else None
        made = roll_out(drawn.rows, groups)
        if stale:  # whether the sampler is right shows only with the weights that it drew from
            with with_weights(self.trained, drawn.weights):
                made = replace(made, engine=compare(self.policy, groups, Correction("none")).mismatch)
        return made, drawn.lines, drawn.replaced

    def _draw_ahead(self, step: int) -> Drawn:
        """Let the completions of a step be drawn in the background, from the weights that the sampler has now."""
        sampler: Any = self.sampler  # an AheadSampler
        rows: list[dict[str, Any]] = []

        def embedded(usable: list[dict[str, Any]]) -> list[Prompt]:
            rows[:] = usable
            return embed(self.policy, usable)

        prompts, lines, replaced = self._with_usable_audio(self._rows(step), embedded)
        drawing = drawing_of(self.config, self.rule, sampler)
        draw = sampler.start(self.policy, prompts, drawing, self._draws(step))
        return Drawn(step, sampler.version, rows, lines, replaced, copied(self.trained), in_background(draw))

    def reach_sampler(self) -> None:
        """Look for the servers of a sampler elsewhere: one that is not there is said before a directory is made."""
        if self.sampler.exact:
            return
        try:
            self.processes.together(lambda: self.sampler.begin(self.policy, self.stop.check))
        except BaseException:
            self.sampler.close()
            raise

    def begin_sampler(self, rows: Sequence[int]) -> list[str]:
        """Get the sampler ready, and check one that is elsewhere with random weights in the adapter; return lines.

        Args:
            rows: numbers of training rows to check it on.

        Raises:
            ModelError: it does not draw from the policy.
        """
        self._ahead = None
        lines = self.processes.together(lambda: self.sampler.begin(self.policy, self.stop.check))
        if self.sampler.exact:
            return lines
        prompts, _, _ = self._with_usable_audio(rows, self.policy.embed)
        allowed = self.agreement.tolerance
        with random_adapter(self.policy, prompts, allowed) as moved:
            self.sync_sampler(-1)
            apart = self.processes.together(partial(check_sampler, self.policy, self.sampler, prompts, allowed))
        return [*lines, f"the sampler uses the adapter: random weights, {moved:.2g} nats from none, are off by {apart}"]

    def sync_sampler(self, version: int) -> None:
        """Bring the present weights, made by so many steps, to the sampler: the main process for all, then each."""
        if not self.sampler.exact:
            self.processes.on_main(lambda: self.sampler.sync(self.policy, version))
        if self.sampler.exact or not self.processes.main:
            self.sampler.sync(self.policy, version, push=False)

    def check_mismatch(self, rollout: Rollout) -> dict[str, float]:
        """Compute over all processes how far sampler and policy are apart, as recorded; {} where they are the same.

        Raises:
            ModelError: too far, twice in a row.
        """
        if rollout.mismatch is None:
            return {}
        record = over_processes(rollout.mismatch, self.processes).record()
        mean, largest = record[DIFFERENCE + "mean"], record[DIFFERENCE + "max"]
        if rollout.engine is not None:
            of_its_weights = over_processes(rollout.engine, self.processes).record()
            mean, largest = of_its_weights[DIFFERENCE + "mean"], of_its_weights[DIFFERENCE + "max"]
        self.agreement.step(rollout.step, mean, largest)
        return record | {"sampling/engine_logp_difference/mean": mean, "sampling/engine_logp_difference/max": largest}

    def update(self, rollout: Rollout) -> dict[str, float | None]:
        """Take the optimiser steps of one rollout and return what is recorded of them (`update_record`)."""
        config = self.config
        self.policy.train()
        updates: list[tuple[dict[str, float], bool]] = []
        with self._phase("update"):
            for _ in range(config.passes_per_rollout):
                for part in cut(rollout, config.completions_per_update, config.prompts_per_rollout, config.mix_prompts):
                    updates.append(self._optimizer_step(part, len(updates)))
        return update_record(updates)

    def _optimizer_step(self, part: Rollout, number: int) -> tuple[dict[str, float], bool]:
        trained_by = (self.optimizer, self.schedule, self.skips, self.processes)
        return optimizer_step(self.policy, part, self.config, *trained_by, number=number)

    def advice(self) -> list[str]:
        """Write a line for each reward and validation metric that says little about the references."""
        lines = reward_advice(self.rewards, *texts_and_languages(self.train_rows))
        return lines + (self.validation.notes if self.validation is not None else [])

    def evaluate(self) -> Evaluation:
        """Score the validation rows with the recipe's decoding; all processes share the work."""
        config = self.config
        self.sync_sampler(self.done)
        rows = self._rows_to_validate()
        blank = {} if self.validation is None else self.validation.blank
        with Busy(self._say, "validating", len(rows), quiet=True) as busy:
            return evaluate(
                self.policy,
                [{**blank, **row} for row in rows],
                Decoding.of_recipe(config, greedy=config.eval_greedy),
                Scoring() if self.validation is None else self.validation.scoring,
                progress=lambda count: self._count(busy, count),
                processes=self.processes,
                trainer_state=self._trainer_state(self.done),
                sampler=self.sampler,
            )

    def _rows_to_validate(self) -> list[dict[str, Any]]:
        """Take the validation rows; where the recipe says so, those without usable audio are left out.

        Raises:
            AudioError: none is left.
        """
        config = self.config
        rows = take(self.eval_rows, subset(len(self.eval_rows), config.eval_items, config.eval_items_seed))
        bad = unusable_audio(self.policy, rows, decode=True) if config.tolerate == "skip" else {}
        if bad:
            about = f"{len(bad)} of {len(rows)} rows have no usable audio"
            first = f"The first: {next(iter(bad.values()))}"
            if len(bad) == len(rows):
                raise AudioError(f"No row is left to validate: {about}. {first} Check where the manifest points.")
            self._say(f"validation: {about} and are left out. {first}")
        return [row for number, row in enumerate(rows) if number not in bad]

    def _count(self, busy: Busy, count: int) -> None:
        """Count rows that were validated; between two batches the run may stop."""
        busy.add(count * self.processes.count)
        self.stop.check()

    def _trainer_state(self, step: int) -> TrainerState:
        """Tell reward functions, as TRL does, how many steps were taken."""
        epoch = step * self.config.prompts_per_rollout / len(self.train_rows)
        return TrainerState(global_step=step, max_steps=self.length.steps, epoch=epoch)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Time a phase of a step; ahead of it is a moment at which the run may stop."""
        self.stop.check()
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began

    def _with_usable_audio(
        self, indices: Sequence[int], action: Callable[[list[dict[str, Any]]], T]
    ) -> tuple[T, list[str], int]:
        """Call `action` on training rows; where the recipe says so, the next row replaces one without usable audio.

        Returns:
            What the action gave, lines about rows that were replaced, and how many there were.
        """
        rows = take(self.train_rows, indices)
        try:
            return action(rows), [], 0
        except AudioError:  # raised while prompts are embedded, before anything is drawn
            if self.config.tolerate == "stop":
                raise
        lines: list[str] = []
        rows, replaced = rows_with_audio(self.policy, self.train_rows, indices, lines.append)
        return action(rows), lines, replaced

    def _say(self, line: str) -> None:
        if self.processes.main:
            self.say(line)
