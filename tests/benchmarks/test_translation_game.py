"""The translation game: its reward is the library's, its draws are right, and its arms learn as the library does."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks.credit_lab import search, table
from benchmarks.credit_lab.arms import ARMS, Arm, Groups, advantages, shares
from benchmarks.credit_lab.beams import distinct
from benchmarks.credit_lab.drawing import draw, independent
from benchmarks.credit_lab.language import END, MOST, WORDS, Language, rewards, text, word_count
from benchmarks.credit_lab.policies import Policies, supervised
from benchmarks.credit_lab.training import Game, judged, scored, train
from leaf.credit import policy_loss, set_shares, surrogate, token_weights
from leaf.rewards.functions import REWARDS

ROOT = Path(__file__).parents[2]
GAME = Game(supervised=60, noise=0.1, steps=2, prompts=3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def start() -> Policies:
    return GAME.start(2, 0)


def asked(policies: Policies, prompts: int) -> tuple[torch.Tensor, torch.Tensor]:
    source, target, _ = Language().sentences((policies.seeds, prompts), generator(1))
    return source, target


def test_rewards_are_those_of_the_library():
    _, target, _ = Language().sentences((400,), generator())
    ours = torch.nn.functional.pad(target, (0, MOST - target.shape[1]), value=END)
    ours = torch.where(torch.rand(ours.shape, generator=generator(1)) < 0.25, ours.roll(1, -1), ours)
    ours[:20] = END  # says nothing
    ours = ours.masked_fill((ours == END).cummax(-1).values, END)
    found = rewards(ours, target)
    assert found.tolist() == pytest.approx(REWARDS["bleu"](text(ours), text(target)), abs=1e-12)
    assert len(set(found.tolist())) > 20


def test_each_row_is_scored_with_the_source_it_names():
    policies = Policies(2, 0)
    source, _ = asked(policies, 3)
    tokens = torch.randint(WORDS, (2, 6, 4), generator=generator())
    rows = torch.tensor([[2, 0, 1, 1, 0, 2], [0, 0, 2, 1, 2, 1]])
    named = policies.log_probs(source, tokens, rows=rows)
    sources = torch.stack([source[s, rows[s]] for s in range(2)])
    assert torch.allclose(named, policies.log_probs(sources, tokens), atol=1e-6)


# -- draws -------------------------------------------------------------------------------------------------------------
def outcomes(policies: Policies, source: torch.Tensor) -> tuple[list[tuple[int, ...]], torch.Tensor]:
    """Return all translations of at most 2 tokens of one sentence, and their probabilities under each seed."""
    every = [(END, END), *product(range(WORDS), range(WORDS + 1))]
    tokens = torch.tensor(every).expand(policies.seeds, -1, -1)
    logp = policies.log_probs(source, tokens, len(every)).detach().double()
    logp[:, 0, 1] = 0.0  # nothing comes after END
    return every, logp.sum(-1).exp()


def test_distinct_translations_are_a_sample_without_replacement():
    policies, repeats, count = Policies(2, 3), 2000, 3
    for name in ("out", "out.b"):
        policies.p[name].data *= 3  # so that some are likely and many are not
    source, target = asked(policies, 1)
    every, prob = outcomes(policies, source)
    assert prob.sum(1).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
    groups = distinct(
        policies, source.expand(-1, repeats, -1), target.expand(-1, repeats, -1), count, generator(5), most=2
    )
    assert groups.sets is not None
    number = {said: i for i, said in enumerate(every)}
    drawn = torch.tensor([[[number[tuple(x)] for x in g] for g in seed] for seed in groups.tokens.tolist()])
    value = torch.rand(len(every), generator=generator(6), dtype=torch.float64)
    for seed, p in enumerate(prob):
        assert all(len(set(one)) == count for one in drawn[seed].tolist())
        sets = groups.sets[seed * repeats : (seed + 1) * repeats]
        log_prob = torch.stack([one.log_prob for one in sets])
        assert torch.allclose(log_prob.exp(), p[drawn[seed]], rtol=1e-4)
        rest = torch.stack([one.log_rest for one in sets]).exp()
        assert torch.allclose(rest + log_prob.exp().sum(1), torch.ones_like(rest), atol=1e-5)
        # How often each is in a set of three, from the three draws written out.
        pair = p[:, None] * p / (1 - p)[:, None]  # first i, then j
        pair.fill_diagonal_(0)
        triple = pair / (1 - p[:, None] - p)  # times p of the third
        inside = p + pair.sum(0) + p * (triple.sum() - triple.sum(0) - triple.sum(1))
        seen = torch.bincount(drawn[seed].flatten(), minlength=len(p)) / repeats
        usual = inside > 0.005
        z = (seen - inside)[usual] / (inside * (1 - inside) / repeats).sqrt()[usual]
        assert int(usual.sum()) > 30
        assert float(z.abs().max()) < 4.5
        assert 0.6 < float(z.square().mean()) < 1.5
        # The weights stand for all translations.
        weight = torch.stack([set_shares(one) for one in sets]) / count
        estimate = (weight * value[drawn[seed]]).sum(1)
        error = float(estimate.std()) / repeats**0.5
        assert abs(float(estimate.mean() - p @ value)) < 4 * error
        assert error < 0.01


@pytest.mark.parametrize("rollout", ["independent", "distinct", "dynamic"])
def test_groups_are_what_the_policy_says_of_them(start, rollout):
    groups = draw(Arm(rollout=rollout, completions=5), start, Language(), 3, generator(2), generator(3))
    assert groups.tokens.shape[:3] == (2, 3, 5)
    again = start.log_probs(groups.source, groups.tokens.flatten(1, 2), 5).view(groups.logp.shape)
    assert torch.allclose(again[groups.mask], groups.logp[groups.mask], atol=1e-4)
    assert bool((groups.entropy[groups.mask] > 0).all())
    assert torch.equal(groups.length, (word_count(groups.tokens) + 1).clamp_max(MOST))
    if rollout == "distinct":
        assert all(len(set(map(tuple, one))) == 5 for one in groups.tokens.flatten(0, 1).tolist())


def test_dynamic_sampling_keeps_the_first_groups_with_spread_and_counts_all_rounds():
    policies = supervised(2, 0, 60, 3e-3, Language())
    for name in ("out", "out.b"):
        policies.p[name].data[0] *= 40  # the first seed nearly always says one thing
    groups = draw(Arm(rollout="dynamic", completions=3), policies, Language(), 3, generator(2), generator(3))
    asks, draws = generator(2), generator(3)
    rounds = []
    for _ in range(8):
        source, target, _ = Language().sentences((2, 3), asks)
        rounds.append(independent(policies, source, target, 3, draws))
    flat = torch.cat([one.flat for one in rounds], 1)
    tokens = torch.cat([one.tokens for one in rounds], 1)
    needed = []
    for seed in range(2):
        first = (~flat[seed]).nonzero().flatten().tolist()[:3]
        for slot, at in enumerate(first):
            assert torch.equal(groups.tokens[seed, slot], tokens[seed, at])
        assert groups.flat[seed].tolist() == [False] * len(first) + [True] * (3 - len(first))
        needed.append(first[-1] // 3 + 1 if len(first) == 3 else 8)
    assert needed[0] > needed[1]
    assert groups.decoded == sum(needed) / 2 * 9


# -- learning ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["grpo", "leaf", "leaf_batch", "distinct, unordered_set", "leaf, 4 x sapo"])
def test_the_gradient_is_that_of_the_losses_of_every_seed(start, name):
    """Against the loss of each seed written out, every completion scored, flat groups and duplicates included."""
    arm, prompts = ARMS[name], 4
    groups = draw(arm, start, Language(), prompts, generator(2), generator(3))
    given, stands = advantages(arm, groups), shares(arm, groups)
    policies = start.copy()
    new = scored(policies, groups, needed=(given != 0).any(-1))
    total = torch.zeros(())
    plain = start.copy()
    for seed in range(2):
        each = plain.log_probs(groups.source, groups.tokens.flatten(1, 2), arm.completions)[seed]
        mask = groups.mask[seed].flatten(0, 1)
        weights = token_weights([mask], reduction=arm.reduction, shares=[stands[seed].flatten()])[0]
        credit, old = given[seed].flatten(0, 1), groups.logp[seed].flatten(0, 1)
        options = {"weights": weights, "surrogate": surrogate(arm.loss), "kl_coef": 0.0}
        total = total + policy_loss(each, old, credit, mask, **options)[0]
        policy_loss(new[seed], old, credit, mask, **options)[0].backward(retain_graph=True)
    total.backward()
    assert float(plain.p["out"].grad.abs().max()) > 1e-4
    for key, value in plain.p.items():
        assert torch.allclose(policies.p[key].grad, value.grad, atol=1e-6), key


def test_dr_grpo_and_rloo_are_one_gradient_up_to_a_factor(start):
    groups = draw(Arm(), start, Language(), 3, generator(2), generator(3))
    one, other = (advantages(ARMS[name], groups) for name in ("dr_grpo", "rloo"))
    assert float(one.abs().max()) > 0
    assert torch.allclose(one * 8 / 7, other, atol=1e-6)
    # Adam does not see a factor, so the two learn the same until rounding has grown into another draw.
    ways = [train(start, ARMS[name], 1e-3, GAME, 0)[0] for name in ("dr_grpo", "rloo", "leaf")]
    apart = [max(float((ways[0].p[k] - way.p[k]).detach().abs().max()) for k in start.p) for way in ways[1:]]
    assert apart[0] < 1e-4 < 1e-3 < apart[1]


def test_only_the_most_uncertain_tokens_of_a_seeds_step_keep_their_credit(start):
    groups = draw(Arm(), start, Language(), 3, generator(2), generator(3))
    whole, part = (advantages(ARMS[name], groups) for name in ("grpo", "grpo, uncertain 20 %"))
    for seed in range(2):
        mask = groups.mask[seed]
        least = groups.entropy[seed][mask].sort(descending=True).values[-(-int(mask.sum()) // 5) - 1]
        kept = mask & (groups.entropy[seed] >= least)
        assert torch.equal(part[seed], torch.where(kept, whole[seed], 0.0))


@pytest.mark.parametrize("name", ["grpo", "reinforce_pp", "grpo, dynamic", "distinct, nbest", "grpo, 4 x gspo"])
def test_an_arm_trains_every_seed_and_leaves_the_start_alone(start, name):
    before = {key: value.detach().clone() for key, value in start.p.items()}
    trained, figures = train(start, ARMS[name], 1e-3, GAME, 0)
    again, _ = train(start, ARMS[name], 1e-3, GAME, 0)
    for key, value in start.p.items():
        assert torch.equal(before[key], value)
        assert torch.equal(trained.p[key], again.p[key])
    assert bool(((trained.p["out"] != start.p["out"]).flatten(1).any(1)).all())
    assert figures["completions"] >= 2 * 3 * 8
    assert (figures["clip_fraction"] > 0) == (ARMS[name].passes > 1)


def test_a_step_on_equal_rewards_changes_nothing(start):
    source, _ = asked(start, 2)
    groups = independent(start, source, torch.full((2, 2, 8), END), 4, generator())
    flat = Groups(**{**vars(groups), "reward": torch.ones(2, 2, 4, dtype=torch.float64)})
    given = advantages(Arm(), flat)
    assert not given.any()
    new = scored(start, flat, needed=(given != 0).any(-1))
    assert torch.equal(new, flat.logp.flatten(1, 2))


def test_held_out_scores(start):
    test, validation = (judged(start, validation=each) for each in (False, True))
    assert {name: len(values) for name, values in test.items()} == {"reward": 2, "bleu": 2, "entropy": 2}
    assert test["reward"] != validation["reward"]
    assert all(0 < reward < 1 for reward in test["reward"])


# -- the search --------------------------------------------------------------------------------------------------------
def test_the_search_widens_until_the_best_rate_is_inside_and_other_seeds_decide(tmp_path, monkeypatch):
    calls = []

    def trained(policies, arm, rate, game, first):
        calls.append((rate, first))
        return (rate, first), {"seconds": 0.0}

    # The first seeds find 8e-3 best and 4e-3 next, by reward and BLEU together. The others see that as an accident.
    value = {5e-4: 0.1, 1e-3: 0.2, 2e-3: 0.3, 4e-3: 0.4, 8e-3: 0.3, 1.6e-2: 0.2}
    bleu = dict.fromkeys(value, 40.0) | {8e-3: 55.0}

    def scores(run, *, validation):
        rate, first = run
        assert validation
        return {"reward": [value[rate]], "bleu": [bleu[rate] if first == 1000 else 30.0]}

    monkeypatch.setattr(search, "train", trained)
    monkeypatch.setattr(search, "judged", scores)
    record, begin = search.Record(tmp_path / "runs.jsonl", GAME), dict.fromkeys(search.PHASES, Policies(1, 0))
    assert search.searched(record, "grpo", begin) == [4e-3, 8e-3]
    first = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2]
    assert calls == [*((rate, 1000) for rate in first), (8e-3, 2000), (4e-3, 2000)]
    assert search.searched(record, "grpo", begin) == [4e-3, 8e-3]
    assert len(calls) == 8
    with pytest.raises(SystemExit, match="holds another game"):
        search.Record(tmp_path / "runs.jsonl", Game()).find("search", "grpo", 1e-3)


def test_the_table_pairs_by_seed_and_says_what_was_tried():
    common = {"entropy": [0.1, 0.2], "flat": 0.25, "flat_last": 0.5, "completions": 6400, "tokens": 40000}
    common |= {"clip_fraction": 0.0, "cpu_seconds": 30.0}
    runs = [
        ("start", "", 0.0, [0.5, 0.6], [60.0, 70.0]),
        ("search", "leaf", 1e-3, [0.8], [90.0]),
        ("again", "leaf", 1e-3, [0.7], [80.0]),
        ("final", "grpo", 1e-3, [0.7, 0.9], [80.0, 90.0]),
        ("final", "leaf", 5e-4, [0.8, 1.0], [79.0, 89.0]),
        ("second", "leaf", 1e-3, [0.6, 0.8], [81.0, 91.0]),
    ]
    lines = [dict(zip(("phase", "arm", "rate", "reward", "bleu"), run, strict=True)) | common for run in runs]
    written = table.tables(lines).splitlines()
    (leaf,) = [line for line in written if line.startswith("| leaf | 0.0005")]
    assert "| +0.1000 ± 0.0000 |" in leaf
    assert "| -1.00 ± 0.00 |" in leaf
    assert "| 25 / 50 % |" in leaf
    assert "| leaf |  |  | -0.1000 ± 0.0000 | +1.00 ± 0.00 |" in written
    assert "| leaf | 0.001: 0.8000, 90.00 / 0.7000, 80.00 |" in written


def test_the_notebook_shows_the_tables_that_the_runs_make():
    lines = [json.loads(line) for line in search.FILE.read_text().splitlines()]
    shown = set((ROOT / "benchmarks/notebooks/credit_lab.md").read_text(encoding="utf-8").splitlines())
    written = [line for line in table.tables(lines).splitlines() if line]
    assert len(written) > 100
    assert [line for line in written if line not in shown] == []
