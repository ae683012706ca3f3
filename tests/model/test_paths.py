"""The decoder of paths against the one that keeps a prompt for every row, over rows that part, end and go on."""

import pytest
import torch

from leaf.errors import ModelError
from leaf.model import paths
from leaf.model.decoding import PathDecoder, RowDecoder, decoder
from leaf.model.paths import Slots, Table
from leaf.model.sampling import sample
from leaf.model.scoring import score
from tests.helpers import tiny
from tests.helpers.families import groups_of, policy_of


def next_parents(rows, step):
    """Choose what continues: rows part at first, later most end, of some prompts all."""
    chance = torch.rand(rows)
    copies = (chance < 0.6).long() + (chance < 0.3).long() if step < 4 else (chance < 0.85).long()
    copies[int(torch.randint(rows, (1,)))] = 1  # at least one does
    return torch.arange(rows).repeat_interleave(copies)


@pytest.mark.parametrize("case", ["qwen2_audio", "qwen2_audio sliding", "gemma3n", "phi4_multimodal"])
def test_logits_equal_those_of_a_cache_for_every_row(case, monkeypatch):
    monkeypatch.setattr(paths, "_ROOM", 3)  # so that paths outgrow their room
    monkeypatch.setattr(paths, "_PADDED", 2)
    policy = policy_of(case)
    prompts = [prompt for _ in range(2) for prompt in policy.embed(tiny.rows(3))]
    assert len({prompt.length for prompt in prompts}) == 3
    torch.manual_seed(5)
    kept = set()
    with torch.no_grad():
        decoders = [PathDecoder(policy, prompts), RowDecoder(policy, prompts)]
        assert type(decoder(policy, prompts)) is PathDecoder
        logits, wanted = [one.start() for one in decoders]
        for step in range(14):
            assert torch.allclose(logits, wanted, atol=2e-4, rtol=1e-4), step
            parent = next_parents(len(logits), step) if step else torch.arange(6).repeat_interleave(3)
            token = torch.randint(5, 200, parent.shape)
            logits, wanted = [one.advance(parent, token) for one in decoders]
            kept.add(decoders[0].cache.prompts)
    assert max(kept) == 6 > min(kept)  # prompts without rows were forgotten


def test_slots_have_no_gaps_and_copy_only_what_parts_or_moves():
    torch.manual_seed(0)
    slots, rows = Slots(torch.arange(4), torch.arange(4)), [(line,) for line in range(4)]
    memory: list = list(rows)  # what lies in every slot
    for step in range(60):
        parent = next_parents(len(rows), step % 8)
        before = {int(slots.of_row[i]) for i in parent}
        slots, source, target = slots.follow(parent)
        assert not set(source.tolist()) & set(target.tolist())
        ended = len(rows) - len(set(parent.tolist()))
        assert len(target) <= len(parent) - len(set(parent.tolist())) + ended
        memory += [None] * max(0, len(parent) - len(memory))
        for a, b in zip(source.tolist(), target.tolist(), strict=True):
            assert a in before
            memory[b] = memory[a]
        rows = [(*rows[i], n) for n, i in enumerate(parent.tolist())]
        assert sorted(slots.of_row.tolist()) == list(range(len(parent)))
        for row, slot in enumerate(slots.of_row.tolist()):
            assert memory[slot] == rows[row][:-1]
            assert int(slots.line[slot]) == rows[row][0]
            memory[slot] = rows[row]


def test_the_table_lays_slots_out_by_prompt_and_head():
    table = Table(torch.tensor([2, 0, 2]), 3, torch.device("cpu"))
    assert table.shape == (3, 2)
    place, which = table.indices(2)
    assert place.tolist() == [8, 10, 0, 2, 9, 11]  # (prompt · heads + head) · width + column
    assert which[place].tolist() == list(range(6))


def test_completions_that_end_at_once_and_single_ones():
    policy = policy_of("qwen2_audio")
    prompts = policy.embed(tiny.rows(3))
    options = {"num_completions": 1, "max_new_tokens": 6, "greedy": True}
    wanted = sample(policy, prompts, **options)
    first = int(wanted[0].tokens[0, 0])
    policy.eos_token_ids = (first,)
    groups = sample(policy, prompts, **options)
    assert groups[0].tokens.tolist() == [[first]]
    for got, long in zip(groups, wanted, strict=True):
        assert torch.equal(got.tokens[0], long.tokens[0, : got.tokens.shape[1]])
    policy.eos_token_ids = tuple(range(policy.text_config.vocab_size))
    assert [group.tokens.shape for group in sample(policy, prompts, **options)] == [(1, 1)] * 3


def test_a_layer_that_does_not_attend_by_the_plan_is_refused(monkeypatch):
    policy = policy_of("qwen2_audio")
    prompts = policy.embed(tiny.rows(2))
    attention = type(policy.language_model.layers[0].self_attn)
    forward = attention.forward

    def its_own(self, hidden_states, **options):
        if self.layer_idx == 1 and hidden_states.shape[1] == 1:
            options["past_key_values"].update(*torch.zeros(2, len(hidden_states), 2, 1, 8), self.layer_idx)
            return hidden_states, None
        return forward(self, hidden_states, **options)

    monkeypatch.setattr(attention, "forward", its_own)
    with pytest.raises(ModelError, match=r"does not attend by the function .* Load the model with attention: eager"):
        sample(policy, prompts, num_completions=2, max_new_tokens=3)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_kernel_that_is_changed_behind_a_policy_fails_on_the_mask_of_a_plan(kernel):
    policy = policy_of("audioflamingo3")
    (group,) = groups_of(policy, tiny.rows(1))
    policy.base.set_attn_implementation(kernel)
    with pytest.raises(RuntimeError, match="must match the size of tensor b"):
        score(policy, [group.prompt], [group.tree])
