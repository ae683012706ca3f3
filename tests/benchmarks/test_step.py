"""The bench of one step: what it counts of a tree worked by hand, and its floors and profile on the tiny model."""

from argparse import Namespace

import peft
import pytest
import torch

from benchmarks.step.arms import leaf_step
from benchmarks.step.bench import LORA_LAYERS, Bench, Cell, Meter
from benchmarks.step.floor import count, floor_record
from benchmarks.step.profile import KINDS, kind_of, profile_update, shares_of
from benchmarks.step.tables import tables
from leaf.credit.tree import PrefixTree
from leaf.model.policy import Policy
from tests.helpers.tiny import rows, tiny_model


def test_the_work_on_a_tree_is_counted_by_hand():
    # Completions abc and abd behind a prompt of 3: inner nodes a and b, leaves c and d.
    tree = PrefixTree.build(torch.tensor([[1, 2, 3], [1, 2, 4]]), torch.tensor([3, 3]))
    found = count([tree], [3], [None])
    assert (found.prompt, found.inner, found.heads, found.live) == (3, 2, 3, [1, 1])
    assert found.prompt_pairs == 1 + 2 + 3
    assert found.inner_pairs == 4 + 5
    windowed = count([tree], [3], [None, 2])  # two layers, one of which sees two positions
    assert windowed.prompt_pairs == (6 + (1 + 2 + 2)) / 2
    assert windowed.inner_pairs == (9 + 4) / 2


@pytest.mark.parametrize(
    ("name", "shapes", "kind"),
    [
        ("aten::mm", [[100, 576], [576, 1536]], "linear"),
        ("aten::mm", [[100, 576], [576, 16]], "adapters"),
        ("aten::mm", [[16, 576], [576, 4000]], "head"),
        ("aten::_log_softmax", [[16, 4000]], "head"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", [[1, 9, 100, 64]], "attention"),
        ("aten::bmm _AttendBackward", [[9, 100, 64], [9, 64, 100]], "attention"),
        ("aten::mul", [[100, 576]], "elementwise"),
        ("aten::copy_", [[100, 576]], "casts"),
        ("aten::view", [[100, 576]], "dispatch"),
        ("autograd::engine::evaluate_function: MmBackward0", [], "dispatch"),
    ],
)
def test_operations_are_of_the_kind_that_they_are(name, shapes, kind):
    assert kind_of(name.split(" ", 1), shapes, 16, 4000) == kind


def test_shares_are_of_the_wall_time_and_what_is_left_is_dispatch():
    operations = [(["aten::mm"], [[9, 9]], 2.0), (["aten::mul"], [[9, 9]], 1.0), (["aten::view"], [], 0.5)]
    found = shares_of(operations, 10, 16, 4000)
    assert found == dict.fromkeys(KINDS, 0.0) | {"linear": 0.2, "elementwise": 0.1, "dispatch": 0.7}


@pytest.fixture(scope="module")
def bench():
    policy = Policy.wrap(*tiny_model(), lora=peft.LoraConfig(r=2, target_modules=list(LORA_LAYERS)), token_budget=512)
    policy.eos_token_ids = (-1,)
    parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    args = Namespace(device="cpu", dtype="float32", rank=2, top_p=1.0, prompts=2, token_budget=512)
    return Bench(args, policy, parameters, torch.optim.AdamW(parameters.values(), lr=0.0))


def test_floors_of_a_step_add_up(bench):
    cell, given = Cell(0, 4, 5), rows(2)
    work = leaf_step(bench, cell, given, Meter(torch.device("cpu"), memory=False))
    found = floor_record(bench, work, {"update": 10.0, "step": 20.0, "peak_update_mb": 30.0})
    lengths = [group.prompt.length for group in work.groups]
    inner = [int((~group.tree.is_leaf).sum()) for group in work.groups]
    assert found["packed_tokens"] == sum(lengths) + sum(inner)
    assert found["tflop"] == pytest.approx(
        6 * (found["packed_tokens"] * bench.weights + found["head_rows"] * found["head_weights"]) / 1e12, abs=1e-4
    )
    assert found["update_shared_s"] < found["floor_s"] + found["attention_s"] + 2e-4
    parts = found["floor_s"] + found["attention_s"] + found["prefill_s"] + found["decode_s"]
    assert found["step_s"] == pytest.approx(parts, abs=3e-4)
    assert found["step_shared_s"] < found["step_s"] + 1e-4
    assert found["update_over_floor_with_attention"] < found["update_over_floor"]


def test_the_profile_finds_every_kind(bench):
    found = profile_update(bench, Cell(0, 4, 5), rows(2), repeats=1)
    assert sum(found["shares"].values()) == pytest.approx(1, abs=0.01)
    assert all(found["shares"][kind] > 0 for kind in ("linear", "attention", "adapters", "elementwise", "head"))
    record = {"prompt_tokens": 1, "completions": 4, "length": 5, "distinct_over_total": 1.0, "arms": {}}
    assert "| 1 | 4 | 5 |" in tables([record | {"profile": found}]).split("Where leaf's update")[1]
