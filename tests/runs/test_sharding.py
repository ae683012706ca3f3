"""Two processes that share the frozen layers give what one process with the whole model gives."""

import json
import sys

import pytest

from leaf.commands.doctor import _sharded
from leaf.files import read_rows
from tests.helpers import processes_worker as worker
from tests.helpers import sharding_worker
from tests.helpers.processes import ROOT, assert_trained_alike, begin_alone, launch

CONFIGURATION = str(ROOT / "recipes/accelerate/fsdp2.yaml")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return the folders of the scenarios, run by one process and by two that share the layers."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    worker.run(one, (*sharding_worker.NAMES, "on_policy"))
    begin_alone(two)
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGURATION]
    launch([*accelerate, "--main_process_port", "0", "-m", "tests.helpers.sharding_worker", str(two)])
    return one, two


@pytest.mark.parametrize("name", sharding_worker.NAMES)
def test_sharded_layers_train_as_whole_ones(runs, name):
    assert_trained_alike(*(folder / name for folder in runs))


def test_a_process_that_ran_out_of_memory_tried_again_alone(runs):
    _, two = runs
    facts = json.loads((two / "ran_out.json").read_text())
    assert facts["forwards"][1] > 0
    assert facts["forwards"][2] == 0
    assert facts["token_budget"] < 80


def test_two_processes_with_shares_go_on_where_one_with_the_whole_stopped(runs):
    one, two = runs
    mine, other = read_rows(one / "on_policy/metrics.jsonl")[2], read_rows(two / "begun_alone/metrics.jsonl")[2]
    assert other["loss"] == pytest.approx(mine["loss"], rel=1e-5, abs=1e-6)
    assert other["reward_mean"] == pytest.approx(mine["reward_mean"])


def test_every_process_holds_half_of_each_layer_before_and_after_training(runs):
    _, two = runs
    facts = [json.loads((two / f"shares-{rank}.json").read_text()) for rank in range(2)]
    for when in ("before", "after"):
        first, second = (fact[when] for fact in facts)
        assert first["held"] + second["held"] == first["all"] > 15_000
        for mine in (first, second):
            assert mine["storage"] == pytest.approx(mine["all"] / 2, rel=0.01)
            assert mine["trained"] == 0
            assert mine["whole layer"] == -1
    assert facts[0]["after"]["gathers"] == facts[1]["after"]["gathers"] > 0


def test_no_thread_of_the_group_is_left_to_abort_a_process_that_ends(runs):
    _, two = runs
    assert [json.loads((two / f"threads-{rank}.json").read_text()) for rank in range(2)] == [[], []]


def test_doctor_counts_the_processes_whose_shares_fit():
    # 16 layers of 1 GB and 2 GB besides: with two 8 + 2 + 2 · 1 (a layer gathered, and as it came), with four 4 + 4.
    layers = [10**9] * 16
    assert "2 such devices: 12.0 GB" in str(_sharded(18 * 10**9, layers, 12e9))
    assert "4 such devices: 8.0 GB" in str(_sharded(18 * 10**9, layers, 11.9e9))
    assert _sharded(18 * 10**9, layers, 5e9) is None
