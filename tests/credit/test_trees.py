"""The tree of a group's prefixes worked by hand, and which input trees, boundaries and rules refuse."""

import math

import pytest
import torch

import leaf
from leaf.credit import PrefixTree, credit, credit_rule, leaf_spans, select_boundaries
from leaf.errors import ConfigError, DataError
from tests.helpers.groups import NAN, PLAIN_RULES, built

INF = float("inf")


def test_a_tree_by_hand():
    tree, rewards = built([[1, 3], [], [1, 2, 9], [1, 3], [1]], [0.0, 1.0, 0.5, NAN, 1.0])
    assert tree.num_nodes == 4
    assert tree.token.tolist() == [1, 2, 9, 3]
    assert tree.parent.tolist() == [-1, 0, 1, 0]
    assert tree.depth.tolist() == [0, 1, 2, 1]
    assert tree.count.tolist() == [4, 1, 1, 2]
    assert tree.subtree_end.tolist() == [4, 3, 3, 4]
    assert tree.is_leaf.tolist() == [False, False, True, True]
    assert tree.node.tolist() == [[0, 3, -1], [-1, -1, -1], [0, 1, 2], [0, 3, -1], [0, -1, -1]]
    assert tree.prefix_group(1).tolist() == [0, -1, 0, 0, 0]
    assert tree.prefix_group(2).tolist() == [3, -1, 1, 3, 0]
    assert tree.prefix_group(0).tolist() == [-1] * 5
    assert tree.node_mean(rewards).tolist() == [0.5, 0.5, 0.5, 0.0]


def test_a_node_nobody_scored_has_no_mean():
    tree, rewards = built([[1], [2]], [0.5, NAN])
    assert tree.node_mean(rewards)[0].item() == 0.5
    assert math.isnan(tree.node_mean(rewards)[1].item())


@pytest.mark.parametrize("high", [2**16, 2**32 - 2, 2**32 - 1, 2**32, 2**62])
def test_large_ids_keep_apart(high):
    tokens = torch.tensor([[high, 1], [0, 1], [high - 1, 1], [high, 2]])
    tree = PrefixTree.build(tokens, torch.tensor([2, 2, 2, 2]))
    assert tree.token.tolist() == [0, 1, high - 1, 1, high, 1, 2]


def test_no_completions_or_no_tokens():
    for shape in ((0, 3), (0, 0), (3, 0)):
        tree = PrefixTree.build(torch.zeros(shape, dtype=torch.long), torch.zeros(shape[0], dtype=torch.long))
        assert tree.num_nodes == 0
        assert tree.node.shape == shape
        assert tree.subtree_end.shape == tree.is_leaf.shape == (0,)
        for name, rule in PLAIN_RULES.items():
            options = {"boundaries": torch.tensor([1])} if name == "leaf" else {}
            assert credit(rule, tree, torch.zeros(shape[0]), **options).shape == shape


@pytest.mark.usefixtures("unchecked")
def test_refusals():
    tree, _ = built([[1, 2], [1, 3]], [0.0, 1.0])
    for bad in ([0], [2, 2], [3, 1]):
        with pytest.raises(ConfigError, match="ascending"):
            leaf_spans(tree, torch.tensor([0.0, 1.0]), boundaries=torch.tensor(bad))
    with pytest.raises(DataError, match="finite"):
        credit_rule("grpo")(tree, torch.tensor([INF, 1.0]))
    for kappa in (-1.0, INF, NAN):
        with pytest.raises(ConfigError, match="kappa"):
            credit_rule("shrunken", kappa=kappa)(tree, torch.tensor([0.0, 1.0]))
    with pytest.raises(ConfigError, match="std_floor"):
        credit_rule("grpo", std_floor=-1.0)(tree, torch.tensor([0.0, 1.0]))
    with pytest.raises(DataError, match="NaN"):
        select_boundaries(torch.tensor([[0.0, NAN]]), torch.tensor([2]))
    with pytest.raises(DataError, match="shape"):
        select_boundaries(torch.zeros(1, 2), torch.tensor([3]))
    with pytest.raises(DataError, match="shape"):
        select_boundaries(torch.zeros(2, 2), torch.tensor([2]))
    with pytest.raises(DataError, match="shape"):
        PrefixTree.build(torch.zeros(2, 2, dtype=torch.long), torch.tensor([2]))
    with pytest.raises(DataError, match="at least 0"):
        PrefixTree.build(torch.tensor([[1, -1]]), torch.tensor([2]))
    with pytest.raises(DataError, match="Lengths"):
        leaf.grpo_advantages(torch.tensor([1.0]), torch.tensor([-1]))


def test_negative_padding_is_ignored():
    tree = PrefixTree.build(torch.tensor([[1, -100], [1, 2]]), torch.tensor([1, 2]))
    assert tree.token.tolist() == [1, 2]
