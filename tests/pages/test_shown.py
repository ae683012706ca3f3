"""What the pages show runs: commands, recipes and code."""

import importlib
import json
import re
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import typer
import yaml
from typer.core import TyperGroup
from typer.testing import CliRunner

from leaf import LeafTrainer, leaf_advantages
from leaf.commands.main import app
from leaf.config import LeafConfig, load_recipe
from leaf.credit import BATCH_RULES, CREDIT_RULES, SET_RULES, SURROGATES, PrefixTree, credit_rule
from leaf.credit.correction import Correction, mismatch
from leaf.data import TASKS, load
from leaf.evaluation.lengths import LENGTHS
from leaf.evaluation.metrics import METRICS
from leaf.evaluation.model_metrics import BUILDERS
from leaf.rewards.finding import MADE
from leaf.rewards.functions import REWARDS
from leaf.rewards.judge import KINDS
from leaf.rewards.total import Rewards
from tests.helpers import tiny
from tests.helpers.project import save, write_manifest
from tests.pages.shown import DOCS, PAGES, ROOT, blocks, commands, tables, text
from tests.pages.worked_example import worked_example


def test_launchers_take_what_the_pages_and_the_job_script_give_them():
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    parsers = {"torchrun": get_args_parser(), "accelerate launch": launch_command_parser()}
    files = [*PAGES, ROOT / "recipes/published/slurm.sh", *(ROOT / "recipes/accelerate").glob("*.yaml")]
    found = set()
    for file in files:
        for launcher, rest in re.findall(r"(torchrun|accelerate launch) (-.*-m leaf)\b", file.read_text("utf-8")):
            asked = parsers[launcher].parse_args(shlex.split(rest.replace('"$gpus"', "2")))
            for signal_name in getattr(asked, "signals_to_handle", "SIGTERM").split(","):
                assert hasattr(signal, signal_name), file
            given = getattr(asked, "config_file", None)
            assert given is None or (ROOT / given).is_file(), given
            found.add(f"{launcher} {file.suffix}")
    assert found >= {"torchrun .md", "torchrun .sh", "accelerate launch .md", "accelerate launch .yaml"}


def test_commands_name_what_there_is():
    root = typer.main.get_command(app)
    shown = list(commands())
    assert len(shown) > 15
    for page, line in shown:
        words = shlex.split(line, comments=True)[1:]
        command = root
        while isinstance(command, TyperGroup) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert command is not root, f"{page}: no such command: {line}"
        known = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            assert not word.startswith("--") or word in known, f"{page}: no such option: {line}"
        recipes = [word for word in words if word.startswith("recipes/")]
        if recipes:
            overrides = [word for word in words if re.match(r"\w+=", word)]
            load_recipe(ROOT / recipes[0], [*(str(ROOT / more) for more in recipes[1:]), *overrides])


# Commands of other pages need the corpora or a published checkpoint, or the tests of what they describe run them.
RUN = (
    "README.md",
    "quickstart.md",
    "own_data.md",
    "adding_a_reward.md",
    "adding_a_credit_rule.md",
    "reading_the_report.md",
)


def test_commands_run_in_the_order_of_the_pages(project):
    shown = {page: [line for name, line in commands() if name == page] for page in RUN}
    assert all(shown.values())
    done = []
    for page, lines in shown.items():
        for line in lines:
            words = shlex.split(line, comments=True)[1:]
            if words in done:  # README and a page show the same command
                continue
            done.append(words)
            words, _, written = partition(words, ">")
            result = CliRunner().invoke(app, words)
            assert result.exit_code == 0, f"{page}: {line}\n{result.output}\n{result.exception!r}"
            if written:
                Path(*written).write_text(filled_in(result.stdout))


def partition(words, at):
    """Split a list before and behind a word, as str.partition does."""
    place = words.index(at) if at in words else len(words)
    return words[:place], words[place : place + 1], words[place + 1 :]


