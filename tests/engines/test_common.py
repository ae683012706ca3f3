"""The credit of an engine's batch is that of leaf's own loop, group by group."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leaf.credit import BATCH_RULES, CREDIT_RULES, BatchCredit, PrefixTree, RewardedGroup, batch_credit, credit_rule
from leaf.engines.common import group_advantages
from leaf.errors import ConfigError, DataError, NotRecorded
from tests.helpers.groups import random_group

NAN = float("nan")
RULES = sorted(set(CREDIT_RULES | BATCH_RULES))


@st.composite
def batches(draw):
    """Draw groups, and the batch that holds them: rows in any order, each padded on its own side."""
    groups = [random_group(draw(st.integers(0, 10**6))) for _ in range(draw(st.integers(1, 4)))]
    rows = [(g, i) for g, (completions, _, _) in enumerate(groups) for i in range(len(completions))]
    rows = draw(st.permutations(rows))
    width = max(len(c) for completions, _, _ in groups for c in completions) + draw(st.integers(0, 3))
    starts = [draw(st.integers(0, width - len(groups[g][0][i]))) for g, i in rows]
    return groups, rows, width, starts


def as_batch(groups, rows, width, starts):
    """Lay completions out as an engine does; the padding holds what no rule may read."""
    tokens, mask = torch.full((len(rows), width), -100), torch.zeros(len(rows), width, dtype=torch.long)
    log_probs, entropy = torch.full((len(rows), width), NAN), torch.full((len(rows), width), NAN)
    for row, ((g, i), start) in enumerate(zip(rows, starts, strict=True)):
        completion, surprisal = groups[g][0][i], groups[g][2][i]
        span = slice(start, start + len(completion))
        tokens[row, span], mask[row, span] = torch.tensor(completion, dtype=torch.long), 1
        log_probs[row, span] = -torch.tensor(surprisal, dtype=torch.float32)
        entropy[row, span] = torch.tensor(completion, dtype=torch.float32) + 0.5
    return tokens, mask, log_probs, entropy, torch.tensor([groups[g][1][i] for g, i in rows], dtype=torch.float64)


def own_credit(groups, rows, rule):
    """Credit the groups as leaf's own loop does, and give each (group, completion) the list of its advantages."""
    seen = []
    for g in dict.fromkeys(g for g, _ in rows):  # in the order of the batch
        completions, rewards, surprisal = ([groups[g][k][i] for h, i in rows if h == g] for k in range(3))
        lengths = torch.tensor([len(c) for c in completions])

        def padded(values, dtype, lengths=lengths):
            return torch.tensor([[*v, *[0] * (int(lengths.max()) - len(v))] for v in values], dtype=dtype)

        seen.append(
            RewardedGroup(
                PrefixTree.build(padded(completions, torch.long), lengths),
                torch.tensor(rewards, dtype=torch.float64),
                padded(surprisal, torch.float32).double(),
                padded([[t + 0.5 for t in c] for c in completions], torch.float64),
            )
        )
    if rule in BATCH_RULES:
        given = batch_credit(rule)(seen)
    else:
        given = [credit_rule(rule)(one.tree, one.rewards, surprisal=one.surprisal) for one in seen]
    order = dict.fromkeys(g for g, _ in rows)
    return {g: iter(one.float()) for g, one in zip(order, given, strict=True)}


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=25, deadline=None)
@given(batch=batches())
def test_every_rule_gives_the_credit_of_leafs_own_loop(rule, batch):
    groups, rows, width, starts = batch
    tokens, mask, log_probs, entropy, rewards = as_batch(*batch)
    got = group_advantages([f"prompt {g}" for g, _ in rows], tokens, mask, log_probs, rewards, rule, entropy=entropy)
    assert got.shape == (len(rows), width)
    assert got.dtype == torch.float32
    own = own_credit(groups, rows, rule)
    for row, ((g, i), start) in enumerate(zip(rows, starts, strict=True)):
        length = len(groups[g][0][i])
        assert torch.equal(got[row, start : start + length], next(own[g])[:length]), (rule, row)
    assert bool((got[mask == 0] == 0).all())


def test_a_group_worked_by_hand():
    # Two prompts, rows mixed; RLOO: r − mean of the others. The last row of prompt 7 could not be scored.
    got = group_advantages(
        torch.tensor([7, 3, 7, 3, 7]),
        torch.tensor([[5, 2], [5, 2], [6, 2], [2, 0], [5, 2]]),
        torch.tensor([[True, True], [True, True], [True, True], [True, False], [True, True]]),
        None,
        torch.tensor([1.0, 4.0, 0.5, 2.0, NAN]),
        "rloo",
    )
    assert got.tolist() == [[0.5, 0.5], [2.0, 2.0], [-0.5, -0.5], [-2.0, 0.0], [0.0, 0.0]]


def small(**changes):
    given = {
        "uid": ["a", "a", "b", "b"],
        "responses": torch.tensor([[3, 4, 2], [3, 5, 2], [6, 2, 0], [7, 7, 2]]),
        "mask": torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 1]]),
        "log_probs": torch.tensor([[-0.1, -2.0, -0.1]] * 4),
        "rewards": torch.tensor([1.0, 0.0, 0.25, 1.0]),
        "rule": "leaf",
    }
    return group_advantages(**{**given, **changes})


