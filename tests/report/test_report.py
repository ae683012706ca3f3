"""The whole report: what the runs' numbers become, and the page in a browser."""

import json
import re

import numpy as np
import pytest
import soundfile
import yaml
from playwright.sync_api import expect
from typer.testing import CliRunner

from leaf.commands.main import app
from leaf.config import LeafConfig, RunConfig, SftConfig, to_dict
from leaf.credit import Fork
from leaf.errors import ConfigError, RunError
from leaf.evaluation.bootstrap import mean_interval
from leaf.evaluation.predictions import Predictions
from leaf.report import curves
from leaf.report.curves import band, curves_section, thinned, top_score
from leaf.report.forks import ForkCounts, forks_section, round_width
from leaf.report.runs import colours, differences, methods, read_runs
from leaf.report.write import write_report
from tests.helpers.waits import until

EVIL = "<img src=x onerror=\"document.title='owned'\">"


def group(step, rewards=(1.0, 0.0, 0.5, 0.5)):
    """Four completions: `a b c` twice, `a b d`, `a e`; the ids are the letters."""
    ids = [[1, 2, 3], [1, 2, 3], [1, 2, 4], [1, 5]]
    letters = {1: "a", 2: "Ġb", 3: "Ġc", 4: "Ġd", 5: "Ġe"}
    advantages = [[0.5, 0.5, 0.5], [-1.0, -1.0, -1.0], [0.1, 0.1, 0.1], [0.0, 0.0]]
    return {
        "step": step,
        "id": "x",
        "prompt": f"say it {EVIL}",
        "audio": [],
        "text": None,
        "reference": EVIL,
        "completions": ["a b c", "a b c", "a b d", "a e"],
        "rewards": list(rewards),
        "truncated": [True] * 4,
        "token_ids": ids,
        "tokens": [[letters[i] for i in row] for row in ids],
        "surprisal": [[0.1, 0.2, 2.0], [0.1, 0.2, 2.0], [0.1, 0.2, 3.0], [0.1, 2.5]],
        "advantages": advantages,
        "boundaries": [2],
        "tree": {"parent": [-1, 0, 1, 1, 0]},
    }