def filled_in(recipe):
    """Fill in the starting recipe as the page asks for, and make it short enough for a test."""
    small = {"max_steps": 2, "max_new_tokens": 4, "prompts_per_rollout": 2, "num_completions": 3, "dtype": "float32"}
    values = {"model": "path/or/hub-id", "task": "my.jsonl", **small}
    for key, value in values.items():
        recipe, count = re.subn(rf"^#?{key}:.*$", f"{key}: {value}", recipe, flags=re.M)
        assert count == 1, key
    return recipe


def test_files_that_pages_name_exist():
    """Scripts, tests and modules; a notebook may name what a better script has replaced since."""
    for page in [*ROOT.glob("*.md"), *PAGES]:
        if page.name == "CHANGELOG.md":
            continue
        shown = page.read_text(encoding="utf-8")
        for name in re.findall(r"\b(?:src|examples|benchmarks|recipes|tests|tools)/[\w./-]+(?![\w*])", shown):
            assert (ROOT / name.rstrip(".")).exists(), f"{page.name} names {name}"
    for name in re.findall(r"\b\w+/\w+\.py", text("architecture.md")):
        assert (ROOT / name).exists() or (ROOT / "src/leaf" / name).exists(), f"architecture.md names {name}"


def test_the_reading_order_is_that_of_the_package():
    import leaf

    assert leaf.__doc__
    told = re.findall(r"^    (\S+\.py) ", leaf.__doc__, flags=re.M)
    assert told == re.findall(r"^\d+\. `(\S+\.py)`: ", text("architecture.md"), flags=re.M)


def test_recipe_keys_that_pages_show_are_keys(tmp_path):
    shown = [block for page in PAGES for block in blocks(page.relative_to(DOCS).as_posix(), "yaml")]
    assert len(shown) > 4
    for block in shown:
        (tmp_path / "recipe.yaml").write_text(block)
        config = load_recipe(tmp_path / "recipe.yaml")
        if isinstance(config, LeafConfig) and config.credit in CREDIT_RULES:
            credit_rule(config.credit, **config.credit_options)  # refuses options that the rule does not take
    keys = set(LeafConfig.__dataclass_fields__)
    for page in ("choosing_settings.md", "reproducing.md"):
        for cell in (cell for row in tables(page) for cell in row):
            for key, value in re.findall(r"`(\w+): ([^`]*)`", cell):
                assert key in keys, f"{page}: {key}"
                assert yaml.safe_load(value) is not None or value == "null"


def test_every_rule_and_loss_has_a_line_on_how_to_choose():
    named = {name for row in tables("choosing_credit.md") for name in re.findall(r"`(\w+)`", row[0])}
    assert {*CREDIT_RULES, *BATCH_RULES, *SET_RULES, *SURROGATES} <= named


def test_the_protocol_page_says_what_the_recipes_say():
    recipes = [ROOT / "recipes/published" / name for name in ("models/granite-3.3-2b.yaml", "tasks/librisqa.yaml")]
    config = load_recipe(ROOT / "recipes/published/leaf.yaml", list(map(str, recipes)))
    checked = 0
    for row in tables("reproducing.md"):
        for key, value in re.findall(r"`(\w+): ([^`]*)`", row[-1]):
            if key in ("lora_layers", "epochs"):  # shown short; an example
                continue
            wanted = yaml.safe_load(value)
            wanted = pytest.approx(float(wanted)) if key == "learning_rate" else wanted
            assert getattr(config, key) == wanted, key
            checked += 1
    assert checked > 20


def test_the_evaluation_of_the_protocol_names_metrics_and_kinds_that_exist():
    lists = re.findall(r"(?:--metrics |METRICS=)([\w,:=]+)", text("reproducing.md"))
    named = {one.partition(":")[0] for given in lists for one in given.split(",")} - {"none"}
    assert len(named) > 9
    assert named <= {*METRICS, *BUILDERS, *LENGTHS}
    assert set(KINDS) <= set(re.findall(r"direct|rubric|pairwise", text("reproducing.md")))


