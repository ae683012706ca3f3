"""The token budget: what is measured of an update, what it leaves as it was, and the budget made of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from leaf.errors import ConfigError, RunError
from leaf.model import budget
from leaf.model.budget import MEASURED_ON, Measured, measure_update
from leaf.model.scoring import score
from tests.helpers.update_memory import CELL, build, run


def test_the_budget_by_hand():
    made = Measured(tokens=10, taken=1000, room=100_000)  # 100 bytes a token, 80 % of the room
    assert made.budget(10_000) == 768  # of 800: three significant bits
    assert made.budget(512) == 512
    assert Measured(tokens=10, taken=1000, room=150).budget(512) == 1
    assert Measured(tokens=10, taken=0, room=100).budget(512) == 512
    with pytest.raises(RunError, match=r"0\.00 GB of memory are free, and a token .* takes 0\.00 MB: not one fits"):
        Measured(tokens=10, taken=1000, room=100).budget(512)


@pytest.mark.parametrize("rooms", [(100_000, 104_000), (80_000, 89_000)])
def test_a_little_more_memory_makes_no_other_budget(rooms):
    assert len({Measured(tokens=10, taken=1000, room=room).budget(10_000) for room in rooms}) == 1


def test_measuring_leaves_everything_as_it_was():
    policy, _ = build(CELL | {"dropout": 0.5})
    policy.eval()
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    gradients = {name: p.grad for name, p in trained.items()}
    values = {name: p.detach().clone() for name, p in trained.items()}
    state = torch.random.get_rng_state()
    found = measure_update(policy, 100, 28)
    assert found.tokens == 128
    assert found.room > 0
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not policy.training
    for name, parameter in trained.items():
        assert parameter.grad is gradients[name]
        assert torch.equal(parameter, values[name])


def test_a_short_row_is_measured_as_it_is_and_a_long_one_in_its_proportion(monkeypatch):
    policy, _ = build(CELL)
    seen = []

    def noted(policy, prompts, trees):
        seen.append((prompts[0].length, trees[0].num_nodes - 2))
        return score(policy, prompts, trees)

    monkeypatch.setattr(budget, "score", noted)
    measure_update(policy, 20, 10)
    measure_update(policy, 3000, 1000)
    assert seen[1::2] == [(20, 10), (96, 32)]


def test_a_row_that_does_not_fit_is_halved(monkeypatch):
    policy, _ = build(CELL)

    def small(policy, prompts, trees):
        if prompts[0].length + trees[0].num_nodes > 50:
            raise torch.OutOfMemoryError("as if")
        return score(policy, prompts, trees)

    monkeypatch.setattr(budget, "score", small)
    assert measure_update(policy, 1000, 200).tokens == MEASURED_ON["cpu"] // 4 == 32

    def never(policy, prompts, trees):
        raise torch.OutOfMemoryError("as if")

    monkeypatch.setattr(budget, "score", never)
    with pytest.raises(RunError, match="Memory ran out even at 16 tokens a forward"):
        measure_update(policy, 10, 6)


def test_where_the_mark_cannot_be_cleared_what_autograd_saves_counts_twice(monkeypatch):
    policy, _ = build(CELL)
    monkeypatch.setattr(budget, "reset_peak", lambda device: False)
    short, long = (measure_update(policy, prompt, 16).taken for prompt in (32, 96))
    # Kept of a layer in float32: two norms, attention and MLP, inputs of LoRA (leaf.model.footprint); twice that.
    layer = 2 * (4 * 128 + 4) + 4 * 128 * 4 + 4 * 4 + 2 * 352 * 4 + 7 * 8 * 4 + 4 * 2 * 128
    assert (long - short) / 64 == pytest.approx(2 * 4 * layer, rel=0.25)


def test_devices_whose_memory_cannot_be_read_ask_for_a_budget():
    policy, _ = build(CELL)
    with pytest.raises(ConfigError, match=r"memory of a meta device cannot be read.*Set token_budget"):
        measure_update(policy.to("meta"), 100, 20)


def print_growth(cell):
    """Print what a token of a measured update takes, and what a token of one with four times as many takes."""
    torch.set_num_threads(1)
    policy, groups = build(cell)
    found = measure_update(policy, cell["prompt"], cell["completions"] * (cell["length"] - 1))
    device, tokens = torch.device("cpu"), len(groups) * (groups[0][0].length + int((~groups[0][1].is_leaf).sum()))
    before = budget._held(device)
    assert budget.reset_peak(device)
    run(policy, groups).backward()
    print(json.dumps([found.per_token, (budget.peak_bytes(device) - before) / tokens]))


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"checkpointing": True}, {"dtype": "bfloat16", "dropout": 0.05}])
def test_a_token_of_a_large_update_takes_what_one_of_a_small_update_took(change):
    cell = CELL | {"hidden": 576, "inner": 1536, "layers": 12, "heads": 9, "keys": 3, "vocabulary": 8192}
    cell |= {"rows": 1, "prompt": 312, "completions": 8, "length": 26, **change}
    code = f"from tests.model.test_budget import print_growth; print_growth({cell!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    small, large = json.loads(done.stdout)
    assert 0.75 < small / large < 1.5  # 0.8 of the memory is filled
