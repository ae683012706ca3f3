"""The tree explorer's data: stretches, nodes and credit in exact numbers, which groups are shown, and of which runs."""

import json

import numpy as np
import pytest
from playwright.sync_api import expect

from leaf.config import AlignConfig, LeafConfig
from leaf.report.explorer import RULES, even, explorer_section, group_data
from leaf.report.page import page
from leaf.runs.directory import RunDirectory
from tests.helpers.explorer import drawn, html
from tests.helpers.recorded import REWARDS, record, worked, write_run

GRPO = [1.3056, 0.2611, -0.7833, -0.7833]  # (r - 0.5) / (0.38297 + 1e-6)


def test_the_worked_example_has_its_stretches_nodes_and_credit():
    data = group_data(worked(), LeafConfig())
    found = [("".join(s["texts"]), s["above"], s["n"], s["value"], s["retained"], s["ends"]) for s in data["stretches"]]
    assert found == [
        ("press", -1, 3, 0.6, True, []),
        (" one to", 0, 2, 0.8, True, []),
        (" leave■", 1, 1, 1.0, False, [0]),
        (" exit■", 1, 1, 0.6, False, [1]),
        (" two to leave■", 0, 1, 0.2, False, [2]),
        ("dial one■", -1, 1, 0.2, False, [3]),
    ]
    assert [s["start"] for s in data["stretches"]] == [0, 1, 3, 3, 1, 0]
    assert data["stretches"][4]["nats"] == [1.6, 0.2, 0.4, 0.1]
    assert (data["n"], data["value"], data["boundaries"], data["rewards"]) == (4, 0.5, [1, 3], REWARDS)
    # The last column of the table in docs/method.md.
    leaf = [[(count, round(value, 3)) for count, value in row] for row in data["credit"]["leaf"]]
    assert leaf == [
        [(1, 0.169), (2, 0.697), (2, 1.466)],
        [(1, 0.169), (2, 0.697), (2, -0.309)],
        [(1, 0.169), (4, -1.640)],
        [(3, -1.418)],
    ]
    assert data["credit"]["grpo"] == [[[n, value]] for n, value in zip([5, 5, 5, 3], GRPO, strict=True)]
    json.dumps(data, allow_nan=False)


def test_recorded_advantages_are_a_rule_of_their_own_where_they_differ():
    plain = worked(advantages=[[value] * 5 for value in GRPO])
    independent = [rule for rule in RULES if rule != "unordered_set"]
    assert list(group_data(plain, LeafConfig(credit="grpo"))["credit"]) == independent
    assert group_data(plain, LeafConfig(credit="leaf"))["credit"]["recorded"][0] == [[5, 1.3056]]
    # A rule of the run's own code is not run: what it gave was recorded.
    assert "recorded" in group_data(plain, LeafConfig(credit="mine", plugins=["mine.py"]))["credit"]


def test_distinct_completions_have_their_probabilities_weights_and_masses(tmp_path, opened):
    recipe = LeafConfig(rollout="distinct", credit="unordered_set", top_p=1.0)
    record = worked(distinct=True)
    data = group_data(record, recipe)
    # Of 1.5, 1.8, 2.4 and 3 nats: e^-1.5 and so on. `press` is e^-0.1 in all, and three completions begin with it.
    assert data["draw"]["p"] == ["0.223", "0.165", "0.091", "0.050"]
    assert data["draw"]["mass"] == "0.529"
    assert sum(map(float, data["draw"]["weights"])) == pytest.approx(1, abs=2e-3)
    assert data["stretches"][0]["mass"] == ("0.479", "0.905")
    assert data["stretches"][0]["n"] == 3
    assert "grpo" not in data["credit"]  # plain means do not go with weights
    assert "unordered_set" in data["credit"]
    weights = record["weight"]
    assert data["value"] == pytest.approx(sum(w * r for w, r in zip(weights, REWARDS, strict=True)), abs=1e-3)
    share = sum(weights[:3])
    assert data["stretches"][0]["value"] == pytest.approx(
        sum(w * r for w, r in zip(weights[:3], REWARDS[:3], strict=True)) / share, abs=1e-3
    )
    run = write_run(tmp_path / "run", [record], rollout="distinct", credit="unordered_set", top_p=1.0)
    tab = opened(html(run))
    tree = tab.locator("#trees .tree")
    expect(tree).to_contain_text("mass 0.529 of 1")
    expect(tree).to_contain_text("mass 0.479 of 0.905")
    expect(tree).to_contain_text(f"p 0.223, w {weights[0]:.3f}")
    expect(tab.locator("#trees .signs")).to_contain_text("w its weight")
    expect(tab.locator("#trees .modes")).to_contain_text("unordered set")


