"""The statistics behind the learning claims."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.learning import chosen
from benchmarks.learning.chosen import Chosen
from benchmarks.learning.intervals import crossed_interval, unpaired
from benchmarks.learning.repeats import repeats
from leaf.evaluation.bootstrap import mean_interval


def test_an_interval_over_seeds_and_rows_is_students_where_only_one_of_them_varies():
    values = [1.0, 2.0, 4.0, 9.0]
    gaps = np.repeat(np.array(values)[:, None], 50, axis=1)
    assert crossed_interval(gaps) == pytest.approx(mean_interval(values))
    assert crossed_interval(gaps.T) == pytest.approx(mean_interval(values))
    assert crossed_interval(np.ones((3, 5))) == (1.0, 0.0)


def test_an_interval_over_seeds_and_rows_covers_the_truth():
    generator, hits = np.random.default_rng(0), 0
    for _ in range(400):
        seeds, rows, rest = (generator.normal(0, s, n) for s, n in ((2, (5, 1)), (15, (1, 80)), (20, (5, 80))))
        mean, half = crossed_interval(seeds + rows + rest)
        hits += abs(mean) <= half
    assert 0.92 <= hits / 400 <= 0.99


def test_runs_of_different_lengths_are_kept_apart_and_splits_of_one_run_put_together(tmp_path, monkeypatch):
    run = {"task": "fr", "credit": "leaf", "seed": 0}
    records = [
        {**run, "steps": 30, "test": 1},
        {**run, "credit": "none", "steps": 0, "test": 2},
        {**run, "steps": 50, "test": 3},
        {**run, "steps": 50, "test_heldout": 4},
        {**run, "task": "qa", "steps": 100, "test": 5},
        {**run, "set": "later", "steps": 50, "test": 6},
        {**run, "set": "later", "steps": 50, "seed": 1, "test": 7},
    ]
    file = tmp_path / "learning.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(chosen, "RUNS", file)
    start, long = Chosen("fr").runs()
    assert (start["test"], long["test"], long["test_heldout"]) == (2, 3, 4)
    assert [one["test"] for one in Chosen("fr", 30).runs()] == [2, 1]
    assert [one["test"] for one in Chosen("fr", set="later").runs()] == [2, 6, 7]
    assert [one["test"] for one in Chosen("fr", seeds=[1], set="later").runs()] == [2, 7]


def test_the_unpaired_difference_is_welchs():
    # Variances 4 and 4: √(4/3 + 4/3) with (8/3)² / (2 · (4/3)² / 2) = 4 degrees of freedom, Student's 2.7764.
    assert unpaired([1.0, 3.0, 5.0], [2.0, 4.0, 6.0]) == pytest.approx((-1.0, 2.7764 * (8 / 3) ** 0.5), rel=1e-4)
    # Only one side varies: its own interval, (√(4/3) at 2 degrees of freedom, 4.3027).
    assert unpaired([1.0, 3.0, 5.0], [2.0, 2.0]) == pytest.approx((1.0, 4.3027 * (4 / 3) ** 0.5), rel=1e-4)
    assert unpaired([1.0, 1.0], [2.0, 2.0]) == (-1.0, 0.0)


def test_repeats_say_what_a_run_varies_by(tmp_path, monkeypatch, capsys):
    def run(value, seed, credit="grpo", **more):
        scores = {"greedy": {"bleu": value}}
        known = {"task": "qa", "credit": credit, "seed": seed, "steps": 9}
        return {**known, "test": scores, "test_heldout": scores, **more}

    records = [run(80.0, 0), run(84.0, 1), run(83.0, 0, set="again"), run(80.0, 1, set="again"), run(70.0, 2)]
    records += [run(81.0, 0, "leaf"), run(77.0, 1, "leaf", set="again"), run(60.0, 9, "leaf")]
    (tmp_path / "learning.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(chosen, "RUNS", tmp_path / "learning.jsonl")
    repeats(SimpleNamespace(task="qa", steps=None, seeds=None, set="again", base="grpo"))
    said = capsys.readouterr().out
    assert "grpo 0: +3.00, grpo 1: -4.00" in said
    assert "its rule and seed: 2.50 (2 pairs)" in said  # √((9 + 16) / 2 / 2)
    assert "over all 5 runs" in said
    # Pairs of one set and one seed: 81 - 80 and 77 - 80; the run of seed 9 has no partner. ± 12.7062 · √8 / √2.
    assert "paired by set and seed: -1.00 ± 25.41 (2 pairs;" in said
