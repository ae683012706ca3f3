"""Options of credit rules are checked when they are bound, and what a rule of one's own may be and return."""

import inspect

import pytest
import torch

from leaf.credit import CREDIT_RULES, SetDraw, credit, credit_rule
from leaf.errors import ConfigError
from tests.helpers.groups import NAN, built


def test_unknown_options_are_refused_when_bound():
    wanted = r"leaf does not take the option boundries\. Did you mean 'boundaries'\? Allowed are .*max_boundaries"
    with pytest.raises(ConfigError, match=wanted):
        credit_rule("leaf", boundries=3)
    with pytest.raises(ConfigError, match=r"max_boundaries\. It is an option of leaf, leaf_batch\. It takes none"):
        credit_rule("rloo", max_boundaries=2)
    with pytest.raises(ConfigError, match="Allowed are std_floor"):
        credit_rule("grpo", floor=0.5)


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("leaf", {"max_boundaries": 2.5}, "max_boundaries of the credit rule leaf is 2.5, a float; .* a whole number"),
        ("leaf", {"max_boundaries": None}, "is None, a NoneType; it must be a whole number"),
        ("leaf", {"max_boundaries": True}, "is True, a bool; it must be a whole number"),
        ("leaf", {"group_ended": "false"}, "group_ended of the credit rule leaf is 'false', a str; .* true or false"),
        ("shrunken", {"kappa": "4"}, "kappa of the credit rule shrunken is '4', a str; it must be a number"),
    ],
)
def test_options_of_the_wrong_kind_are_refused_before_anything_is_sampled(rule, options, message):
    with pytest.raises(ConfigError, match=message):
        credit_rule(rule, **options)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("leaf", {"terms": "globl"}, "terms is 'globl'; allowed are both, global, local"),
        ("leaf", {"max_boundaries": -1}, "max_boundaries is -1"),
        ("leaf", {"min_prefix": -1}, "min_prefix -1"),
        ("leaf", {"boundaries": [2, 1]}, "ascending"),
        ("leaf", {"boundaries": "2"}, "ascending"),
        ("grpo", {"std_floor": -1.0}, r"std_floor is -1\.0"),
        ("grpo", {"std_floor": NAN}, "std_floor is nan"),
        ("shrunken", {"kappa": -1.0}, r"kappa is -1\.0"),
        ("spo", {"credited": "some"}, "credited is 'some'; allowed are unsure, branching and all"),
        ("spo", {"probability": 0.0}, r"probability is 0\.0"),
    ],
)
def test_option_values_out_of_range_are_refused_when_bound(rule, options, message):
    with pytest.raises(ConfigError, match=message):
        credit_rule(rule, **options)


def test_a_registered_rule_of_ones_own_is_tried_with_the_draw_that_it_takes(monkeypatch):
    def mine(tree, rewards, *, surprisal=None, draw=None, scale=1.0):
        assert draw is not None
        return scale * draw.log_prob.exp()[:, None] * rewards[:, None]

    monkeypatch.setitem(CREDIT_RULES, "mine", mine)
    credit_rule("mine", scale=2.0)
    with pytest.raises(ConfigError, match=r"Allowed are scale"):
        credit_rule("mine", scales=2.0)


def test_a_rule_is_tried_on_a_group_of_two_when_options_are_bound():
    called = []

    def own(tree, rewards, *, surprisal=None, scale: float = 1.0):
        called.append(tree.lengths.tolist())
        if scale < 0:
            raise ValueError("no negative scale")
        return torch.full(tree.node.shape, scale)

    credit_rule(own)
    assert called == []
    credit_rule(own, scale=2.0)
    assert called == [[2, 2]]
    with pytest.raises(ConfigError, match=r"own fails on a group of two .*\{'scale': -1.0\}: ValueError: no negative"):
        credit_rule(own, scale=-1.0)


