import torch

from leaf.credit import PrefixTree, RewardedGroup, credit_rule
from leaf.credit.words import by_words, to_tokens


def test_completions_share_a_node_where_they_said_the_same_words():
    # "Press 7 .", "press sev en" and "dial 7": by tokens nothing is shared, by words the first two are one path.
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 2, 0]])
    surprisal = torch.tensor([[0.1, 0.5, 0.2], [0.3, 1.0, 0.4], [2.0, 0.6, 9.0]])
    rewards = torch.tensor([1.0, 0.5, 0.0])
    group = RewardedGroup(PrefixTree.build(tokens, torch.tensor([3, 3, 2])), rewards, surprisal, surprisal)
    word = torch.tensor([[0, 1, 1], [0, 1, 1], [0, 1, -1]])
    ids = torch.tensor([[0, 1], [0, 1], [2, 1]])
    said = by_words(group, word, ids)
    assert said.tree.node.tolist() == [[0, 1], [0, 1], [2, 3]]
    assert said.surprisal is not None
    assert torch.allclose(said.surprisal, torch.tensor([[0.1, 0.7], [0.3, 1.4], [2.0, 0.6]]))
    assert said.entropy is not None
    assert torch.equal(said.entropy, said.surprisal)
    # SPO by branching: the first word decides, V̂ 3/4 or 0 against 1/2; what follows changes nothing.
    rule = credit_rule("spo", credited="branching")
    assert to_tokens(rule(said.tree, said.rewards), word).tolist() == [[0.25, 0, 0], [0.25, 0, 0], [-0.5, 0, 0]]
    by_tokens = rule(group.tree, group.rewards)
    assert by_tokens.tolist() == [[0.5, 0, 0], [0, 0, 0], [-0.5, 0, 0]]


def test_where_every_token_is_a_word_words_are_tokens():
    tokens, lengths = torch.tensor([[1, 2, 3], [1, 2, 4], [1, 5, 0], [6, 0, 0]]), torch.tensor([3, 3, 2, 1])
    surprisal, rewards = torch.rand(4, 3), torch.tensor([1.0, 0.5, 0.25, 0.0])
    group = RewardedGroup(PrefixTree.build(tokens, lengths), rewards, surprisal)
    word = torch.where(group.tree.node >= 0, torch.arange(3), -1)
    said = by_words(group, word, tokens)
    for name in ("leaf", "tempo", "treerl", "treepo"):
        rule = credit_rule(name)
        plain = rule(group.tree, rewards, surprisal=surprisal)
        assert torch.equal(to_tokens(rule(said.tree, rewards, surprisal=said.surprisal), word), plain)


def test_no_tokens_at_all():
    group = RewardedGroup(PrefixTree.build(torch.zeros(2, 0).long(), torch.zeros(2).long()), torch.tensor([1.0, 0.0]))
    said = by_words(group, torch.zeros(2, 0).long(), torch.zeros(2, 0).long())
    assert to_tokens(credit_rule("grpo")(said.tree, said.rewards), torch.zeros(2, 0).long()).shape == (2, 0)