def test_the_worked_example_of_the_method_page_is_what_leaf_computes(capsys):
    names: dict = {}
    exec(blocks("method.md", "python")[0], names)
    assert capsys.readouterr().out.strip() == blocks("method.md", "text")[0].strip()
    assert names["boundaries"].tolist() == [1, 3]
    for line in worked_example():
        assert line in text("method.md")


def test_without_boundaries_leaf_is_grpo_without_a_floor():
    """As the method page says of B = 0."""
    tokens, lengths = torch.tensor([[1, 2], [1, 3], [4, 5]]), torch.tensor([2, 2, 2])
    rewards = torch.tensor([0.5, 0.1, 0.3], dtype=torch.float64)
    ours = leaf_advantages(tokens, lengths, torch.rand(3, 2).double(), rewards, max_boundaries=0)
    theirs = (rewards - rewards.mean()) / rewards.std()
    assert torch.allclose(ours, theirs[:, None].expand(3, 2))


def test_the_tree_on_the_method_page_is_what_is_drawn():
    from leaf.report.terminal import group_view
    from tests.helpers.recorded import REWARDS, SURPRISAL, WORDS, record, shown, tree_of

    drawn = tree_of(shown(group_view(record(WORDS, REWARDS, SURPRISAL), LeafConfig(), "leaf")))
    assert blocks("method.md", "text")[1].splitlines() == drawn


