"""The study of rollouts: which runs it plans, which rate it chooses, and that it may be stopped at any time."""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks.learning.study import Job, best_rate, embed_once, plan
from benchmarks.learning.study_figure import completions, points, seconds, shared_by_methods
from benchmarks.learning.study_table import study_table
from benchmarks.records import ROOT
from leaf.model.policy import Policy
from tests.helpers import tiny


def asked(**changes):
    values = {
        "tasks": ["qa"],
        "methods": ["grpo", "unordered_set"],
        "rates": [1e-4, 2e-4],
        "seeds": [0, 1],
        "search_seeds": [100],
        "steps": 5,
        "search_steps": 3,
        "overrides": [],
    }
    return SimpleNamespace(**values | changes)


def score(reward):
    scores = {"reward": reward, "bleu": 100 * reward}
    return {"items": 4, "greedy": scores, "sampled": scores, "expected_reward": reward}


def record(job, reward=0.5):
    found = {**vars(job), "overrides": list(job.overrides)}
    if job.stage == "search":
        return found | {"validation": score(reward)}
    sums = {"completions": 40, "tokens_decoded": 200, "packed_tokens": 300, "seconds/step": 10.0, "seconds/sample": 5.0}
    course = {"zero_variance_groups": [0.1, 0.4], "entropy": [0.3, 0.2]}
    scores = {"test": score(reward), "test_heldout": score(reward)}
    return found | scores | {"sums": sums, "course": course, "seconds": [1.0, 2.0, 2.0, 2.0, 3.0]}


def test_seeds_come_after_all_searches_and_at_the_best_rate_of_each_method():
    jobs = plan(asked(), [])
    assert [(job.stage, job.method, job.rate) for job in jobs] == [
        ("start", "none", 0.0),
        ("search", "grpo", 1e-4),
        ("search", "unordered_set", 1e-4),
        ("search", "grpo", 2e-4),
        ("search", "unordered_set", 2e-4),
    ]
    records = [record(job, reward) for job, reward in zip(jobs[1:], (0.5, 0.6, 0.55, 0.4), strict=True)]
    assert plan(asked(), records[:3])[-1].method == "grpo"  # the other one has still a rate to try
    seeds = plan(asked(), records)[5:]
    assert [(job.seed, job.method, job.rate, job.steps) for job in seeds] == [
        (0, "grpo", 2e-4, 5),
        (0, "unordered_set", 1e-4, 5),
        (1, "grpo", 2e-4, 5),
        (1, "unordered_set", 1e-4, 5),
    ]
    # What was measured with other settings is another run.
    assert len(plan(asked(search_steps=4), records)) == 5
    assert len(plan(asked(overrides=["lora_r=2"]), records)) == 5


def test_a_rate_is_the_best_over_all_search_seeds_and_one_alone_needs_no_search():
    jobs = [Job("qa", "grpo", "search", rate, seed, 3) for rate in (1e-4, 2e-4) for seed in (7, 8)]
    done = {job: record(job, reward) for job, reward in zip(jobs, (0.9, 0.1, 0.6, 0.6), strict=True)}
    assert best_rate([1e-4, 2e-4], jobs, done) == 2e-4
    assert [job.stage for job in plan(asked(rates=[3e-4]), [])] == ["start", *["seeds"] * 4]


def test_a_record_names_its_job_and_jobs_have_directories_of_their_own():
    jobs = plan(asked(rates=[3e-4], overrides=["lora_r=2"]), [])
    assert [Job.of(json.loads(json.dumps(record(job)))) for job in jobs] == jobs
    assert len({job.directory for job in jobs}) == len(jobs)


def test_the_table_pairs_differences_by_seed(tmp_path, capsys):
    jobs = [Job("qa", method, "seeds", 2e-4, seed, 5) for method in ("grpo", "leaf") for seed in (0, 1)]
    file = tmp_path / "study.jsonl"
    jobs.append(Job("qa", "grpo", "seeds", 4e-4, 0, 5))
    jobs += [Job("qa", method, "seeds", 2e-4, 0, 10) for method in ("leaf", "grpo")]
    jobs.append(Job("qa", "grpo", "seeds", 2e-4, 1, 5, ("lora_r=2",)))
    rewards = (0.1, 0.4, 0.2, 0.5, 0.3, 0.7, 0.6, 0.9)
    records = [record(job, reward) for job, reward in zip(jobs, rewards, strict=True)]
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    study_table(SimpleNamespace(out=file, base="grpo"))
    said = capsys.readouterr().out
    assert "+0.1000 ± 0.0000" in said  # both seeds differ by this, so that the interval has no width
    assert "| grpo at 0.0004 | 0.0004 | 1 | 0.3000 | +0.2000 |" in said  # the first rate is the base
    assert "| leaf, 10 steps | 0.0002 | 1 | 0.7000 | +0.1000 |" in said  # against the base of the same length
    assert "| grpo, 10 steps | 0.0002 | 1 | 0.6000 |  |" in said
    assert "| grpo, lora_r=2 | 0.0002 | 1 | 0.9000 | +0.5000 |" in said
    assert "| leaf | 40 | 200 | 300 | 2.00 | 50% | 0.10 → 0.40 |" in said


