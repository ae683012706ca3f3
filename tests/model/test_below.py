"""Layers below the first adapted one run once per rollout, and nothing else changes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peft
import pytest
import torch
from torch import nn

from leaf.model import blocks
from leaf.model.below import Entry, Room, layers_below, usable
from leaf.model.checks import check_policy
from leaf.model.kept import finish, taken
from leaf.model.policy import Policy
from leaf.model.sampling import sample
from leaf.model.scoring import score
from tests.helpers import tiny
from tests.helpers.families import (
    TEMPERATURE,
    assert_same_gradients,
    build,
    gradient,
    groups_of,
    stock_log_probs,
)

# Families whose layers share more than hidden states, and layers that no tree is packed for.
RUN_AGAIN = {"gemma3n", "gemma3n wide", "granite_speech 4 hybrid", "nemotron_h_omni"}


def upper(case="qwen2_audio", adapted=-1, **options) -> Policy:
    """Adapt one layer, the last by default, and no other."""
    model, processor = build(case)
    torch.manual_seed(1)
    number = 2 if case == "nemotron_h_omni" else adapted % model.config.get_text_config(decoder=True).num_hidden_layers
    lora = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, layers_to_transform=[number])
    policy = Policy.wrap(model, processor, lora=lora, temperature=TEMPERATURE, **options)
    assert all(f".layers.{number}." in name for name, p in policy.named_parameters() if p.requires_grad)
    return policy


@contextmanager
def counted(policy: Policy) -> Iterator[list[int]]:
    """Count forwards inside of the lowest layer."""
    calls: list[int] = []
    part = next(part for part in policy.language_model.layers[0].modules() if isinstance(part, nn.Linear))
    hook = part.register_forward_hook(lambda *given: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()


def weighted(groups):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(g.tokens.shape, generator=generator) * (g.tree.node >= 0) for g in groups]


def assert_same(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, atol=2e-5, rtol=1e-4)


def test_log_probs_and_gradients_stay_those_of_the_stock_forward(case, monkeypatch):
    monkeypatch.setattr(blocks, "ROWS", 7)  # so that prompts and trees are cut
    policy, rows, shares = upper(case), tiny.rows(3), case not in RUN_AGAIN
    groups = groups_of(policy, rows, keep_prompts=True, keep_entries=True)
    prompts, trees, entries = zip(*((g.prompt, g.tree, g.entry) for g in groups), strict=True)
    assert (usable(entries) is not None) == shares
    weights, stock = weighted(groups), stock_log_probs(policy, rows, groups)
    wanted = gradient(policy, stock, weights)
    assert any(float(value.abs().max()) > 1e-3 for value in wanted.values())
    with counted(policy) as calls:
        scores = score(policy, prompts, trees, entries=usable(entries))
        assert bool(calls) != shares
        assert_same(scores.log_probs, stock)
        assert_same_gradients(gradient(policy, scores.log_probs, weights), wanted)
        # Without a sampler that leaves them, the reference does, and the policy begins with these.
        empty = [Entry() for _ in groups]
        with torch.no_grad(), policy.reference():
            without = score(policy, prompts, trees).log_probs
            assert_same(score(policy, prompts, trees, entries=empty).log_probs, without)
            assert (usable(empty) is not None) == shares
            assert_same(score(policy, prompts, trees, entries=entries).log_probs, without)
        calls.clear()
        scores = score(policy, prompts, trees, entries=empty)
        assert bool(calls) != shares
        assert_same_gradients(gradient(policy, scores.log_probs, weights), wanted)
        # Behind prompts that the sampler kept.
        policy.train()
        calls.clear()
        with taken(policy, [(group.kept, group.tree) for group in groups]) as kept:
            scores = score(policy, prompts, trees, kept, usable(entries))
            assert bool(calls) != shares
            assert_same(scores.log_probs, stock)
            gradient(policy, scores.log_probs, weights)
            finish(kept or [])
    assert_same_gradients({n: p.grad for n, p in policy.named_parameters() if p.requires_grad}, wanted)


@pytest.mark.parametrize("case", ["qwen2_audio", "voxtral"])
def test_distinct_completions_leave_what_independent_ones_do(case):
    """Beams fall out and change places, and what they fed follows them."""
    policy, rows = upper(case), tiny.rows(3)
    groups = groups_of(policy, rows, distinct=True, keep_prompts=True, keep_entries=True)
    prompts, trees, entries = zip(*((g.prompt, g.tree, g.entry) for g in groups), strict=True)
    assert all(len(group.lengths) == 5 for group in groups)
    weights, stock = weighted(groups), stock_log_probs(policy, rows, groups)
    wanted = gradient(policy, stock, weights)
    with counted(policy) as calls:
        scores = score(policy, prompts, trees, entries=usable(entries))
        assert_same(scores.log_probs, stock)
        assert_same_gradients(gradient(policy, scores.log_probs, weights), wanted)
        with taken(policy, [(group.kept, group.tree) for group in groups]) as kept:
            assert kept is not None
            scores = score(policy, prompts, trees, kept, usable(entries))
            assert_same(scores.log_probs, stock)
            gradient(policy, scores.log_probs, weights)
            finish(kept)
        assert not calls
    assert_same_gradients({n: p.grad for n, p in policy.named_parameters() if p.requires_grad}, wanted)


@pytest.mark.parametrize("filled_by", ["sampler", "scorer"])
def test_parts_of_a_group_and_any_micro_batches_take_what_the_whole_rollout_left(filled_by):
    policy = upper()
    groups = groups_of(policy, tiny.rows(3), keep_entries=filled_by == "sampler")
    if filled_by == "scorer":
        with torch.no_grad():
            score(policy, [g.prompt for g in groups], [g.tree for g in groups], entries=[g.entry for g in groups])
    parts = [group.select(chosen) for group, chosen in zip(groups, ([0], [1, 3], [4, 2, 0]), strict=True)]
    prompts, trees, entries = zip(*((g.prompt, g.tree, g.entry) for g in parts), strict=True)
    weights = weighted(parts)
    plain = score(policy, prompts, trees)
    wanted = gradient(policy, plain.log_probs, weights)
    for budget in (1, 120, 4096):
        policy.token_budget = budget
        with counted(policy) as calls:
            scores = score(policy, prompts, trees, entries=entries)
        assert not calls
        assert_same(scores.log_probs, plain.log_probs)
        assert_same_gradients(gradient(policy, scores.log_probs, weights), wanted)


def test_groups_in_padded_rows_share_as_well():
    """Where layers take no plan every group has a row and a dense mask; only the scorer leaves entries then."""
    policy = upper()
    policy.base.set_attn_implementation("eager")
    eager = Policy(policy.model, policy.processor, temperature=TEMPERATURE)
    groups = groups_of(eager, tiny.rows(3), keep_entries=True)
    prompts, trees, entries = zip(*((g.prompt, g.tree, g.entry) for g in groups), strict=True)
    assert len({p.length for p in prompts}) == 3
    assert usable(entries) is None
    weights = weighted(groups)
    plain = score(eager, prompts, trees)
    wanted = gradient(eager, plain.log_probs, weights)
    with torch.no_grad(), eager.reference():
        score(eager, prompts, trees, entries=entries)
    with counted(eager) as calls:
        scores = score(eager, prompts, trees, entries=entries)
    assert not calls
    assert_same(scores.log_probs, plain.log_probs)
    assert_same_gradients(gradient(eager, scores.log_probs, weights), wanted)


def test_gradient_checkpointing_begins_above_as_well():
    results = []
    for checkpointing in (False, True):
        policy = upper(gradient_checkpointing=checkpointing)
        groups = groups_of(policy, tiny.rows(2), keep_entries=True)
        policy.train()
        with counted(policy) as calls:
            prompts, trees, entries = zip(*((g.prompt, g.tree, g.entry) for g in groups), strict=True)
            found = score(policy, prompts, trees, entries=entries)
            results.append(gradient(policy, found.log_probs, weighted(groups)))
        assert not calls
    assert_same_gradients(results[1], results[0])


def test_a_layer_keeps_the_forward_that_somebody_has_put_on_it():
    policy = upper()
    groups = groups_of(policy, tiny.rows(1), keep_entries=True)
    layer: Any = policy.language_model.layers[0]
    layer.forward = own = layer.forward
    score(policy, [groups[0].prompt], [groups[0].tree], entries=[groups[0].entry])
    assert layer.__dict__["forward"] is own


def test_what_a_hook_adds_to_the_last_layer_below_is_added_once():
    policy = upper()
    policy.language_model.layers[0].register_forward_hook(lambda module, args, output: output + 0.1)
    groups = groups_of(policy, tiny.rows(2), keep_entries=True)
    prompts, trees, entries = zip(*((g.prompt, g.tree, g.entry) for g in groups), strict=True)
    assert usable(entries) is not None
    assert_same(score(policy, prompts, trees, entries=entries).log_probs, score(policy, prompts, trees).log_probs)


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({}, lambda policy: None),  # adapters everywhere
        ({"layers_to_transform": [0]}, lambda policy: None),
        ({"layers_to_transform": [1]}, lambda policy: policy.language_model.layers[0].requires_grad_(True)),
        (
            {"layers_to_transform": [1]},
            lambda policy: policy.language_model.layers[0].add_module("noise", nn.Dropout(0.1)),
        ),
        ({"layers_to_transform": [1]}, lambda policy: setattr(policy, "layout", "copies")),
        ({"layers_to_transform": [1]}, lambda policy: setattr(policy, "shares_below", False)),
    ],
    ids=["everywhere", "lowest", "trained below", "dropout below", "copies", "refused"],
)
def test_nothing_is_shared_where_layers_below_could_change(settings, changed):
    policy = Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2, **settings))
    changed(policy)
    assert layers_below(policy) == 0
    groups = sample(policy, policy.embed(tiny.rows(2)), num_completions=2, max_new_tokens=4, keep_entries=True)
    assert all(group.entry.states is None for group in groups)


def test_entries_take_no_more_room_than_the_token_budget_gives():
    policy = upper(token_budget=150)
    groups = groups_of(policy, tiny.rows(3), keep_entries=True)
    sizes = [g.prompt.length + int((~g.tree.is_leaf).sum()) for g in groups]
    assert sum(sizes) > 150 > min(sizes)
    held = [len(g.entry.states) for g in groups if g.entry.states is not None]
    assert held
    assert sum(held) <= 150
    empty = [Entry() for _ in groups]
    score(policy, [g.prompt for g in groups], [g.tree for g in groups], entries=empty)
    assert 0 < sum(len(e.states) for e in empty if e.states is not None) <= 150
    room = Room(policy, 1)
    assert [room.take(100), room.take(51), room.take(50)] == [True, False, True]


def lines_on_layers(policy):
    return [
        line for line in check_policy(policy, tiny.rows(2)) if line.startswith("layers below the first adapted one")
    ]


def test_start_up_says_what_is_shared_and_gives_it_up_where_it_is_not_the_same():
    policy = upper()
    (line,) = lines_on_layers(policy)
    assert line.startswith("layers below the first adapted one (1) run once per rollout")
    assert policy.shares_below
    assert lines_on_layers(upper(adapted=0)) == []
    # A layer that leaves something for the next one, past the hidden states.
    below, above = policy.language_model.layers
    left = []

    def leave(module, args, output):
        left[:] = [output.mean(-1, keepdim=True)]

    def take(module, args, output):
        return output + left.pop() if left else output

    below.mlp.register_forward_hook(leave)
    above.mlp.register_forward_hook(take)
    (line,) = lines_on_layers(policy)
    assert line == "layers below the first adapted one (1) run in every forward: they pass on more than hidden states"
    assert not policy.shares_below
    (line,) = lines_on_layers(upper(token_budget=40))
    assert line.endswith("run in every forward: what enters the layer does not fit the token budget (40)")