def test_uids_may_be_texts_arrays_or_tensors():
    want = small()
    for uid in (
        np.array(["a", "a", "b", "b"], dtype=object),
        torch.tensor([1, 1, 0, 0]),
        (("x", 1),) * 2 + (None,) * 2,
    ):
        assert torch.equal(small(uid=uid), want)


def test_a_rule_may_be_a_function_of_ones_own_and_options_reach_it():
    def scaled(tree, rewards, *, surprisal, factor: float = 1.0):
        return factor * surprisal

    got = small(rule=scaled, factor=3.0)
    assert got.tolist()[0] == pytest.approx([0.3, 6.0, 0.3])
    whole = small(rule=BatchCredit(lambda groups: [one.surprisal for one in groups]))
    assert torch.allclose(3 * whole, got)
    assert not torch.equal(small(max_boundaries=0), small())
    with pytest.raises(ConfigError, match=r"does not take the option max_boundary\. Did you mean 'max_boundaries'"):
        small(max_boundary=1)
    with pytest.raises(ConfigError, match=r"credit rule 'leav' is unknown\. Did you mean 'leaf'"):
        small(rule="leav")
    with pytest.raises(ConfigError, match="has its options bound, and max_boundaries came besides"):
        small(rule=batch_credit("leaf_batch"), max_boundaries=1)


def test_what_the_engine_did_not_record_is_refused_with_the_flag_to_set():
    how = {"surprisal": "Set rollout.calculate_log_probs=true.", "entropy": "Set calculate_entropy=true."}
    for rule, option in (("leaf", {}), ("leaf_batch", {}), ("spo", {})):
        with pytest.raises(NotRecorded, match=r"surprisal.*Set rollout.calculate_log_probs=true\."):
            small(rule=rule, log_probs=None, how_to_record=how, **option)
    for rule in ("gtpo", "grpo_s"):
        with pytest.raises(NotRecorded, match=r"entropy.*Set calculate_entropy=true\."):
            small(rule=rule, how_to_record=how)
    with pytest.raises(NotRecorded, match="LEAF needs the surprisal"):
        small(log_probs=None)
    without = [rule for rule in CREDIT_RULES if rule not in ("leaf", "spo")]
    for rule in [*without, "reinforce_pp", "treepo_whitened"]:
        assert torch.equal(small(rule=rule, log_probs=None), small(rule=rule)), rule


def test_completions_with_holes_are_refused():
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 1]])
    with pytest.raises(DataError, match=r"1 of 4 completions have holes in their mask \(the first is row 3\)"):
        small(mask=mask)


def test_rules_for_distinct_completions_are_refused():
    with pytest.raises(ConfigError, match="unordered_set weighs distinct completions"):
        small(rule="unordered_set")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"uid": ["a", "a", "b"]}, r"uid has the shape \(3,\) for 4 completions"),
        ({"rewards": torch.ones(4, 3)}, r"rewards has the shape \(4, 3\) for 4 completions"),
        ({"rewards": torch.tensor([1.0, 0.0, float("inf"), 0.0])}, "Rewards must be finite, or NaN"),
        ({"mask": torch.ones(4, 2)}, r"mask has the shape \(4, 2\) and responses \(4, 3\)"),
        ({"mask": torch.full((4, 3), 0.5)}, "mask holds 0.5; allowed are 0 and 1"),
        ({"log_probs": torch.ones(4, 4)}, r"log_probs has the shape \(4, 4\)"),
        ({"log_probs": torch.full((4, 3), NAN)}, "surprisal .* inside a completion is NaN"),
        ({"entropy": torch.ones(3, 3)}, r"entropy has the shape \(3, 3\)"),
        ({"responses": torch.ones(4, dtype=torch.long)}, r"responses has the shape \(4,\)"),
        ({"responses": torch.full((4, 3), -1)}, "Token ids must be at least 0"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        small(**changes)


def test_a_batch_without_completions_or_without_tokens_has_no_credit():
    empty = torch.zeros(0, 5)
    assert group_advantages([], empty.long(), empty, empty, torch.zeros(0), "leaf").shape == (0, 5)
    assert group_advantages([], empty.long(), empty, empty, torch.zeros(0), "leaf_batch").shape == (0, 5)
    wordless = torch.zeros(2, 0)
    assert group_advantages(["a"] * 2, wordless.long(), wordless, wordless, torch.ones(2), "leaf").shape == (2, 0)
    blank = small(mask=torch.zeros(4, 3))
    assert bool((blank == 0).all())


def test_credit_imports_with_torch_alone():
    """An engine pins other versions of what leaf needs, or lacks it: there, any other import would fail or mislead."""
    code = """
        import importlib.abc, sys
        import jaxtyping, numpy, torch

        class Only(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] not in {"jaxtyping", "leaf", "numpy", "torch", *sys.stdlib_module_names}:
                    raise ModuleNotFoundError(f"{name} is not in this environment", name=name)

        sys.meta_path.insert(0, Only())
        import leaf.engines.common
        from leaf import leaf_advantages

        tokens, ones, rewards = torch.tensor([[1, 2], [1, 3]]), torch.ones(2, 2), torch.tensor([1.0, 0.0])
        got = leaf.engines.common.group_advantages(["a", "a"], tokens, ones, -ones, rewards, "leaf")
        assert torch.equal(got, leaf_advantages(tokens, torch.tensor([2, 2]), ones, rewards))
        assert not {"transformers", "peft", "accelerate", "datasets", "yaml", "safetensors"} & set(sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