def test_the_credit_rule_of_its_page_runs_by_name_and_keeps_the_guarantees(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(blocks("adding_a_credit_rule.md", "python")[0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(blocks("adding_a_credit_rule.md", "yaml")[0])
    config = load_recipe("recipe.yaml")
    try:
        importlib.import_module("leaf.plugins").load_plugins(config.plugins)
        assert isinstance(config, LeafConfig)
        rule = credit_rule(config.credit, **config.credit_options)
        tree = PrefixTree.build(torch.tensor([[1, 2, 3], [1, 2, 0], [4, 0, 0]]), torch.tensor([3, 2, 1]))
        credit = rule(tree, torch.tensor([1.0, 0.0, torch.nan]))
        half = 0.5 ** (1 / 5)
        assert credit[0].tolist() == pytest.approx([0.5, 0.5 * half, 0.5 * half**2])
        assert credit[1].tolist() == pytest.approx([-0.5, -0.5 * half, 0.0])
        assert credit[2].tolist() == [0.0, 0.0, 0.0]
    finally:
        CREDIT_RULES.pop("decayed", None)


def test_the_built_in_rewards_are_those_of_the_page():
    listed = text("adding_a_reward.md").partition("## Built in")[2]
    assert {*REWARDS, *MADE} <= set(re.findall(r"`(\w+)`", listed))


def test_the_reward_of_its_page_runs_by_path(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(blocks("adding_a_reward.md", "python")[0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(blocks("adding_a_reward.md", "yaml")[0])
    config = load_recipe("recipe.yaml")
    result = Rewards(config.rewards[1:], weights=config.reward_weights[1:])(  # type: ignore[index]
        completions=["One moment, please.", "No.", "Please"],
        reference=["one hour, please.", "b", ""],
        prompts=["x"] * 3,
    )
    assert result.parts["words_found"][:2].tolist() == pytest.approx([2 / 3, 0.0])
    assert result.totals[:2].tolist() == pytest.approx([0.2 * 2 / 3, 0.0])
    assert str(result.totals[2]) == "nan"


def test_the_task_of_its_page_is_loaded_by_name_and_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, level in {"train": 0.1, "validation": 0.2, "test": 0.3}.items():
        (tmp_path / "corpora/dictations" / split).mkdir(parents=True)
        soundfile.write(f"corpora/dictations/{split}/{split}1.wav", np.resize([level, -level], 1600), 16000)
        (tmp_path / f"corpora/dictations/{split}/{split}1.txt").write_text("Dear Sir,\n")
    (tmp_path / "my_tasks.py").write_text(blocks("adding_a_task.md", "python")[0])
    (tmp_path / "recipe.yaml").write_text(blocks("adding_a_task.md", "yaml")[0])
    config = load_recipe("recipe.yaml")
    try:
        importlib.import_module("leaf.plugins").load_plugins(config.plugins)
        row = load(config.task, "validation")[0]
        assert (row["reference"], row["audio"]) == ("Dear Sir,", ["corpora/dictations/validation/validation1.wav"])
        exec(blocks("adding_a_task.md", "python")[1], {})
    finally:
        TASKS.pop("dictation", None)


def test_the_manifest_and_the_python_of_the_data_page_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [json.loads(line) for line in blocks("own_data.md", "json")[0].splitlines()]
    (tmp_path / "calls").mkdir()
    for line in lines:
        soundfile.write(line["audio"], np.resize([0.1, -0.1], 1600), 16000)
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, lines)))
    names = {}
    exec(blocks("own_data.md", "python")[0], names)
    assert names["train"][0]["reference"] == "Press one."
    assert names["validation"][0]["reference"] == "Press the star key."


def test_the_python_of_the_quick_start_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, processor = tiny.tiny_model()
    save(model, processor, "model")
    small = {"max_steps": 1, "num_completions": 2, "max_new_tokens": 3, "prompts_per_rollout": 2, "device": "cpu"}
    code = blocks("quickstart.md", "python")[0].replace("path/or/hub-id", "model")
    shortened = code.replace("LeafConfig(", "LeafConfig(**small, ")
    assert shortened != code
    write_manifest(Path("my.jsonl"), count=3)
    exec(shortened, {"small": small})
    assert (tmp_path / "runs/words/last/adapter_model.safetensors").is_file()


def test_the_table_of_figures_is_the_log(tmp_path):
    """Every field that a run logs has a row, and every row is logged, in the order of the page within reason."""
    told = [row[0].strip("`") for row in tables("metrics.md") if re.fullmatch(r"`\w+(/\w+)*`", row[0])]
    supervised = told[told.index("step", 1) :]  # the table of sft and align comes behind that of rl
    assert supervised == list(
        json.loads((ROOT / "tests/runs/version_0_1/sft/metrics.jsonl").read_text().split("\n")[0])
    )
    told = told[: -len(supervised)]
    model, processor = tiny.tiny_model()
    config = LeafConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        num_completions=2,
        prompts_per_rollout=2,
        max_new_tokens=3,
        completions_per_update=2,
        eval_every=1,
        eval_items=2,
        device="cpu",
    )
    rows = tiny.rows(2)
    run = LeafTrainer(model, ["chrf"], config, rows, rows, processing_class=processor, say=lambda line: None).train()
    logged = next(iter(run.lines("metrics.jsonl")))
    # A row of the table is for every reward function, and one for what they give to `log_metric`.
    logged = {key.replace("rewards/chrf/", "rewards/NAME/") for key in logged} | {"logged/NAME"}
    logged = {*logged, "set_mass"}  # of distinct rollouts only; tests/train/test_distinct_rollouts.py sees it logged
    logged |= {"groups_drawn", "reward_drawn"}  # where groups are chosen only; tests/train/test_choosing.py sees them
    logged |= mismatch([], [], [], Correction())[1].record().keys()  # of a sampler elsewhere only
    logged |= {f"sampling/engine_logp_difference/{which}" for which in ("mean", "max")}
    assert sorted(told) == sorted(logged), set(told) ^ set(logged)
    validation = next(iter(run.lines("validation.jsonl")))
    measured = ["bleu", "chrf", "exact_match", "reward", "rewards/chrf/mean"]
    ends = [f"{name}/{end}" for name in measured for end in ("high", "low")]
    assert sorted(validation) == sorted([*measured, "step", "truncated", "length_mean", *ends])
    page = text("metrics.md")
    for entry in run.path.iterdir():
        assert entry.name.startswith(".") or f"`{entry.name}" in page, entry.name
