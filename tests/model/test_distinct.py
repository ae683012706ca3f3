"""Distinct completions: on a model small enough to enumerate, and on a tiny speech model against its own scores."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from leaf.model import children, distinct
from leaf.model.distinct import _sample, sample_distinct
from leaf.model.policy import Policy, Prompt
from leaf.model.scoring import score
from tests.helpers import tiny

VOCABULARY, EOS, LIMIT = 4, 0, 3


class TableDecoder:
    """Logits from a table by prefix, in the decoder's order of rows."""

    kept, entered = (), ()

    def __init__(self, tables):
        self.tables = tables

    def start(self):
        self.rows = [(i, ()) for i in range(len(self.tables))]
        return self.logits()

    def advance(self, parent, token):
        assert parent.tolist() == sorted(parent.tolist())  # as decoders want it
        self.rows = [
            (self.rows[p][0], (*self.rows[p][1], t)) for p, t in zip(parent.tolist(), token.tolist(), strict=True)
        ]
        return self.logits()

    def logits(self):
        return torch.stack([self.tables[i][prefix] for i, prefix in self.rows])


def table(seed, sharpness=1.5):
    """Logits for every prefix of up to LIMIT tokens without the end token."""
    generator = torch.Generator().manual_seed(seed)
    prefixes = [p for n in range(LIMIT) for p in itertools.product(range(1, VOCABULARY), repeat=n)]
    return {prefix: sharpness * torch.randn(VOCABULARY, generator=generator) for prefix in prefixes}


def outcomes(logits):
    """Return completion → probability; those at the limit need no end token."""
    found = {}

    def walk(prefix, p):
        if prefix and (prefix[-1] == EOS or len(prefix) == LIMIT):
            found[prefix] = p
            return
        for token, q in enumerate(logits[prefix].double().softmax(0).tolist()):
            walk((*prefix, token), p * q)

    walk((), 1.0)
    return found


@pytest.fixture(params=[128, 1, 3])
def draw(request, monkeypatch):
    """Draw groups with all four tokens in one block, with blocks that stay closed, and with one that is filled up."""
    monkeypatch.setattr(children, "_BLOCK", request.param)

    def groups(tables, count, seeds):
        monkeypatch.setattr(distinct, "decoder", lambda *given, **kept: TableDecoder(tables))
        prompts = [Prompt(torch.zeros(1, 1), torch.zeros(1, dtype=torch.bool)) for _ in tables]
        policy: Any = SimpleNamespace(eos_token_ids=[EOS], temperature=1.0)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        options = {"num_completions": count, "max_new_tokens": LIMIT, "temperature": 1.0}
        return _sample(policy, prompts, generators, **options, first=0, keep=False)

    return groups


def completions(group):
    return [tuple(row[:n].tolist()) for row, n in zip(group.tokens, group.lengths.tolist(), strict=True)]


def test_ordered_draws_have_the_frequencies_of_sampling_without_replacement(draw):
    logits = table(0)
    p = outcomes(logits)
    rounds, batch = 6_000, 100
    first, pairs = dict.fromkeys(p, 0), {}
    for at in range(0, rounds, batch):
        for group in draw([logits] * batch, 2, range(at, at + batch)):
            a, b = completions(group)
            first[a] += 1
            pairs[a, b] = pairs.get((a, b), 0) + 1
    expected = {(a, b): rounds * p[a] * p[b] / (1 - p[a]) for a, b in itertools.permutations(p, 2)}
    # Cells below five are thrown together, as the test wants it.
    cells = [(pairs.get(key, 0), e) for key, e in expected.items() if e >= 5]
    cells.append((rounds - sum(c for c, _ in cells), rounds - sum(e for _, e in cells)))
    statistic = sum((c - e) ** 2 / e for c, e in cells)
    freedom = len(cells) - 1
    assert freedom > 50
    assert (statistic - freedom) / math.sqrt(2 * freedom) < 4, (statistic, freedom)


