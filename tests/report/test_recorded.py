"""Recorded groups are found by their steps, and a long run is thinned before its groups are read."""

import json

import pytest

from leaf.errors import RunError
from leaf.report import forks
from leaf.report.recorded import RecordedGroups
from leaf.report.runs import read_runs
from leaf.report.terminal import recorded_group
from tests.helpers.recorded import REWARDS, WORDS, record, write_run


@pytest.fixture
def run(tmp_path):
    records = [{**record(WORDS, REWARDS), "step": step} for step in (10, 20, 1, 30, 40) for _ in range(2)]
    run = write_run(tmp_path / "run", records)
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
    return run


def test_groups_are_read_by_step_in_the_order_of_steps(run):
    with (run.path / "groups.jsonl").open("a") as file:
        file.write('{"step": 50, "torn')
    recorded = RecordedGroups(run)
    assert (list(recorded.sizes), recorded.count) == ([1, 10, 20, 30, 40], 10)
    assert [one["step"] for one in recorded.of({30, 1})] == [1, 1, 30, 30]
    assert sum(recorded.sizes.values()) == len((run.path / "groups.jsonl").read_bytes()) - len('{"step": 50, "torn')
    assert recorded.spread(10) == [1, 10, 20, 30, 40]
    assert recorded.spread(4) == [1, 40]
    assert recorded.spread(1) == [40]


def test_lines_of_another_order_are_read_and_damaged_ones_named(run):
    file = run.path / "groups.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(dict(reversed(line.items()))) + "\n" for line in lines))
    assert list(RecordedGroups(run).sizes) == [1, 10, 20, 30, 40]
    file.write_text("[]\n")
    with pytest.raises(RunError, match=r"groups\.jsonl has a line that is no JSON object with a step"):
        RecordedGroups(run)


def test_a_group_without_tokens_or_with_too_few_is_named(run):
    file = run.path / "groups.jsonl"
    whole = json.loads(file.read_text().splitlines()[0])
    for changes in ({"token_ids": None}, {"tokens": whole["tokens"][1:]}, {"rewards": {}}, {"advantages": 3}):
        file.write_text(json.dumps(whole | changes) + "\n")
        with pytest.raises(RunError, match=r"groups\.jsonl has a group of step 10 without token_ids, .* is damaged\."):
            list(RecordedGroups(run).of([10]))
        with pytest.raises(RunError, match=r"without token_ids, tokens, rewards, surprisal, advantages of every"):
            recorded_group(run)


def test_of_many_groups_the_forks_of_evenly_spread_steps_are_counted_and_said(run, monkeypatch):
    runs = read_runs([run.path])
    section, notes = forks.forks_section(runs)
    assert section is not None
    assert (section.data["methods"][0]["groups"], notes) == (10, [])
    monkeypatch.setattr(forks, "MOST", 4)
    section, notes = forks.forks_section(runs)
    assert section is not None
    assert section.data["methods"][0]["groups"] == 4
    assert notes == [
        "run: forks and credit are counted in the groups of 2 steps, evenly spread over the 5 that were recorded."
    ]