def test_a_rule_of_ones_own_keeps_the_guarantees_and_is_named_where_it_breaks_them():
    tree, rewards = built([[1, 2], [1, 3], [4], [], [5]], [0.5, 0.25, NAN, 1.0, 0.0])

    def per_completion(tree, rewards, *, surprisal=None):
        return rewards[:, None]  # NaN where unscored

    assert credit(per_completion, tree, rewards).tolist() == [[0.5, 0.5], [0.25, 0.25], [0, 0], [0, 0], [0, 0]]
    for wrong, came in ((rewards, r"a tensor of shape \(5,\)"), (None, "None"), ([[0.0] * 2] * 5, r"\[\[0.0")):
        with pytest.raises(ConfigError, match=rf"The credit rule <lambda> gave {came}.*; it must return a tensor of"):
            credit(lambda *_, wrong=wrong, **__: wrong, tree, rewards)
    with pytest.raises(ConfigError, match=r"not finite in float32 for the rewards \[0\.5, "):
        credit(lambda *_, **__: torch.full((5, 1), 1e39, dtype=torch.float64), tree, rewards)


def test_options_as_a_recipe_may_give_them():
    tree, rewards = built([[1, 2, 3], [1, 2, 4]], [0.5, 0.25])
    surprisal = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 2.0]])
    chosen = credit_rule("leaf", max_boundaries=1)(tree, rewards, surprisal=surprisal)
    assert torch.equal(credit_rule("leaf", boundaries=[2])(tree, rewards), chosen)
    for boundaries in ([2, 2], [0]):
        with pytest.raises(ConfigError, match="Boundaries must be ascending positions of at least 1"):
            credit_rule("leaf", boundaries=boundaries)(tree, rewards)


def test_bound_options_act():
    tree, rewards = built([[1, 2], [1, 3]], [0.5, 0.25])
    surprisal = torch.tensor([[0.0, 1.0], [0.0, 2.0]])
    plain = credit_rule("leaf")(tree, rewards, surprisal=surprisal, normalize=False)
    assert torch.equal(credit_rule("leaf", normalize=False)(tree, rewards, surprisal=surprisal), plain)
    assert credit_rule("grpo", std_floor=0.5)(tree, rewards).abs().max().item() == pytest.approx(0.125 / 0.500001)
    assert "group_ended" in inspect.signature(CREDIT_RULES["leaf"]).parameters


def test_a_rule_of_ones_own_that_needs_the_draw_takes_options():
    def needs(tree, rewards, *, draw, surprisal=None, alpha=1.0):
        return (alpha * draw.log_prob.exp() * rewards)[:, None]

    def takes(tree, rewards, *, surprisal=None, draw=None, alpha=1.0):
        return needs(tree, rewards, draw=draw, alpha=alpha)

    tree, rewards = built([[1, 2], [1, 3]], [0.5, 0.25])
    draw = SetDraw.of(torch.tensor([0.5, 0.25]).log())
    for rule in (needs, takes):
        given = credit_rule(rule, alpha=2.0)(tree, rewards, draw=draw)
        torch.testing.assert_close(given, torch.tensor([[0.5, 0.5], [0.125, 0.125]]), check_dtype=False)


def test_a_rule_of_ones_own_is_a_function():
    def last_token_only(tree, rewards, *, surprisal=None, scale=1.0):
        grid = torch.zeros(tree.tokens.shape)
        return grid.scatter(1, tree.lengths[:, None] - 1, scale * rewards[:, None].float())

    tree, rewards = built([[1, 2], [1, 3]], [0.5, 0.25])
    assert credit_rule(last_token_only)(tree, rewards).tolist() == [[0.0, 0.5], [0.0, 0.25]]
    assert credit_rule(last_token_only, scale=2.0)(tree, rewards, surprisal=None).tolist() == [[0.0, 1.0], [0.0, 0.5]]
    with pytest.raises(ConfigError, match=r"last_token_only does not take the option size\. Allowed are scale"):
        credit_rule(last_token_only, size=2)
