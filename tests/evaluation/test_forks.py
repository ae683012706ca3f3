"""Fork statistics of a checkpoint, subsets of rows by seed, and checkpoints as systems."""

import random

import pytest
import torch

from leaf.commands.evaluating import rows_of
from leaf.config import LeafConfig
from leaf.credit import Fork
from leaf.data.rows import subset
from leaf.errors import ConfigError, RunError
from leaf.evaluation.forks import as_record, boundary_options, fork_statistics, table_of
from leaf.evaluation.systems import name_systems
from leaf.rewards.total import Rewards
from leaf.runs.kept import kept_checkpoints, load_weights
from tests.helpers import tiny
from tests.helpers.families import policy_of


def test_the_record_has_both_definitions_of_usable():
    found = [
        Fork(1, True, True, (3, 2), (0.5, 0.0)),
        Fork(1, True, False, (2,), (0.0,)),
        Fork(7, False, False, (), ()),
        Fork(7, True, True, (4,), (1.0,)),
    ]
    record = as_record(found)
    assert (record["boundaries"], record["fire_rate"], record["usable_rate"]) == (4, 0.75, 0.5)
    assert (record["groups"], record["group_size"], record["reward_spread"]) == (4, 2.75, 0.375)
    assert [(one["position"], one["boundaries"], one["fire_rate"]) for one in record["positions"]] == [
        (1, 2, 1.0),
        (7, 2, 0.5),
    ]
    assert sum(one["boundaries"] for one in record["stretches"]) == 4
    assert table_of({"s": record})[0][:2] == ["s", "4"]
    assert table_of({"s": record})[0][2].startswith("75.0 (")
    assert table_of({"s": as_record([])})[0][1:4] == ["0", "–", "–"]


def test_a_policy_is_sampled_as_it_trains_and_repeats_itself():
    policy, rows = policy_of("audioflamingo3"), tiny.rows(3)
    config = LeafConfig(num_completions=4, max_new_tokens=5, prompts_per_rollout=2, temperature=0.7)
    rewards, seen = Rewards(["chrf"]), []
    found = fork_statistics(policy, rows, rewards, config, progress=seen.append)
    assert seen == [2, 1]
    assert 0 < len(found) <= 6
    assert found == fork_statistics(policy, rows, rewards, config)
    alone = fork_statistics(policy, rows[:2], rewards, config)
    assert found[: len(alone)] == alone
    assert boundary_options(LeafConfig(credit_options={"max_boundaries": 4})) == {"max_boundaries": 4, "min_prefix": 1}


def test_subsets_are_the_first_rows_or_drawn_with_a_seed():
    assert [*subset(10, 3)] == [0, 1, 2]
    assert [*subset(3, 10, seed=1)] == [*subset(3, None)] == [0, 1, 2]
    drawn = subset(100, 10, seed=5)
    assert drawn == sorted(set(drawn)) == subset(100, 10, seed=5)
    assert len(drawn) == 10
    assert drawn != subset(100, 10, seed=6)
    random.seed(0)
    assert drawn == subset(100, 10, seed=5)
    with pytest.raises(ConfigError, match="--items-seed is 3, and without --items all rows are evaluated"):
        rows_of(LeafConfig(), "test", None, set(), print, seed=3)


def test_a_run_without_checkpoints_and_foreign_weights_are_refused(tmp_path):
    assert kept_checkpoints(tmp_path) == []
    with pytest.raises(ConfigError, match="keeps no checkpoints"):
        name_systems("demo", [], with_base=False, runs=[tmp_path])
    checkpoint = tmp_path / "checkpoints" / "step-000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="has checkpoints and no last/"):
        name_systems("demo", [], with_base=False, runs=[tmp_path])
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "adapter_config.json").write_text("{}")
    with pytest.raises(RunError, match="step-000001 is damaged"):
        name_systems("demo", [], with_base=False, runs=[tmp_path])
    with pytest.raises(RunError, match="is damaged"):
        load_weights(torch.nn.Linear(1, 1), tmp_path)
