"""The whole report: what the runs' numbers become, which runs it refuses, and the size of the page."""

import json
import re

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.config import LeafConfig, SftConfig
from leaf.credit import Fork, credit_mass, fork_rates, forks
from leaf.credit.sets import shares_of_draw
from leaf.errors import ConfigError, RunError
from leaf.evaluation.bootstrap import mean_interval
from leaf.evaluation.predictions import Predictions
from leaf.report import curves
from leaf.report.curves import band, curves_section, thinned, top_score
from leaf.report.drawn_group import DrawnGroup
from leaf.report.forks import ForkCounts, forks_section, round_width
from leaf.report.runs import read_runs
from leaf.report.write import write_report
from tests.helpers.recorded import worked
from tests.helpers.reported import group, made, panel


# -- curves and the table ----------------------------------------------------------------------------------------------
def test_long_curves_are_averaged_and_seeds_have_a_band(tmp_path, monkeypatch):
    assert thinned([(1, 1.0), (2, 3.0), (3, 5.0)], 2) == [(1.5, 2.0), (3.0, 5.0)]
    few = [{1: 1.0, 2: 2.0}, {1: 3.0, 2: 2.0, 3: 9.0}, {1: 2.0, 2: 2.0}]
    spread = band(few)
    assert (spread["step"], spread["value"]) == ([1, 2], [2.0, 2.0])
    assert (spread["low"], spread["high"], spread["interval"]) == ([1.0, 2.0], [3.0, 2.0], False)
    spread = band([*few, {1: 6.0, 2: 2.0}])
    mean, half = mean_interval([1.0, 3.0, 2.0, 6.0])
    assert spread["interval"]
    assert spread["low"] == pytest.approx([mean - half, 2.0], rel=1e-4)
    assert spread["high"] == pytest.approx([mean + half, 2.0], rel=1e-4)
    paths = [made(tmp_path / f"s{seed}", seed=seed, offset=seed / 10) for seed in range(3)]
    paths.append(made(tmp_path / "g", credit="grpo"))
    section = curves_section(read_runs(paths))
    reward = panel(section, "Reward")
    assert [line["run"] for line in reward["lines"]] == ["s0", "s1", "s2", "g"]
    assert [one["method"] for one in reward["bands"]] == ["leaf"]
    assert reward["bands"][0]["value"] == pytest.approx([i / 6 + 0.1 for i in range(1, 7)], rel=1e-4)
    assert panel(section, "Tokens saved")["lines"][0]["value"] == [0.75] * 6
    assert panel(section, "Gradient norm")["lines"][0]["step"] == [1, 3, 4, 5, 6]
    assert panel(section, "Validation bleu")["lines"][0]["low"] == [45.0, 51.0]
    assert section.data["metrics"] == ["bleu", "truncated"]
    assert section.data["stages"][0]["seconds"] == {"sample": 1.0, "update": 2.0, "other": 1.0}
    monkeypatch.setattr(curves, "POINTS", 2)
    short = panel(curves_section(read_runs(paths)), "Reward")
    assert short["averaged"] == 3
    assert short["lines"][0]["step"] == [2.0, 5.0]


def test_steps_without_a_reference_have_no_divergence_to_draw(tmp_path):
    old, new = made(tmp_path / "old", kl_coef=0.0), made(tmp_path / "new", kl_coef=0.0, seed=1)
    for path, kl in ((old, 0.0), (new, None)):  # what earlier versions wrote, and what is written now
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        (path / "metrics.jsonl").write_text("".join(json.dumps({**row, "kl": kl}) + "\n" for row in rows))
    both = curves_section(read_runs([old, new]))
    assert [line["run"] for line in panel(both, "Divergence from the reference")["lines"]] == ["old"]
    titles = [one["title"] for one in curves_section(read_runs([new])).data["panels"]]
    assert "Reward" in titles
    assert "Divergence from the reference" not in titles


def test_each_of_several_reward_functions_has_its_panels(tmp_path):
    path = made(tmp_path / "run")
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for names, wanted in ((["bleu"], []), (["bleu", "brief"], ["Reward bleu", "Spread of bleu", "Reward brief"])):
        more = {f"rewards/{name}/{what}": 0.25 for name in names for what in ("mean", "std")}
        (path / "metrics.jsonl").write_text("".join(json.dumps({**row, **more}) + "\n" for row in rows))
        titles = [one["title"] for one in curves_section(read_runs([path])).data["panels"]]
        assert [title for title in titles if title.endswith(("bleu", "brief")) and "Validation" not in title][
            :3
        ] == wanted
    scored = {"step": 0, "bleu": 50.0, "reward": 0.4, "reward/low": 0.3, "reward/high": 0.5}
    scored["rewards/brief/mean"] = 0.2
    (path / "validation.jsonl").write_text(json.dumps(scored) + "\n")
    section = curves_section(read_runs([path]))
    assert section.data["metrics"] == ["bleu", "reward", "rewards/brief/mean"]


