"""What may go wrong within a run: steps that are not finite, rewards that fail, rows that are broken."""

import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file

from leaf import LeafTrainer
from leaf.config import LeafConfig
from leaf.credit import CREDIT_RULES
from leaf.errors import AudioError, ConfigError, DataError, RewardError, RunError
from leaf.model.policy import Policy
from leaf.rewards.total import Rewards
from leaf.runs.skipped import SkippedSteps
from leaf.train.records import rollout_statistics
from leaf.train.rollout import unscore_unsampled
from leaf.train.steps import take_steps
from leaf.train.streaks import Streaks
from tests.helpers import tiny


def letters(completions, **columns):
    return [sum(letter in "aeiou" for letter in text) / 10 for text in completions]


def trainer(tmp_path, rewards=letters, rows=None, **changes) -> tuple[Any, list[str]]:
    values = {
        "output_dir": str(tmp_path / "run"),
        "max_steps": 4,
        "prompts_per_rollout": 2,
        "num_completions": 3,
        "max_new_tokens": 5,
        "learning_rate": 1e-2,
        "lora_r": 2,
        "lora_dropout": 0.0,
        "device": "cpu",
        "eval_every": 0,
        "save_every": 1,
        "warmup_steps": 3,
    }
    model, processor = tiny.tiny_model()
    said = []
    config = LeafConfig(**(values | changes))
    made = LeafTrainer(model, [rewards], config, rows or tiny.rows(4), None, processor, say=said.append)
    return made, said


def records(tmp_path):
    return [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]


def poison(made, at, kind):
    """Put NaN into the loss or infinity into the gradient of the update of some steps."""
    read, rollout, now = made.policy.read, made.rollout, [0]

    def at_step(step):
        now[0] = step
        return rollout(step)

    def poisoned(hidden, row, token):
        log_probs, entropies = read(hidden, row, token)
        if torch.is_grad_enabled() and now[0] in at:
            if kind == "loss":
                log_probs = log_probs * math.nan
            else:
                log_probs.register_hook(lambda gradient: gradient * math.inf)
        return log_probs, entropies

    made.rollout, made.policy.read = at_step, poisoned


@pytest.mark.parametrize("kind", ["loss", "gradient"])
@pytest.mark.parametrize("at", [{1}, {2, 3}])
def test_a_step_that_is_not_finite_is_skipped_and_leaves_no_trace_in_the_weights(tmp_path, kind, at):
    made, said = trainer(tmp_path)
    poison(made, at, kind)
    seen = []
    step = made._optimizer_step

    def watched(part, count):
        before = {name: p.detach().clone() for name, p in made.trained.items()}
        moments = {key: value.clone() for p in made.parameters for key, value in made.optimizer.state[p].items()}
        rate = made.schedule.last_epoch
        stats, taken = step(part, count)
        same = all(torch.equal(before[name], p) for name, p in made.trained.items())
        kept = {key: value for p in made.parameters for key, value in made.optimizer.state[p].items()}
        seen.append((taken, same, taken or all(torch.equal(moments[k], kept[k]) for k in moments)))
        assert made.schedule.last_epoch == rate + 1  # the schedule counts updates, skipped ones too
        assert all(p.grad is None for p in made.parameters)
        return stats, taken

    made._optimizer_step = watched
    made.train()
    assert seen == [(i not in at, i in at, True) for i in (1, 2, 3, 4)]
    got = records(tmp_path)
    assert [record["skipped_steps"] for record in got] == [int(i in at) for i in (1, 2, 3, 4)]
    assert [record["grad_norm"] is None for record in got] == [i in at for i in (1, 2, 3, 4)]
    for file in (tmp_path / "run").rglob("*.safetensors"):
        assert all(bool(tensor.isfinite().all()) for tensor in load_file(file).values())
    lines = [line for line in said if "was skipped" in line]
    assert len(lines) == len(at)
    wanted = "the loss is nan" if kind == "loss" else "the gradient norm is"
    assert all(wanted in line and re.search(r"This update has the rows '\d', '\d'\.", line) for line in lines)


