import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf.credit import PrefixTree
from leaf.model import blocks
from leaf.model.attention import Attention
from leaf.model.blocks import Cutter
from leaf.model.head import read_log_probs
from leaf.model.packing import collate, micro_batches, pack, unpack
from tests.helpers.groups import as_tensors, random_group


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 4))
def test_every_row_sees_the_prompt_and_its_own_prefix(seed, prompt_length):
    completions, rewards, surprisal = random_group(seed)
    tokens, lengths, _, _ = as_tensors(completions, rewards, surprisal)
    tree = PrefixTree.build(tokens, lengths)
    group = pack(prompt_length, tree)
    prefixes = sorted({tuple(c[: t + 1]) for c in completions for t in range(len(c))})
    inner = [p for p in prefixes if any(q[: len(p)] == p and len(q) > len(p) for q in prefixes)]
    assert group.length == prompt_length + len(inner)
    # What a row sees, read back as tokens, is its prefix; positions count on from the prompt.
    row_of = {}
    for row in range(prompt_length, group.length):
        seen = [int(group.token[c - prompt_length]) for c in group.mask[row].nonzero().squeeze(1) if c >= prompt_length]
        row_of[tuple(seen)] = row
        assert int(group.position[row]) == prompt_length + len(seen) - 1
        assert bool(group.mask[row, :prompt_length].all())
    assert set(row_of) == set(inner)
    # Each node's log-probability is read at the row of its prefix without the last token.
    for i, c in enumerate(completions):
        for t in range(len(c)):
            row = int(group.parents[group.parent_of[tree.node[i, t]]])
            assert row == (row_of[tuple(c[:t])] if t else prompt_length - 1)
    values = torch.arange(tree.num_nodes, dtype=torch.float64)
    spread = unpack(values, tree)
    assert bool((spread[tree.node >= 0] == tree.node[tree.node >= 0]).all())
    assert bool((spread[tree.node < 0] == 0).all())


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**9), st.integers(1, 9), st.integers(1, 12) | st.none(), st.booleans())
def test_blocks_see_what_the_mask_of_all_pairs_shows(seed, prompt_length, window, joined):
    completions, rewards, surprisal = random_group(seed)
    tokens, lengths, _, _ = as_tensors(completions, rewards, surprisal)
    group = pack(prompt_length, PrefixTree.build(tokens, lengths))
    # Behind other prompts the nodes begin elsewhere among the keys, and the queries are nodes alone.
    query, prompt, node = (5 + prompt_length, 5, 5 + prompt_length) if joined else (2, 3, 20 + prompt_length)
    cutter = Cutter(window, torch.float32, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "ROWS", 3)
        made = (cutter.prompt(prompt_length, prompt) if joined else []) + cutter.tree(group, query, prompt, node)
    places = torch.cat([prompt + torch.arange(prompt_length), node + torch.arange(len(group.node))])
    seen = torch.zeros(60 + group.length, 60 + group.length, dtype=torch.bool)
    for block in made:
        keys = torch.arange(len(seen))[block.keys] if isinstance(block.keys, slice) else block.keys
        before = len(keys) - block.mask.shape[1]
        assert not seen[block.rows].any()
        seen[block.rows, keys[:before]] = True
        for row, allowed in zip(range(block.rows.start, block.rows.stop), block.mask == 0, strict=True):
            seen[row, keys[before:][allowed]] = True
    wanted = group.mask
    if window is not None:
        wanted = wanted & (group.position[:, None] - group.position < window)
    rows = places if joined else query + torch.arange(len(group.node))
    assert torch.equal(seen[rows][:, places], wanted if joined else wanted[prompt_length:])
    assert int(seen.sum()) == int(seen[rows][:, places].sum())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 200))
def test_micro_batches_hold_every_group_once_within_the_budget(lengths, budget):
    batches = micro_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


def test_shapes_are_checked():
    tree = PrefixTree.build(torch.tensor([[1, 2, 3]]), torch.tensor([3]))
    with pytest.raises(jaxtyping.TypeCheckError):
        unpack(torch.zeros(3, 1), tree)
    row, token = torch.zeros(3, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    with pytest.raises(jaxtyping.TypeCheckError):
        read_log_probs(torch.nn.Linear(4, 5), torch.zeros(1, 4), row, token, scale=1.0)
    with pytest.raises(jaxtyping.TypeCheckError):
        Attention({"full_attention": None}, "sdpa", frozenset()).masks(
            torch.ones(1, 2, 3, dtype=torch.bool), row[None, :2], row[None, :2], torch.float32
        )


def test_padding_rows_see_only_themselves():
    trees = [PrefixTree.build(torch.tensor([[1, 2, 3]]), torch.tensor([n])) for n in (3, 1)]
    packed = [pack(2, tree) for tree in trees]
    batch = collate([torch.ones(2, 4), torch.ones(2, 4)], packed, torch.nn.Embedding(5, 4))
    assert batch.embeddings.shape == (2, 4, 4)
    assert batch.visible[1, 2:].tolist() == [[False, False, True, False], [False, False, False, True]]
    assert not batch.visible[1, :2, 2:].any()
