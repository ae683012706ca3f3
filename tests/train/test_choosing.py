"""Which groups a step learns from: further prompts where groups are flat, and the ones that vary most."""

import json
import random

import pytest
import torch

from leaf import LeafConfig, LeafTrainer
from leaf.errors import ConfigError
from leaf.model.policy import Prompt
from leaf.model.sampling import Group
from leaf.runs.processes import Processes
from leaf.train.choosing import PassedOver, check_choosing, choose, further_rows, passed_over_statistics
from leaf.train.making import make_accelerator
from leaf.train.rollout import Rollout
from tests.helpers import tiny

FLAT = [0.5, 0.5]


def rollout(*rewards, first=0):
    """Make a rollout of groups of two completions of one token each, whose rewards are given."""
    prompt = Prompt(torch.empty(0, 0), torch.empty(0, dtype=torch.bool))
    one = torch.ones(2, dtype=torch.long)
    group = Group(prompt, torch.tensor([[1], [2]]), one, torch.zeros(2, 1), torch.zeros(2, dtype=torch.bool))
    many = len(rewards)
    return Rollout(
        [{"id": first + i} for i in range(many)],
        [group] * many,
        [torch.tensor(values, dtype=torch.float64) for values in rewards],
        [torch.zeros(2, 1)] * many,
        [torch.ones(2)] * many,
        None,
        None,
        0,
        [],
        [{}] * many,
        [{}] * many,
        positions=range(first, first + many),
    )


@pytest.fixture(scope="module")
def processes():
    return Processes(make_accelerator(LeafConfig(device="cpu")))


def ids(chosen):
    return [row["id"] for row in chosen.rows]


def test_further_rounds_are_drawn_until_enough_groups_differ(processes):
    config = LeafConfig(prompts_per_rollout=2, dynamic_sampling=3)
    rounds = {1: rollout(FLAT, FLAT, first=2), 2: rollout([0, 1], [0, 2], first=4)}
    asked = []

    def further(number):
        asked.append(number)
        return rounds[number]

    made = choose(rollout(FLAT, [0, 4]), config, processes, further)
    assert asked == [1, 2]  # then two groups differ, and there is no third round
    assert ids(made) == [1, 4]  # the first two that differ
    assert list(made.positions) == [0, 1]
    assert made.passed_over == PassedOver(4, 8, 8, reward=3 * 1.0 + 2.0, weight=8.0)
    figures = passed_over_statistics(made)
    assert figures == {"groups_drawn": 6, "completions": 12, "tokens_decoded": 12, "reward_drawn": 10 / 12}


def test_flat_groups_fill_up_after_the_last_round_and_where_rows_run_out(processes):
    config = LeafConfig(prompts_per_rollout=3, dynamic_sampling=1)
    made = choose(rollout(FLAT, FLAT, FLAT), config, processes, lambda number: rollout(FLAT, [0, 1], FLAT, first=3))
    assert ids(made) == [0, 1, 4]
    assert ids(choose(rollout(FLAT, [0, 1], FLAT), config, processes, lambda number: None)) == [0, 1, 2]


def test_a_group_without_two_scores_is_flat_and_enough_groups_ask_for_nothing(processes):
    config = LeafConfig(prompts_per_rollout=1, dynamic_sampling=1)
    asked = []
    choose(rollout([float("nan"), 1.0]), config, processes, asked.append)
    choose(rollout([0.0, 1.0]), config, processes, asked.append)
    assert asked == [1]


def test_the_groups_that_vary_most_are_kept_in_their_order(processes):
    config = LeafConfig(prompts_per_rollout=4, keep_groups=0.5)
    made = choose(rollout([0, 1], [0, 3], FLAT, [0, 2]), config, processes, lambda number: None)
    assert ids(made) == [1, 3]
    assert list(made.positions) == [0, 1]
    assert passed_over_statistics(made)["groups_drawn"] == 4
    assert ids(choose(rollout(FLAT, FLAT, FLAT, FLAT), config, processes, lambda number: None)) == [0, 1]


def test_further_rows_are_others_and_depend_on_seed_and_step_alone():
    config = LeafConfig(prompts_per_rollout=3)
    rounds = [further_rows(config, 11, 5, [0, 4, 8], number) for number in (1, 2, 3, 4)]
    assert [len(rows) for rows in rounds] == [3, 3, 2, 0]
    assert sorted(row for rows in rounds for row in rows) == [1, 2, 3, 5, 6, 7, 9, 10]
    assert further_rows(config, 11, 5, [0, 4, 8], 1) == rounds[0]
    assert further_rows(config, 11, 6, [0, 4, 8], 1) != rounds[0]
    left = [1, 2, 3, 5, 6, 7, 9, 10]
    random.Random(f"{config.seed}/5/dynamic sampling").shuffle(left)
    assert [row for rows in rounds for row in rows] == left


@pytest.mark.parametrize("key", [{"dynamic_sampling": 2}, {"keep_groups": 0.5}])
def test_what_does_not_go_with_a_choice_is_refused(key):
    with pytest.raises(ConfigError, match="Set completions_per_update=null"):
        check_choosing(LeafConfig(completions_per_update=6, **key))
    with pytest.raises(ConfigError, match="Set sampler=local"):
        check_choosing(LeafConfig(sampler="vllm", **key))
    check_choosing(LeafConfig(**key))


def mostly_flat(completions, reference, **columns):
    """Give every completion the same reward, but for the questions of two rows."""
    teaching = [row["reference"] for row in tiny.rows(2)]
    return [len(text) / 10 if mine in teaching else 0.5 for text, mine in zip(completions, reference, strict=True)]


def trainer(tmp_path, name, **fields):
    model, processor = tiny.tiny_model()
    values = {"output_dir": str(tmp_path / name), "max_steps": 4, "prompts_per_rollout": 2, "num_completions": 3}
    values |= {"max_new_tokens": 5, "lora_r": 2, "lora_dropout": 0.0, "device": "cpu", "eval_every": 0, "save_every": 2}
    config = LeafConfig(**values | {"schedule": "constant", "dynamic_sampling": 2} | fields)
    return LeafTrainer(model, [mostly_flat], config, tiny.rows(8), processing_class=processor, say=lambda line: None)


def records(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    skipped = ("seconds", "memory")
    return [{k: v for k, v in json.loads(line).items() if not k.startswith(skipped)} for line in lines]


@pytest.mark.parametrize("fields", [{}, {"credit": "reinforce_pp", "keep_groups": 0.5}])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, fields):
    expected = records(trainer(tmp_path, "whole", **fields).train().path)
    short = trainer(tmp_path, "cut", max_steps=2, **fields)
    short.train()
    cut = trainer(tmp_path, "cut", **fields).train(resume_from_checkpoint=True)
    assert records(cut.path) == expected
    assert any(record["groups_drawn"] > 2 for record in expected)
    assert all(record["completions"] == 3 * record["groups_drawn"] for record in expected)


def test_distinct_completions_are_chosen_too(tmp_path):
    fields = {"rollout": "distinct", "credit": "unordered_set", "top_p": 1.0, "max_steps": 1}
    (record,) = records(trainer(tmp_path, "distinct", **fields).train().path)
    assert record["groups_drawn"] >= 2
    assert 0 < record["set_mass"] <= 1