def test_too_many_skipped_steps_in_a_row_end_the_run_with_what_to_do(tmp_path):
    made, _ = trainer(tmp_path, max_steps=9)
    made.skips.limit = 1
    poison(made, {2, 4, 5}, "loss")
    wanted = r"2 optimiser steps in a row .*1 are allowed: the loss is nan, with weights in float32\. This update has "
    with pytest.raises(RunError, match=wanted + r"the rows '\d', '\d'\. .*lower learning_rate"):
        made.train()
    assert [record["skipped_steps"] for record in records(tmp_path)] == [0, 1, 0, 1]
    again, _ = trainer(tmp_path, max_steps=9)
    again.train(resume_from_checkpoint=True)  # more are allowed now
    assert [record["step"] for record in records(tmp_path)] == list(range(1, 10))


def test_supervised_steps_are_skipped_alike(tmp_path, monkeypatch):
    from leaf.config import SftConfig
    from leaf.runs.directory import RunDirectory
    from leaf.train import sft as stage

    config = SftConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=3,
        batch_size=1,
        eval_every=0,
        eval_items=1,
        lora_r=2,
        device="cpu",
        learning_rate=1e-2,
    )
    policy = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2))
    plain, calls, said = stage.sft_gradient, [], []

    def poisoned(*arguments):
        calls.append(1)
        return plain(*arguments) * (math.nan if len(calls) == 1 else 1.0)

    monkeypatch.setattr(stage, "sft_gradient", poisoned)
    stage.sft(config, policy, tiny.rows(3), tiny.rows(1), RunDirectory.create(config), said.append)
    assert [record["skipped_steps"] for record in records(tmp_path)] == [1, 0, 0]
    assert [record["loss"] is None for record in records(tmp_path)] == [True, False, False]
    assert any("the loss is nan. This update has the rows '" in line for line in said)
    assert all(bool(p.isfinite().all()) for p in policy.parameters())


def test_half_precision_is_advised_against_and_a_step_taken_begins_the_count_anew():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    what = (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 1.0))
    with pytest.raises(RunError, match=r"with weights in bfloat16.*This update has the rows 'a'.*use dtype: float32"):
        SkippedSteps(torch.bfloat16, print, limit=0).take(*what, 1, 0.5, math.inf, lambda: "rows 'a'")
    skips = SkippedSteps(torch.float32, lambda line: None, limit=1)
    for _ in range(3):
        assert not skips.take(*what, 1, math.nan, math.nan, lambda: "rows 'a'")
        assert skips.take(*what, 1, 0.5, 0.5, lambda: "rows 'a'")


def test_completions_drawn_from_nothing_are_unscored(policy):
    from leaf.model.sampling import sample

    groups = sample(policy, policy.embed(tiny.rows(2)), num_completions=3, max_new_tokens=4)
    groups[1].surprisal[0, 0] = math.nan
    kept, rewards, count = unscore_unsampled(groups, [torch.ones(3), torch.ones(3)])
    assert count == 1
    assert kept[1].surprisal.isfinite().all()
    assert rewards[0].tolist() == [1, 1, 1]
    assert rewards[1].isnan().tolist() == [True, False, False]


def test_a_model_that_overflows_while_sampling_skips_its_steps(tmp_path):
    """NaN logits everywhere: nothing is scored, every step is skipped, and the run says what to do."""
    made, said = trainer(tmp_path)
    made.skips.limit = 2
    made.start()
    decode = made.policy.decode
    made.policy.decode = lambda embeddings, **arguments: decode(embeddings, **arguments) * math.nan
    with pytest.raises(RunError, match="3 optimiser steps in a row"):
        take_steps(made)
    assert any("6 completions came from logits that are not finite" in line for line in said)
    assert [record["unscored"] for record in records(tmp_path)] == [6, 6]


def test_a_run_goes_on_without_the_completions_a_reward_failed_on(tmp_path):
    calls = []

    def moody(completions, **columns):
        calls.append(1)
        if len(calls) == 2:
            raise ConnectionError("the judge is away")
        values = letters(completions)
        return values if len(calls) != 3 else ["bad", *values[1:]]

    made, said = trainer(tmp_path, moody, tolerate="skip")
    made.train()
    assert [record["reward_errors"] for record in records(tmp_path)] == [0, 6, 1, 0]
    assert [record["unscored"] for record in records(tmp_path)] == [0, 6, 1, 0]
    assert any("step 2: left unscored: The reward function moody raised ConnectionError: the judge" in s for s in said)
    calls.clear()
    with pytest.raises(RewardError, match="moody raised ConnectionError"):
        trainer(tmp_path / "other", moody)[0].train()