def made(
    path,
    *,
    steps=6,
    seed=0,
    offset=0.0,
    groups=True,
    recipe: type[RunConfig] = LeafConfig,
    model="tiny",
    task="asterisk_qa",
    **settings,
):
    """Write a run directory as a trainer leaves it."""
    path.mkdir(parents=True)
    config = recipe(model=model, task=task, seed=seed, output_dir=str(path), max_steps=steps, **settings)
    (path / "recipe.yaml").write_text(yaml.safe_dump(to_dict(config)))
    (path / "versions.json").write_text('{"torch": "2"}')
    rows = [
        {
            "step": i,
            "reward_mean": i / steps + offset,
            "kl": 0.01 * i,
            "skipped_steps": int(i > 2),
            "reward_errors": 1,
            "packed_tokens": 25.0,
            "plain_tokens": 100.0,
            "seconds/sample": 1.0,
            "seconds/update": 2.0,
            "seconds/step": 4.0,
            "grad_norm": None if i == 2 else 1.0,
        }
        for i in range(1, steps + 1)
    ]
    scored = [
        {"step": i, "bleu": 50.0 + i + offset, "bleu/low": 45.0 + i, "bleu/high": 55.0 + i, "truncated": 0.0}
        for i in (0, steps)
    ]
    files = {
        "metrics.jsonl": rows,
        "validation.jsonl": scored,
        "groups.jsonl": [group(1), group(steps)] if groups else [],
    }
    for name, lines in files.items():
        (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def panel(section, title):
    return next(one for one in section.data["panels"] if one["title"] == title)


# -- numbers -----------------------------------------------------------------------------------------------------------
def named(*recipes):
    return methods(recipes, [f"run{number}" for number in range(len(recipes))])


def test_methods_are_what_recipes_differ_in_seeds_aside():
    def recipe(**settings):
        return LeafConfig(model="/home/me/models/tiny", task="t", **settings)

    one, two = recipe(credit="leaf", seed=1, output_dir="a"), recipe(credit="leaf", seed=2, output_dir="b")
    assert named(one, two) == ["leaf", "leaf"]
    assert named(one, recipe(credit="grpo")) == ["leaf", "grpo"]
    assert named(one, recipe(credit="leaf", learning_rate=1e-3)) == ["learning_rate 5e-06", "learning_rate 0.001"]
    assert named(one, recipe(credit="grpo", lora_r=8)) == ["leaf, lora_r 64", "grpo, lora_r 8"]


def test_methods_that_differ_in_much_have_the_names_of_their_runs():
    one = LeafConfig(model="/home/me/models/tiny", task="t")
    other = {"credit_options": {"sqrt_count": False}, "learning_rate": 1e-3}
    others = [LeafConfig(model="/home/me/models/tiny", task="t", seed=seed, **other) for seed in range(3)]
    assert named(one, *others) == ["run0", *["run1 and 2 more"] * 3]
    assert named(one, SftConfig(model="x/other", task="t")) == ["run0", "run1"]


@pytest.mark.parametrize(
    "free",
    [
        {"eval_every": 7, "save_every": 3, "record_every": 2, "keep_checkpoints": 9},
        {"track_with": "tensorboard", "tolerate": "skip", "device": "cpu", "token_budget": 99, "attention": "eager"},
        {"reward_options": {"judge": {"model": "j", "url": "http://b/v1", "concurrency": 2}}},
    ],
)
def test_what_teaches_a_run_nothing_makes_no_method(free):
    judged = {"reward_options": {"judge": {"model": "j", "url": "http://a/v1"}}}
    one, other = LeafConfig(**judged), LeafConfig(**{**judged, **free})  # type: ignore[arg-type]
    assert named(one, other) == ["leaf", "leaf"]
    assert set(differences([one, other])) == set(free)


def test_leaf_and_grpo_have_one_colour_each_on_every_page():
    assert colours(["leaf", "grpo"]) == [0, 1]
    assert colours(["grpo", "leaf"]) == [1, 0]
    assert colours(["grpo"]) == [1]
    assert colours(["tempo", "grpo", "mine"]) == [2, 1, 3]
    assert colours(["leaf", "leaf", "sft", "grpo", "grpo"]) == [0, 2, 3, 1, 4]


def test_methods_whose_paths_end_alike_are_not_one(tmp_path):
    def named_by(key, *values):
        return named(*(LeafConfig(**{"model": "m", "task": "t", key: value}) for value in values))

    assert named_by("model", "/home/me/warm-a/merged", "/home/me/warm-b/merged", "/home/me/warm-a/merged") == [
        "model warm-a/merged",
        "model warm-b/merged",
        "model warm-a/merged",
    ]
    assert named_by("task", "a/x/my.jsonl", "b/x/my.jsonl") == ["task a/x/my.jsonl", "task b/x/my.jsonl"]
    assert named_by("rewards", ["bleu", "a/my.py:polite"], ["bleu", "b/my.py:polite"]) == [
        "rewards bleu a/my.py:polite",
        "rewards bleu b/my.py:polite",
    ]
    assert named_by("train_split", "train", "small") == ["train_split train", "train_split small"]
    assert named_by("credit_options", {"a": "b c"}, {"a": ["b", "c"]}) == [
        'credit_options {"a": "b c"}',
        'credit_options {"a": ["b", "c"]}',
    ]
    paths = [made(tmp_path / name, model=f"runs/{name}/merged") for name in ("warm-a", "warm-b")]
    section = curves_section(read_runs(paths))
    assert section.data["methods"] == ["model warm-a/merged", "model warm-b/merged"]
    assert panel(section, "Reward")["bands"] == []
    assert ["model", "warm-b/merged"] in section.data["settings"]["warm-b"]


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
    with pytest.raises(ConfigError, match=r"leaf-speech\[report\]"):
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


# -- in the browser ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def html(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    paths = [
        made(folder / f"leaf{EVIL}".replace("/", "") / f"s{seed}", seed=seed, offset=seed / 10) for seed in range(2)
    ]
    paths += [made(folder / f"grpo-{seed}", seed=seed, credit="grpo") for seed in range(2)]
    return write_report(paths, folder / "r.html").read_text()