def test_groups_recorded_before_what_is_outside_still_have_a_draw():
    record = worked(distinct=True)
    full = group_data(record, LeafConfig(credit="unordered_set"))["credit"]["unordered_set"]
    del record["log_rest"], record["threshold"]
    older = group_data(record, LeafConfig(credit="unordered_set"))["credit"]["unordered_set"]
    assert [row[0][1] for row in older] == pytest.approx([row[0][1] for row in full], abs=2e-3)


def test_surprisal_of_a_shared_token_is_the_mean_and_nothing_is_nan():
    nats = [[0.2, 1.0], [0.4, 2.0]]
    data = group_data(record([["a", "b"], ["a", "c"]], [None, None], nats), LeafConfig())
    assert data["stretches"][0]["nats"] == [0.3]
    assert data["stretches"][0]["value"] is None
    assert data["idle"] == "fewer than two completions have a reward"
    json.dumps(data, allow_nan=False)


def test_even_samples_keep_both_ends():
    assert even([1, 10, 20, 30, 40], 3) == [1, 20, 40]
    assert even([1, 10, 20, 30], 2) == [1, 30]
    assert even([1, 10, 20], 1) == [20]
    assert even([1, 10], 9) == [1, 10]


def test_too_many_groups_are_sampled_evenly_and_the_page_says_so(tmp_path, opened):
    run = write_run(tmp_path / "run", [{**worked(id=f"g{i % 2}"), "step": 10 * (i // 2)} for i in range(200)])
    section = drawn([run], audio=False, text_bytes=60_000)
    shown = section.data["runs"][0]
    steps = [group["step"] for group in shown["groups"][::2]]
    assert (shown["total"], shown["steps"]) == (200, 100)
    assert len(json.dumps(shown["groups"], separators=(",", ":"))) < 65_000  # what is said of the audio comes on top
    assert 6 <= len(steps) < 40
    assert (steps[0], steps[-1]) == (0, 990)
    gaps = np.diff(steps)
    assert gaps.max() - gaps.min() <= 10
    assert [group["number"] for group in shown["groups"]] == [0, 1] * len(steps)
    tab = opened(page("a run", [section]))
    said = tab.locator("#trees .sample").text_content()
    assert said == f"{2 * len(steps)} of 200 recorded groups: {len(steps)} of 100 recorded steps, evenly spaced"
    assert drawn([run], audio=False, text_bytes=10).data["runs"][0]["groups"][0]["step"] == 990


def test_runs_without_groups_have_no_explorer(tmp_path):
    bare = write_run(tmp_path / "bare", [])
    align = write_run(tmp_path / "align", [])
    align.write_recipe(AlignConfig())
    assert explorer_section([bare, align], audio=False) is None
    full = write_run(tmp_path / "full", [worked()])
    again = write_run(tmp_path / "sub", [worked()])
    (tmp_path / "other").mkdir()
    again.path.rename(tmp_path / "other" / "full")
    runs = drawn([bare, full, RunDirectory(tmp_path / "other" / "full")], audio=False).data["runs"]
    assert [run["name"] for run in runs] == ["full", "full (2)"]
    section = drawn([bare, full], names=["first", "second"], audio=False)
    assert [run["name"] for run in section.data["runs"]] == ["second"]