def test_rewards_too_large_to_be_added_up_are_refused_or_left_out(tmp_path):
    def huge(completions, **columns):
        return [1e308] * len(completions)

    with pytest.raises(RewardError, match=r"huge returned 1e\+308 for completion 0; allowed are .* up to 1e\+30"):
        trainer(tmp_path / "stop", huge)[0].train()
    trainer(tmp_path, huge, tolerate="skip", max_steps=1)[0].train()
    assert [record["reward_errors"] for record in records(tmp_path)] == [6]
    bound = Rewards([lambda **_: [1e30] * 2] * 2, weights=[1e30, 1e30])(completions=["a", "b"])
    assert np.isfinite(bound.totals**2).all()
    with pytest.raises(ConfigError, match="one number for each, up to 1e"):
        Rewards([huge], weights=[1e31])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (
            lambda tree, rewards, surprisal: torch.full(tree.node.shape, 1e39, dtype=torch.float64),
            "that are not finite in float32",
        ),
        (lambda tree, rewards, surprisal: rewards, r"of shape \(3,\)"),
        (lambda tree, rewards, surprisal: None, "None"),
    ],
)
def test_a_rule_of_the_users_own_is_held_to_its_shape_and_to_finite_numbers(tmp_path, rule, message):
    model, processor = tiny.tiny_model()
    config = LeafConfig(output_dir=str(tmp_path / "run"), num_completions=3, lora_r=2, device="cpu", max_new_tokens=5)
    made = LeafTrainer(model, [letters], config, tiny.rows(4), None, processor, credit=rule, say=lambda line: None)
    wanted = rf"The credit rule <lambda> gave .*{message}.*; it must return a tensor of finite"
    with pytest.raises(ConfigError, match=wanted):
        made.train()


def test_validation_leaves_out_rows_whose_audio_is_broken(tmp_path):
    """No other row stands for them: it would weigh as much as all of them in the score that chooses the adapter."""
    rows = [{**row, "id": f"v{i}"} for i, row in enumerate(tiny.rows(6))]
    (tmp_path / "broken.wav").write_bytes(b"nothing")
    for row in rows[1:4]:
        row["audio"] = str(tmp_path / "broken.wav")
    made, said = trainer(tmp_path, tolerate="skip", eval_items=5)
    made.eval_rows = rows
    assert [row["id"] for row in made.evaluate().rows] == ["v0", "v4"]
    (line,) = [line for line in said if "validation" in line]
    assert line.startswith("validation: 3 of 5 rows have no usable audio and are left out. The first: Row 'v1': The")
    made.eval_rows = rows[1:4]
    with pytest.raises(AudioError, match=r"No row is left to validate: 3 of 3 rows have no usable audio\. The first"):
        made.evaluate()
    made.config = replace(made.config, tolerate="stop")
    with pytest.raises(AudioError, match=r"Row 'v\d': The audio file"):
        made.evaluate()


def test_a_run_goes_on_without_a_row_whose_audio_is_broken(tmp_path):
    rows = tiny.rows(4)
    (tmp_path / "broken.wav").write_bytes(b"nothing")
    rows[2]["audio"] = str(tmp_path / "broken.wav")
    rows = [{**row, "audio": row["audio"]} for row in rows]
    made, said = trainer(tmp_path, rows=rows, tolerate="skip")
    made.train()
    got = records(tmp_path)
    assert sum(record["bad_audio"] for record in got) == 2  # 8 draws from 4 rows
    assert sum("left out, the next row takes its place: Row '2': The audio file" in line for line in said) == 2
    with pytest.raises(AudioError, match=r"Row '2': The audio file .*broken\.wav cannot be read"):
        trainer(tmp_path / "other", rows=rows)[0].train()
    for row in rows:
        row["audio"] = str(tmp_path / "broken.wav")
    with pytest.raises(DataError, match="4 rows, one after the other, have no usable audio"):
        trainer(tmp_path / "third", rows=rows, tolerate="skip")[0].train()