def test_a_row_of_the_table(tmp_path):
    (row,) = curves_section(read_runs([made(tmp_path / "run", steps=20)])).data["runs"]
    assert row["minutes"] == pytest.approx(20 * 4 / 60)
    assert row["reward"] == pytest.approx((19 + 20) / 2 / 20)
    assert row["scores"]["bleu"] == {"first": 50.0, "last": 70.0, "top": 70.0, "less": False}
    assert row["accidents"] == {
        "steps skipped because the loss or the gradient was not a number": 18,
        "rewards that failed": 20,
    }


def test_the_best_error_rate_is_the_lowest():
    assert top_score("wer", [40.0, 20.0, 30.0]) == top_score("token_error_rate", [20.0, 30.0]) == 20.0
    assert top_score("bleu", [40.0, 20.0, 50.0]) == 50.0


def test_the_best_score_is_that_of_a_trained_model(tmp_path):
    run = made(tmp_path / "run")
    rows = [{"step": 0, "bleu": 60.0, "wer": 5.0}, {"step": 3, "bleu": 55.0, "wer": 9.0}]
    rows.append({"step": 6, "bleu": 50.0, "wer": 7.0})
    for count, best in ((1, (None, None)), (3, (55.0, 7.0))):
        (run / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
        (row,) = curves_section(read_runs([run])).data["runs"]
        assert (row["scores"]["bleu"]["top"], row["scores"]["wer"]["top"]) == best
        assert row["scores"]["bleu"]["first"] == 60.0


# -- forks -------------------------------------------------------------------------------------------------------------
def test_forks_and_credit_of_distinct_completions_count_by_weight(tmp_path):
    settings = {"rollout": "distinct", "credit": "unordered_set", "top_p": 1.0}
    recorded = worked(distinct=True, advantages=[[1.0, 0, 0, 0, 0], [0, 0, 0, 0, 1.0], [0] * 5, [0] * 5])
    run = made(tmp_path / "run", **settings)
    (run / "groups.jsonl").write_text(json.dumps(recorded) + "\n")
    section, _ = forks_section(read_runs([run]))
    assert section is not None
    (method,) = section.data["methods"]
    trained, leaf = method["credit"]
    assert (trained["rule"], leaf["rule"]) == ("unordered_set, as trained", "leaf")
    group = DrawnGroup(recorded, LeafConfig(**settings))
    assert group.shares is not None
    weighed = credit_mass(group.advantages() * group.shares[:, None], group.tree.lengths)
    assert trained["fifths"] == pytest.approx(weighed.tolist())
    assert trained["fifths"] != pytest.approx(credit_mass(group.advantages(), group.tree.lengths).tolist())
    found = forks(group.tree, group.rewards, torch.tensor(group.boundaries), shares_of_draw(group.draw))
    assert method["whole"]["usable_rate"] == fork_rates(found)["usable_rate"]
    write_report([run], tmp_path / "report.html")


def test_forks_and_credit_by_position(tmp_path):
    section, _ = forks_section(read_runs([made(tmp_path / "run")]))
    assert section is not None
    (method,) = section.data["methods"]
    assert method["groups"] == 2
    # The shortest completion has two tokens and spacing is two, so each group has one cut: before the surprising `d`.
    # There `a b` is shared by three with rewards 1, 0 and 0.5.
    assert method["whole"]["boundaries"] == 2
    assert method["whole"]["usable_rate"] == 1.0
    assert method["sizes"] == [[3, 2]]
    assert method["spreads"] == [[5, 2]]
    assert section.data["spreads"][:6] == ["equal", "to 0.2", "to 0.4", "to 0.6", "to 0.8", "to 1"]
    assert method["places"][0]["stretch"] == "2 to 4"
    trained, grpo = method["credit"]
    assert (trained["rule"], grpo["rule"]) == ("leaf, as trained", "grpo")
    # |A| of 0.5, 1 and 0.1 on three tokens each: a third in the third token.
    assert trained["stretches"][:2] == pytest.approx([2 / 3, 1 / 3])
    assert sum(grpo["fifths"]) == pytest.approx(1.0)
    assert forks_section(read_runs([made(tmp_path / "none", groups=False)]))[0] is None
    still = read_runs([made(tmp_path / "sft", recipe=SftConfig, groups=False)])
    assert forks_section(still)[0] is None


def test_reward_spreads_are_counted_to_the_last_group():
    found = [Fork(2, True, spread > 0, (2,), (spread,)) for spread in [*[0.0] * 4000, 0.3, 0.5]]
    counted = ForkCounts(1, found).as_json(round_width(0.5))
    assert counted["spreads"] == [[0, 4000], [3, 1], [5, 1]]


# -- the page ----------------------------------------------------------------------------------------------------------
def test_runs_that_cannot_be_reported(tmp_path, monkeypatch):
    run = made(tmp_path / "a/run")
    with pytest.raises(RunError, match="not a run directory"):
        read_runs([tmp_path])
    with pytest.raises(RunError, match="given twice"):
        read_runs([run, tmp_path / "a/../a/run"])
    with pytest.raises(RunError, match="No run was given"):
        read_runs([])
    assert [r.name for r in read_runs([run, made(tmp_path / "b/run")])] == ["a/run", "b/run"]
    (tmp_path / "b/run/metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="no step was taken"):
        read_runs([tmp_path / "b/run"])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_report([run], tmp_path / "file/report.html")
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[report\]'"):
        curves_section(read_runs([run]))


def test_the_command_writes_a_page_without_a_path(tmp_path):
    run = made(tmp_path / "run", model=str(tmp_path / "models/tiny"))
    done = CliRunner().invoke(app, ["report", str(run), "--output", str(tmp_path / "out/r.html")])
    assert done.exit_code == 0, done.output
    assert str(tmp_path) not in (tmp_path / "out/r.html").read_text()


def test_a_thousand_steps_of_three_seeds_with_everything_stay_below_five_megabytes(tmp_path):
    """More groups, recordings and predictions than there is room for: each part is cut, and none is lost."""
    random = np.random.default_rng(0)
    rows = []
    for i in range(28):
        soundfile.write(tmp_path / f"{i}.wav", random.normal(0, 0.2, 12 * 16000).clip(-0.9, 0.9), 16000)
        row = {"id": f"row{i}", "prompt": "say it", "audio": f"{i}.wav", "reference": f"x{i}"}
        rows.append(row | {"split": "train" if i < 14 else "test"})
    task = tmp_path / "rows.jsonl"
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    letters = {1: "a", 2: "Ġb", 3: "Ġc", 4: "Ġd", 5: "Ġe"}
    paths = []
    for seed in range(3):
        path = made(tmp_path / f"s{seed}", seed=seed, steps=1000, task=str(task))
        with (path / "groups.jsonl").open("w") as file:
            for step in range(1, 1001, 10):
                ids = random.integers(1, 6, (8, 40)).tolist()
                row = rows[step // 10 % 14]
                many = group(step) | {
                    "id": row["id"],
                    "prompt": "say it",
                    "reference": row["reference"],
                    "completions": ["abcde" * 8] * 8,
                    "rewards": random.random(8).round(3).tolist(),
                    "truncated": [True] * 8,
                    "token_ids": ids,
                    "tokens": [[letters[i] for i in line] for line in ids],
                    "surprisal": random.exponential(1.0, (8, 40)).round(4).tolist(),
                    "advantages": random.normal(0, 1, (8, 40)).round(4).tolist(),
                    "boundaries": [2, 5],
                    "tree": {"parent": [-1] * 300},
                }
                file.write(json.dumps(many) + "\n")
        paths.append(path)
    items = [{"id": f"row{i}", "prompt": "say it", "reference": f"x{i}"} for i in range(14, 3014)]
    for name in ("before", "after"):
        texts = [[f"{name} {i} " + "word " * 60 for i in range(len(items))]]
        predictions = Predictions(name, items, texts, [None], [[False] * len(items)])
        made_with = {"decoding": {"greedy": True}, "split": "test"}
        predictions.meta = {
            "predictions": 1,
            "made_with": made_with,
            "lowercase": False,
            "metrics": {"exact_match": {}},
        }
        predictions.write(paths[0] / f"test_{name}.jsonl")
    file = write_report(paths, tmp_path / "r.html")
    assert 3.5e6 < file.stat().st_size < 5e6
    found = re.findall(r'<script type="application/json" id="data-(\w+)">(.*?)</script>', file.read_text())
    data = {name: json.loads(text) for name, text in found}
    assert [bool(run["groups"]) for run in data["trees"]["runs"]] == [True] * 3
    assert data["trees"]["clips"]
    (scored,) = data["evaluation"]["sets"]
    assert len(scored["items"]) < scored["total"] == 3000
    assert scored["clips"]