def test_probabilities_rest_and_threshold_are_those_of_the_model(draw):
    logits = table(1)
    p = outcomes(logits)
    for group in draw([logits] * 20, 5, range(20)):
        found = completions(group)
        assert len(set(found)) == 5
        expected = torch.tensor([p[one] for one in found], dtype=torch.float64)
        torch.testing.assert_close(group.draw.log_prob.exp(), expected, rtol=1e-5, atol=0)
        assert float(group.draw.log_rest.exp()) == pytest.approx(1 - float(expected.sum()), rel=1e-4)
        nats = -group.draw.log_prob.float()
        torch.testing.assert_close(group.surprisal.sum(1), nats, rtol=1e-5, atol=1e-5)
        assert group.truncated.tolist() == [one[-1] != EOS for one in found]
        assert bool(group.draw.threshold.isfinite())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("prefix", [(), (1,)])
def test_logits_that_are_not_finite_leave_the_whole_set_unknown_and_other_prompts_alone(draw, value, prefix):
    fine, broken = table(3, 0.1), table(4, 0.1)
    if value == -math.inf:
        broken[prefix] = torch.full((VOCABULARY,), value)
    else:
        broken[prefix][2] = value
    (alone,) = draw([fine], 5, [7])
    odd, beside = draw([broken, fine], 5, [6, 7])
    assert bool(odd.surprisal.isnan().all())
    assert len(set(completions(odd))) == 5
    assert bool(odd.draw.log_prob.isfinite().all())
    assert completions(beside) == completions(alone)
    torch.testing.assert_close(beside.surprisal, alone.surprisal, rtol=0, atol=0)


def test_a_token_may_be_excluded_by_minus_infinity(draw):
    logits = {prefix: one.clone() for prefix, one in table(5).items()}
    for one in logits.values():
        one[3] = -math.inf
    for group in draw([logits] * 4, 5, range(4)):
        assert bool(group.surprisal.isfinite().all())
        assert not bool((group.tokens == 3).any())


def test_the_threshold_makes_importance_weights_unbiased(draw):
    """Σ p(s) / q(s) over the set is 1 on average if q(s) is the probability that s beats the threshold."""
    logits = table(2)
    sums = []
    for at in range(0, 3_000, 100):
        for group in draw([logits] * 100, 4, range(at, at + 100)):
            beaten = -torch.expm1(-(group.draw.log_prob - group.draw.threshold).exp())
            sums.append(float((group.draw.log_prob.exp() / beaten).sum()))
    mean, error = torch.tensor(sums).mean(), torch.tensor(sums).std() / math.sqrt(len(sums))
    assert abs(float(mean) - 1.0) < 4 * float(error) < 0.1


def test_all_outcomes_are_found_where_there_are_fewer_than_asked_for(draw):
    logits = table(3)
    p = outcomes(logits)
    (group,) = draw([logits], 100, [0])
    assert sorted(completions(group)) == sorted(p)
    assert group.draw.mass == pytest.approx(1.0, abs=1e-6)
    assert float(group.draw.log_rest) == float(group.draw.threshold) == -math.inf


def test_a_prompt_draws_the_same_alone_and_beside_others(draw):
    tables = [table(seed) for seed in (4, 5, 6)]
    together = draw(tables, 4, [1, 2, 3])
    for i, one in enumerate(tables):
        (alone,) = draw([one], 4, [i + 1])
        assert completions(alone) == completions(together[i])
        torch.testing.assert_close(alone.draw.log_prob, together[i].draw.log_prob)


@pytest.mark.parametrize("layout", ["tree", "rows"])
def test_a_speech_model_scores_what_it_drew(layout, monkeypatch):
    model, processor = tiny.tiny_model()
    policy = Policy.wrap(model, processor)
    if layout == "rows":
        monkeypatch.setattr(distinct, "decoder", distinct_rows)
    prompts = policy.embed(tiny.rows(3))
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    with torch.no_grad():
        groups = sample_distinct(policy, prompts, generators, num_completions=6, max_new_tokens=5, temperature=0.8)
    policy.temperature = 0.8
    with torch.no_grad():
        scores = score(policy, [group.prompt for group in groups], [group.tree for group in groups])
    for group, log_probs in zip(groups, scores.log_probs, strict=True):
        assert group.draw is not None
        assert len(set(completions(group))) == 6
        torch.testing.assert_close(log_probs.sum(1).double(), group.draw.log_prob, rtol=1e-4, atol=1e-4)
        assert group.draw.mass + float(group.draw.log_rest.exp()) == pytest.approx(1.0, abs=1e-5)


def distinct_rows(policy, prompts, **kept):
    from leaf.model.decoding import RowDecoder

    return RowDecoder(policy, prompts)