def test_a_run_says_when_it_learns_nothing():
    said = []
    streaks = Streaks(said.append, patience=3)
    good = {"reward_mean": 0.5, "zero_variance_groups": 0.5, "truncated": 0.1}
    for step, record in enumerate(
        [
            good,
            *[good | {"zero_variance_groups": 1.0}] * 4,
            good,
            *[good | {"truncated": 1.0}] * 3,
            *[good | {"reward_mean": None, "zero_variance_groups": 1.0}] * 3,
        ]
    ):
        streaks.step({"step": step, **record})
    assert [line[:20] for line in said] == [
        "step 3: for 3 steps ",
        "step 8: for 3 steps ",
        "step 11: for 3 steps",
    ]
    for line, words in zip(said, ["all equal", "without ending", "no completion was scored"], strict=True):
        assert words in line


def test_streaks_of_a_checkpoint_of_version_0_1_go_on():
    """Its keys are the sentences of that version."""
    said = []
    streaks = Streaks(said.append, patience=3)
    old = {
        "no completion was scored, so there is nothing to learn from. Look at what the reward functions return": 0,
        "the rewards within every group were all equal, so there is nothing to learn from. Use a reward with finer "
        "levels, a higher temperature or other rows": 2,
        "every completion reached max_new_tokens without ending. Raise it, or check that the prompt's template "
        "makes the model end its answers": 7,
    }
    streaks.restore(old)
    assert streaks.lengths == {"unscored": 0, "flat": 2, "truncated": 7}
    streaks.step({"step": 9, "reward_mean": 0.5, "zero_variance_groups": 1.0, "truncated": 1.0})
    assert streaks.lengths == {"unscored": 0, "flat": 3, "truncated": 8}
    assert [line[:45] for line in said] == ["step 9: for 3 steps the rewards within every "]
    again = Streaks(said.append)
    again.restore(streaks.lengths)
    assert again.lengths == streaks.lengths


@pytest.mark.parametrize("credit", sorted(CREDIT_RULES))
def test_completions_that_are_empty_endless_equal_or_unscored_give_finite_steps(tmp_path, credit, monkeypatch):
    """One step each: all empty, all cut at the limit, all rewards equal, none scored; every rule, no NaN anywhere."""
    from leaf.model import sampling

    made, _ = trainer(tmp_path, lambda completions, kind=("equal",), **_: rewards[kind[0]], credit=credit, max_steps=1)
    rewards = {"equal": [0.5] * 6, "none": [None] * 6, "mixed": [0.1, None, 0.9, math.nan, 0.2, 0.2]}
    choose = sampling.choose
    eos = made.policy.eos_token_ids[0]
    for kind in rewards:
        made.train_rows = [{**row, "kind": kind} for row in tiny.rows(2)]
        for forced in (eos, 5, None):

            def forced_choice(logits, row, top_p, greedy, draws, forced=forced):
                tokens, nats = choose(logits, row, top_p, greedy, draws)
                return (tokens if forced is None else torch.full_like(tokens, forced)), nats

            monkeypatch.setattr(sampling, "choose", forced_choice)
            rollout = made.rollout(1)
            width = rollout.groups[0].tokens.shape[1]
            assert forced is None or width == (1 if forced == eos else 5)
            assert bool(rollout.groups[0].truncated.all()) or forced != 5
            for advantages, reward in zip(rollout.advantages, rollout.rewards, strict=True):
                assert advantages.isfinite().all()
                assert not advantages[reward.isnan()].any()
                assert kind == "mixed" or not advantages.any()
            stats = made.update(rollout)
            assert stats["skipped_steps"] == 0
            assert all(value is not None and math.isfinite(value) for value in stats.values())
            statistics = rollout_statistics(rollout.groups, rollout.rewards, rollout.advantages, rollout.shares)
            json.dumps(statistics, allow_nan=False)
    assert all(bool(p.isfinite().all()) for p in made.parameters)