def test_plots_are_drawn_and_follow_the_theme(opened, html):
    tab = opened(html, color_scheme="light")
    # Bleu, reward, divergence and the stages; what does not change is told in words.
    expect(tab.locator("#curves .plot svg.marks")).to_have_count(4)
    expect(tab.locator("#curves figure")).to_have_count(4)
    flat = "The same at every step of every run: validation truncated 0, gradient norm 1, tokens saved 0.75."
    assert flat in tab.locator("#curves").text_content()
    assert "from the lowest run to the highest" in tab.locator("#curves").text_content()
    colour = "getComputedStyle(document.querySelector('#curves .plot svg.marks text')).fill"
    light = tab.evaluate(colour)
    tab.locator("#theme").click()
    until(tab, f"{colour} !== {json.dumps(light)}")
    tab.locator("header nav a", has_text="Forks").click()
    tab.locator("#forks .plot svg.marks").first.wait_for()
    assert "100 % (51 % to 100 %)" in tab.locator("#forks tbody tr").first.text_content()


def test_plots_of_a_hidden_tab_are_drawn_when_it_is_shown_again(opened, html):
    """Theme and window size change while it is hidden, and a hidden container has no width to draw in."""
    tab = opened(html, color_scheme="light", viewport={"width": 1280, "height": 800})
    count = tab.locator("#curves figure").count()
    width = "[...document.querySelectorAll('#curves .plot svg.marks')].map(one => one.getBoundingClientRect().width)"
    wide = f"{width}.length === {count} && {width}.every(one => one > 100)"
    colour = "getComputedStyle(document.querySelector('#curves .plot svg.marks text')).fill"
    until(tab, wide)
    light = tab.evaluate(colour)
    tab.evaluate("location.hash = '#forks'")
    tab.locator("#forks .plot svg.marks").first.wait_for()
    tab.locator("#theme").click()
    tab.evaluate("location.hash = '#curves'")
    until(tab, f"{wide} && {colour} !== {json.dumps(light)}")
    tab.evaluate("location.hash = '#forks'")
    until(tab, "document.querySelector('#curves').hidden")
    tab.set_viewport_size({"width": 1000, "height": 800})
    tab.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    tab.evaluate("location.hash = '#curves'")
    until(tab, f"!document.querySelector('#curves').hidden && {wide}")


def test_the_table_sorts_by_mouse_and_keyboard(opened, html):
    tab = opened(html)
    head = tab.locator("#curves thead th", has_text="reward, last tenth")
    names = tab.locator("#curves .scroll tbody tr td:first-child")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert names.last.text_content() == "s1"
    tab.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert names.first.text_content() == "s1"


def test_curves_are_smoothed_and_single_runs_hidden(opened, html):
    tab = opened(html)
    lines = tab.locator("#curves figure", has_text="mean over a step's completions").locator(".mark-line path")
    expect(lines).to_have_count(6)  # four runs and two means
    tab.locator("#single").uncheck()
    expect(lines).to_have_count(2)
    bleu = tab.locator("#curves figure", has_text="Validation bleu").locator(".mark-line path")
    expect(bleu).to_have_count(2)
    before, scores = lines.first.get_attribute("d"), bleu.first.get_attribute("d")
    tab.locator("#smooth").select_option("5")
    expect(lines.first).not_to_have_attribute("d", before)
    expect(bleu.first).to_have_attribute("d", scores)  # validations are few, and stay as they are


def test_the_note_on_a_point_names_its_run(opened, html):
    tab = opened(html, viewport={"width": 1280, "height": 800})
    reward = tab.locator("#curves figure", has_text="mean over a step's completions").locator("svg.marks")
    tip = tab.locator("#vg-tooltip-element")
    reward.hover()
    expect(tip).to_contain_text("mean of ")
    assert "undefined" not in tip.text_content()
    assert "NaN" not in tip.text_content()