def test_a_curve_has_the_mean_cost_so_far_and_the_mean_reward_of_each_stretch():
    made = {"steps": 20, "sums": {"completions": 80}, "rewards": [i / 20 for i in range(20)]}
    records = [made | {"seed": 0, "seconds": [2.0] * 20}, made | {"seed": 1, "seconds": [4.0] * 20}]
    common = shared_by_methods({"leaf": records})
    by_seconds, by_completions = (points("leaf", records, cost, common, 1) for cost in (seconds, completions))
    assert [one["at"] for one in by_seconds] == [6.0 * i for i in range(1, 11)]
    assert [one["at"] for one in by_completions] == [8.0 * i for i in range(1, 11)]
    assert [one["reward"] for one in by_seconds] == pytest.approx([(i + 0.25) / 10 for i in range(10)])
    assert {one["method"] for one in by_seconds} == {"leaf"}


def test_a_band_leaves_out_what_a_seed_adds_to_all_methods():
    def run(seed, reward):
        return {"seed": seed, "steps": 10, "sums": {"completions": 40}, "rewards": [reward] * 10, "seconds": [1.0] * 10}

    # Seed 1 is easier by 0.4 for both; the methods differ by 0.2 in each. Seed 2 has one method alone.
    found = {"grpo": [run(0, 0.1), run(1, 0.5), run(2, 0.9)], "leaf": [run(0, 0.3), run(1, 0.7)]}
    common = shared_by_methods(found)
    grpo, leaf = (points(name, records, seconds, common, 2)[0] for name, records in found.items())
    assert (grpo["reward"], grpo["low"], grpo["high"]) == pytest.approx((0.3, 0.3, 0.3))
    assert (leaf["reward"], leaf["low"], leaf["high"]) == pytest.approx((0.5, 0.5, 0.5))


def test_a_band_is_as_wide_as_the_noise_of_its_method_whatever_it_is_drawn_beside():
    """Independent noise of deviation 1 in each run: over many draws the squared half-width is that of one method."""
    generator = random.Random(0)

    def run(seed):
        return {"seed": seed, "steps": 10, "rewards": [generator.gauss(0, 1)] * 10, "seconds": [1.0] * 10}

    squares = {1: [], 2: [], 5: []}
    for count, found in squares.items():
        for _ in range(400):
            runs = {str(name): [run(seed) for seed in range(5)] for name in range(count)}
            (first, *_) = points("0", runs["0"], seconds, shared_by_methods(runs), count)
            found.append(((first["high"] - first["low"]) / 2) ** 2)
    expected = 2.776445**2 / 5  # Student's for five seeds, and a variance of 1
    assert [statistics.fmean(one) for one in squares.values()] == pytest.approx([expected] * 3, rel=0.1)


def test_embedded_prompts_come_from_the_file_of_an_earlier_run(tmp_path, monkeypatch):
    policy = Policy.wrap(*tiny.tiny_model())
    rows = [{**row, "id": f"row {i}"} for i, row in enumerate(tiny.rows(3))]
    expected = [policy.embed([row])[0] for row in rows]
    embed_once(policy, rows[:2], tmp_path / "some.pt")
    policy = Policy.wrap(*tiny.tiny_model())
    monkeypatch.setattr(policy, "_embed", lambda rows: pytest.fail("embedded again"))
    embed_once(policy, rows[:2], tmp_path / "some.pt")
    (found,) = policy.embed(rows[1:2])
    torch.testing.assert_close(found.embeddings, expected[1].embeddings)
    assert torch.equal(found.is_audio, expected[1].is_audio)
    policy = Policy.wrap(*tiny.tiny_model())
    embed_once(policy, rows, tmp_path / "some.pt")  # other rows: made again
    torch.testing.assert_close(policy.embed(rows[2:])[0].embeddings, expected[2].embeddings)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_that_was_stopped_is_continued(tmp_path):
    out = tmp_path / "study.jsonl"
    command = [sys.executable, "-m", "benchmarks.learning", "study", "--out", str(out), "--tasks", "asr"]
    command += ["--methods", "unordered_set", "--rates", "2e-4", "--seeds", "0", "--steps", "4", "--items", "4"]
    command += ["--overrides", "prompts_per_rollout=2", f"plugins=[{tmp_path}/nothing.py]"]
    (tmp_path / "nothing.py").write_text("")  # which makes the run directory one of its own
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}"}
    child = subprocess.Popen(command, cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("runs/study/*seeds*/metrics.jsonl")):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.2)
    child.send_signal(signal.SIGTERM)
    assert child.wait(timeout=300) == 75
    assert len(out.read_text().splitlines()) == 1  # the start
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=900)
    start, run = map(json.loads, out.read_text().splitlines())
    assert start["validation"]["items"] == run["test"]["items"] == 4
    assert len(run["rewards"]) == 4
    assert run["sums"]["completions"] == 4 * 2 * 8