def test_settings_are_side_by_side_where_runs_differ(opened, html, tmp_path):
    tab = opened(html)
    tables = tab.locator("#curves .settings table")
    found = [row.locator("th, td").all_text_contents() for row in tables.first.locator("tr").all()]
    assert [row[1] for row in found] == ["credit", "leaf", "leaf", "grpo", "grpo"]  # a row for each run
    tab.locator("#curves summary").click()
    common = [row.locator("th, td").all_text_contents() for row in tables.last.locator("tr").all()]
    assert ["lora_r", "64"] in common
    assert not {"credit", "seed"} & {key for key, _ in common}
    paths = [made(tmp_path / "one"), made(tmp_path / "two", lora_r=8, save_every=7, credit="grpo")]
    tab = opened(write_report(paths, tmp_path / "r.html").read_text())
    rows = tab.locator("#curves .settings table").first.locator("tr").all()
    found = [row.locator("th, td").all_text_contents() for row in rows]  # fewer runs than settings: a column for each
    assert sorted(found) == [
        ["", "one", "two"],
        ["credit", "leaf", "grpo"],
        ["lora_r", "64", "8"],
        ["save_every", "50", "7"],
    ]


@pytest.mark.parametrize("width", [800, 1280])
def test_no_table_is_wider_than_the_page_however_much_the_runs_differ(opened, tmp_path, width):
    paths = []
    for number in range(8):
        task = f"a/rather/long/path/of/a/manifest/number-{number}/with_a_long_name_of_its_own.jsonl"
        many = {
            "learning_rate": 1e-5 * (number + 1),
            "lora_r": 8 + number,
            "temperature": 1 - number / 10,
            "task": task,
        }
        many |= {"credit_options": {"max_boundaries": number, "min_prefix": number + 1, "sqrt_count": number % 2 == 0}}
        many |= {"max_new_tokens": 40 + number, "kl_coef": number / 10, "lora_alpha": 10 + number, "clip": number / 10}
        paths.append(made(tmp_path / f"a-run-with-a-rather-long-name-{number}", **many))
    for path in paths:
        items = [{"id": f"{i}", "utterance": f"{i}", "prompt": "?", "reference": "one two three"} for i in range(3)]
        made_with = {"decoding": {"greedy": True}}
        meta = {"predictions": 1, "made_with": made_with, "lowercase": False, "metrics": {"bleu": {}, "wer": {}}}
        Predictions(path.name, items, [["one two four"] * 3], [None], [[False] * 3], meta=meta).write(
            path / "test.jsonl"
        )
    page = write_report(paths, tmp_path / "r.html", audio=False).read_text()
    tab = opened(page, viewport={"width": width, "height": 900})
    names = [path.name for path in paths]
    assert tab.locator("#curves .key").first.text_content() == names[0]
    assert names == [key.text_content() for key in tab.locator("#curves .key").all()[:8]]
    for section in ("curves", "forks", "evaluation"):
        tab.evaluate(f"location.hash = '#{section}'")
        tab.locator(f"#{section} .scroll").first.wait_for()
        for opened_table in tab.locator(f"#{section} summary").all():
            opened_table.click()
        for box in tab.locator(f"#{section} .scroll").all():
            assert box.evaluate("box => box.scrollWidth - box.clientWidth") <= 1, box.get_attribute("aria-label")


def test_a_rule_has_one_colour_whether_it_trained_or_not(opened, html):
    tab = opened(html)
    tab.evaluate("location.hash = '#forks'")
    bars = tab.locator("#forks figure", has_text="Credit by fifths").locator(".mark-rect path")
    figures = tab.locator("#forks figure", has_text="Credit by fifths")
    expect(figures).to_have_count(2)
    expect(figures.first.locator(".mark-rect path").first).to_be_visible()
    expect(figures.last.locator(".mark-rect path").first).to_be_visible()
    legends = [figure.locator(".role-legend-label text").all_text_contents() for figure in figures.all()]
    assert legends == [["leaf, as trained", "grpo"], ["leaf", "grpo, as trained"]]
    first, last = (figure.locator(".role-legend-symbol path").first.get_attribute("fill") for figure in figures.all())
    assert first == last
    assert bars.count() >= 4


def test_no_section_is_wider_than_a_phone(opened, html):
    tab = opened(html, viewport={"width": 390, "height": 844})
    for name in ("curves", "forks"):
        tab.evaluate(f"location.hash = '#{name}'")
        figures = tab.locator(f"#{name} figure")
        figures.first.wait_for()
        expect(tab.locator(f"#{name} .plot svg.marks")).to_have_count(figures.count())
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.title().startswith("leaf: ")
