"""The documentation builds without a broken link, reads without a network, and what it shows runs."""

import dataclasses
import importlib
import inspect
import json
import os
import pkgutil
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import soundfile
import torch
import typer
import yaml
from typer.testing import CliRunner

import leaf
import leaf.credit
from leaf import leaf_advantages
from leaf.commands.main import app
from leaf.config import STAGES, LeafConfig, load_recipe
from leaf.credit import CREDIT_RULES, PrefixTree, credit_rule
from leaf.data import TASKS, load
from leaf.data.audio import load_audio
from leaf.evaluation.metrics import METRICS
from leaf.evaluation.model_metrics import BUILDERS
from leaf.rewards.functions import REWARDS
from leaf.rewards.judge import KINDS
from leaf.rewards.total import Rewards
from leaf.train.trainer import LeafTrainer
from tests.helpers import tiny

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def text(page):
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", text(page), flags=re.S)


def tables(page):
    """Rows of every table of a page, as lists of cells."""
    lines = re.findall(r"^\|(.+)\|$", text(page), flags=re.M)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


# -- the site ----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as `make docs` builds it, strictly: a broken link or anchor, or a page without a place, is an error."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(target)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def test_the_site_needs_no_network(site):
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|link|img|iframe|source)\b[^>]*?\b(?:src|href)=\"([^\"]*)\"", html)
        assert not [url for url in fetched if re.match(r"(https?:)?//", url)], page.name
        assert "mermaid" not in re.findall(r'class="([^"]*)"', html)  # its script would come from elsewhere
    # Search in a folder: the index as a script, and what runs the worker, from the site itself.
    assert (site / "search/search_index.js").is_file()
    assert (site / "javascripts/iframe-worker.js").is_file()
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\([\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def test_the_keys_of_every_stage_are_listed_with_their_defaults(site):
    html = (site / "reference/recipe.html").read_text(encoding="utf-8")
    cells = re.sub(r"<[^>]+>", "", re.sub(r"</td>\s*<td>", " | ", html))
    for stage in STAGES.values():
        for field in dataclasses.fields(stage):
            assert re.search(rf"^{field.name} \| ", cells, flags=re.M), field.name
    assert "num_completions | 8 | completions per prompt (K)" in cells
    assert "keys:" not in cells


def test_every_command_is_listed_with_its_options(site):
    shown = (site / "reference/commands.html").read_text(encoding="utf-8")
    waiting = [typer.main.get_command(app)]
    while waiting:
        command = waiting.pop()
        for name, inner in getattr(command, "commands", {}).items():
            assert re.search(rf'<h2 id="leaf-[\w-]*{name}">', shown), name
            waiting.append(inner)
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert f"<code>{option}</code>" in shown or option.endswith(("help", "completion")), option


def test_every_page_stands_in_the_navigation():
    def pages(entries):
        for entry in entries:
            value = next(iter(entry.values())) if isinstance(entry, dict) else entry
            yield from pages(value) if isinstance(value, list) else [value]

    named = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


# -- the reference -----------------------------------------------------------------------------------------------------
# Modules that users import from; those left out serve them from inside.
USED = (
    "leaf.train.align",
    "leaf.model.checks",
    "leaf.evaluation.compare",
    "leaf.config",
    "leaf.credit.spans",
    "leaf.errors",
    "leaf.evaluation.evaluate",
    "leaf.rewards.judge",
    "leaf.rewards.judge_prompts",
    "leaf.memory",
    "leaf.evaluation.metrics",
    "leaf.plugins",
    "leaf.evaluation.predictions",
    "leaf.train.records",
    "leaf.rewards.total",
    "leaf.runs.directory",
    "leaf.train.sft",
    "leaf.data.audio",
    "leaf.model.families",
    "leaf.model.own_adapter",
    "leaf.model.policy",
    "leaf.model.sampling",
    "leaf.data",
    "leaf.data.manifest",
    "leaf.report.terminal",
    "leaf.train.trainer",
)


def public(module):
    """Public classes and functions that a module defines; its __all__ says which, where it has one."""
    for name in getattr(module, "__all__", vars(module)):
        value = vars(module)[name]
        here = getattr(value, "__module__", None) == module.__name__
        if not name.startswith("_") and here and (inspect.isclass(value) or inspect.isfunction(value)):
            yield f"{module.__name__}.{value.__qualname__}", value


@pytest.fixture(scope="module")
def documented(site):
    """The names in the site's inventory of the reference, Sphinx's objects.inv."""
    head, _, body = (site / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert head.startswith(b"# Sphinx inventory")
    return {line.split(" ")[0] for line in zlib.decompress(body).decode().splitlines()}


def test_every_public_name_has_a_docstring_and_stands_in_the_reference(documented):
    missing, mute = [], []
    for package in (leaf, leaf.credit):
        for name in package.__all__:
            value = getattr(package, name)
            if not (inspect.isclass(value) or inspect.isfunction(value)):
                assert f"`{name}`" in text("reference/credit.md")  # a mapping or a type has no docstring of its own
                continue
            here = {f"{package.__name__}.{name}", f"{value.__module__}.{value.__qualname__}"}
            missing += [] if here & documented else [sorted(here)]
            mute += [] if inspect.getdoc(value) else [name]
    for module in USED:
        for name, value in public(importlib.import_module(module)):
            missing += [] if name in documented else [name]
            mute += [] if inspect.getdoc(value) else [name]
    for name, rule in CREDIT_RULES.items():
        if rule.__module__ == "leaf.credit.rules":  # not those that a test registered
            missing += [] if f"leaf.credit.rules.{name}" in documented else [name]
    assert not missing, f"not in docs/reference: {missing}"
    assert not mute, f"without a docstring: {mute}"


def test_modules_of_the_reference_exist():
    known = {module.name for module in pkgutil.walk_packages(leaf.__path__, "leaf.")}
    assert set(USED) <= known


# -- what the pages show -----------------------------------------------------------------------------------------------
def commands():
    """Every `leaf ...` line of the pages' indented blocks, launched or not, with $P as the pages set it."""
    for page in PAGES:
        lines = page.read_text(encoding="utf-8").splitlines()
        for line in lines:
            found = re.match(r"    (?:(?:torchrun|accelerate launch) .*-m |srun )?(leaf .*)$", line)
            if found:
                yield page.name, found[1].replace("$P/", "recipes/published/")


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
        while isinstance(command, typer.core.TyperGroup) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        assert command is not root, f"{page}: no such command: {line}"
        known = {option for parameter in command.params for option in parameter.opts}
        for word in words:
            assert not word.startswith("--") or word in known, f"{page}: no such option: {line}"
        recipes = [word for word in words if word.startswith("recipes/")]
        if recipes:
            overrides = [word for word in words if re.match(r"\w+=", word)]
            load_recipe(ROOT / recipes[0], [*(str(ROOT / more) for more in recipes[1:]), *overrides])


# Those of other pages need the corpora or a published checkpoint, or are run by the tests of what they describe.
RUN = ("quickstart.md", "own_data.md", "adding_a_reward.md", "adding_a_credit_rule.md", "reading_the_report.md")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The shipped recipes with a tiny model and manifest in place of theirs, and the files that pages speak of."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", "recipes")
    model, processor = tiny.tiny_model()
    model.save_pretrained("path/or/hub-id")
    processor.save_pretrained("path/or/hub-id")
    lines = []
    for split in ("train", "validation", "test"):
        for i, row in enumerate(tiny.rows(3)):
            soundfile.write(f"{split}{i}.wav", load_audio(row["audio"]), 16000)
            kept = {key: row[key] for key in ("prompt", "reference")}
            lines.append(json.dumps({**kept, "audio": f"{split}{i}.wav", "split": split}))
    Path("my.jsonl").write_text("\n".join(lines))
    Path("my_rewards.py").write_text(blocks("adding_a_reward.md", "python")[0])
    recipe = yaml.safe_load(Path("recipes/qa.yaml").read_text())
    recipe |= {"model": "path/or/hub-id", "task": "my.jsonl", "dtype": "float32", "max_steps": 2, "max_new_tokens": 4}
    recipe |= {"prompts_per_rollout": 2, "num_completions": 3, "rewards": ["chrf"]}
    Path("recipes/qa.yaml").write_text(yaml.safe_dump(recipe))
    for name, steps in {"demo": 10, "published/sft": 2}.items():
        shipped = Path(f"recipes/{name}.yaml")
        shipped.write_text(re.sub(r"max_steps: \d+", f"max_steps: {steps}", shipped.read_text()))


def test_commands_run_in_the_order_of_the_pages(project):
    lines = {page: [line for name, line in commands() if name == page] for page in RUN}
    assert all(lines.values())
    for page, shown in lines.items():
        for line in shown:
            result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
            assert result.exit_code == 0, f"{page}: {line}\n{result.output}\n{result.exception!r}"


def test_scripts_that_pages_name_exist():
    for page in PAGES:
        if page.name == "results.md":  # it may name a script that a better one has replaced since
            continue
        for name in re.findall(r"\b(?:examples|benchmarks|recipes|tests|tools)/[\w./-]+\.\w+", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_recipe_keys_that_pages_show_are_keys(tmp_path):
    shown = [block for page in PAGES for block in blocks(page.relative_to(DOCS), "yaml")]
    assert len(shown) > 4
    for block in shown:
        (tmp_path / "recipe.yaml").write_text(block.replace("extends: ../recipes", f"extends: {ROOT}/recipes"))
        config = load_recipe(tmp_path / "recipe.yaml")
        if isinstance(config, LeafConfig) and config.credit in CREDIT_RULES:
            credit_rule(config.credit, **config.credit_options)  # refuses options that the rule does not take
    keys = set(LeafConfig.__dataclass_fields__)
    for page in ("choosing_settings.md", "reproducing.md"):
        for cell in (cell for row in tables(page) for cell in row):
            for key, value in re.findall(r"`(\w+): ([^`]*)`", cell):
                assert key in keys, f"{page}: {key}"
                assert yaml.safe_load(value) is not None or value == "null"


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


def test_what_is_called_measured_stands_in_the_results():
    results, found = text("results.md"), 0
    page = text("choosing_settings.md").partition("## Sampling")[2]
    for claim in re.findall(r"(?s)\*[Mm]easured\*(.*?)(?=\*Rule|\*[Mm]easured|\n\n|\n\||$)", page):
        for number in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-\d)?(?![\w]|\.\d)", claim):
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?![\d]|\.\d)", results), f"{number} in: {claim}"
            found += 1
    assert found > 15


def test_the_evaluation_of_the_protocol_names_metrics_and_kinds_that_exist():
    named = re.search(r"`--metrics ([\w,]+)`", text("reproducing.md"))
    assert named
    assert set(named[1].split(",")) <= set(METRICS) | set(BUILDERS)
    assert set(KINDS) <= set(re.findall(r"direct|rubric|pairwise", text("reproducing.md")))


def test_the_worked_example_is_right_in_text_code_and_output(capsys):
    names = {}
    exec(blocks("method.md", "python")[0], names)
    assert capsys.readouterr().out.strip() == blocks("method.md", "text")[0].strip()
    advantages, rewards = names["leaf"], names["rewards"]
    assert torch.equal(names["boundaries"], torch.tensor([1, 3]))
    # The group as the page prints it, line by line.
    printed = re.findall(r"^    (y\d)   (.*?)\s+r = ([\d.]+)$", text("method.md"), flags=re.M)
    assert [float(reward) for _, _, reward in printed] == pytest.approx(rewards.tolist())
    vocabulary = {"press": 0, "dial": 1, "one": 2, "two": 3, "to": 4, "leave": 5, "exit": 6, "⏎": 7}
    for k, (_, line, _) in enumerate(printed):
        pairs = re.findall(r"(\S+) +([\d.]+)", line)
        assert [vocabulary[word] for word, _ in pairs] == names["tokens"][k, : len(pairs)].tolist()
        assert [float(nats) for _, nats in pairs] == pytest.approx(names["surprisal"][k, : len(pairs)].tolist())
    # The table: every sum as it stands, credit by the formula, the z-score from the nine spans, and what leaf gives.
    rows = [row for row in tables("method.md") if len(row) == 6 and row[1].startswith("y")]
    assert len(rows) == 6

    def number(cell):
        said, result = cell.replace("−", "-").replace("√3", "3**0.5").replace("√2", "2**0.5").rsplit("=", 1)
        assert eval(said) == pytest.approx(float(result), abs=6e-5), cell
        return eval(said)

    credits, spans = [], []
    for span, completions, ga, la, credit, advantage in rows:
        count = len(completions.split(","))
        value = (number(ga) + number(la)) / (count**0.5 if "√" in credit else 1.0)
        said = number(credit) if "=" in credit else float(credit.replace("−", "-"))
        assert said == pytest.approx(value, abs=1e-9), span
        credits += [value] * count
        spans.append((span.split(), completions.split(", "), float(advantage.replace("−", "-"))))
    mean = sum(credits) / len(credits)
    deviation = (sum((c - mean) ** 2 for c in credits) / (len(credits) - 1)) ** 0.5
    assert (round(mean, 4), round(deviation, 4), len(credits)) == (0.0393, 0.4508, 9)
    shown = text("method.md")
    assert "the mean 0.0393" in shown
    assert "= 0.4508." in shown
    reached = [0] * 4
    for (words, members, said), value in zip(spans, dict.fromkeys(credits), strict=True):
        assert said == pytest.approx((value - mean) / deviation, abs=6e-4)
        for member in members:
            k = int(member[1]) - 1
            where = slice(reached[k], reached[k] + len(words))
            assert names["tokens"][k, where].tolist() == [vocabulary[word] for word in words]
            assert advantages[k, where].tolist() == pytest.approx([said] * len(words), abs=6e-4)
            reached[k] += len(words)
    assert reached == names["lengths"].tolist()
    for said in ("1.306", "0.261", "−0.783"):
        assert said in shown
        assert float(said.replace("−", "-")) in names["grpo"].double().round(decimals=3).tolist()[0] + [
            round(float(value), 3) for value in names["grpo"][:, 0]
        ]


def test_without_boundaries_leaf_is_grpo_without_a_floor():
    """As the method page says of B = 0."""
    tokens, lengths = torch.tensor([[1, 2], [1, 3], [4, 5]]), torch.tensor([2, 2, 2])
    rewards = torch.tensor([0.5, 0.1, 0.3], dtype=torch.float64)
    ours = leaf_advantages(tokens, lengths, torch.rand(3, 2).double(), rewards, max_boundaries=0)
    theirs = (rewards - rewards.mean()) / rewards.std()
    assert torch.allclose(ours, theirs[:, None].expand(3, 2))


def test_the_tree_on_the_method_page_is_what_is_drawn():
    from leaf.report.terminal import group_view
    from tests.report.test_terminal import REWARDS, SURPRISAL, WORDS, record, shown, tree_of

    drawn = tree_of(shown(group_view(record(WORDS, REWARDS, SURPRISAL), LeafConfig(), "leaf")))
    assert blocks("method.md", "text")[1].splitlines() == drawn


def test_the_credit_rule_of_its_page_runs_by_name_and_keeps_the_guarantees(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(blocks("adding_a_credit_rule.md", "python")[0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(blocks("adding_a_credit_rule.md", "yaml")[0])
    config = load_recipe("recipe.yaml")
    try:
        importlib.import_module("leaf.plugins").load_plugins(config.plugins)
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
    assert set(REWARDS) | {"judge"} <= set(re.findall(r"`(\w+)`", listed))


def test_the_reward_of_its_page_runs_by_path(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(blocks("adding_a_reward.md", "python")[0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(blocks("adding_a_reward.md", "yaml")[0])
    config = load_recipe("recipe.yaml")
    result = Rewards(config.rewards[1:], weights=config.reward_weights[1:])(  # type: ignore[index]
        completions=["One moment, please.", "No.", "Please"], reference=["a", "b", ""], prompts=["x"] * 3
    )
    assert result.parts["polite"][:2].tolist() == [1.0, 0.0]
    assert result.totals[:2].tolist() == pytest.approx([0.2, 0.0])
    assert str(result.totals[2]) == "nan"


def test_the_task_of_its_page_is_loaded_by_name_and_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation", "test"):
        (tmp_path / "corpora/dictations" / split).mkdir(parents=True)
        soundfile.write(f"corpora/dictations/{split}/{split}1.wav", [0.1, -0.1] * 800, 16000)
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
        soundfile.write(line["audio"], [0.1, -0.1] * 800, 16000)
    (tmp_path / "my.jsonl").write_text("\n".join(map(json.dumps, lines)))
    names = {}
    exec(blocks("own_data.md", "python")[0], names)
    assert names["train"][0]["reference"] == "Press one."
    assert names["validation"][0]["reference"] == "Press the star key."


def test_the_python_of_the_quick_start_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, processor = tiny.tiny_model()
    model.save_pretrained("model")
    processor.save_pretrained("model")
    small = {"max_steps": 1, "num_completions": 2, "max_new_tokens": 3, "prompts_per_rollout": 2, "device": "cpu"}
    code = blocks("quickstart.md", "python")[0].replace("path/or/hub-id", "model")
    shortened = code.replace("LeafConfig(", "LeafConfig(**small, ")
    assert shortened != code
    exec(shortened, {"rows": tiny.rows(3), "small": small})
    assert (tmp_path / "runs/polite/last/adapter_model.safetensors").is_file()


def test_the_table_of_figures_is_the_log(tmp_path):
    """Every field that a run logs has a row, and every row is logged, in the order of the page within reason."""
    told = [row[0].strip("`") for row in tables("reading_the_report.md") if re.fullmatch(r"`\w+(/\w+)?`", row[0])]
    model, processor = tiny.tiny_model()
    config = LeafConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=1,
        num_completions=2,
        prompts_per_rollout=2,
        max_new_tokens=3,
        completions_per_update=2,
        eval_every=1,
        eval_items=1,
        device="cpu",
    )
    rows = tiny.rows(2)
    run = LeafTrainer(model, ["chrf"], config, rows, rows, processing_class=processor, report=lambda line: None).train()
    logged = next(iter(run.lines("metrics.jsonl")))
    assert sorted(told) == sorted(logged), set(told) ^ set(logged)
    validation = next(iter(run.lines("validation.jsonl")))
    ends = [f"{name}/{end}" for name in ("bleu", "chrf", "exact_match") for end in ("high", "low")]
    assert sorted(validation) == sorted(["bleu", "chrf", "exact_match", "step", "truncated", *ends])
    page = text("reading_the_report.md")
    for entry in run.path.iterdir():
        assert entry.name.startswith(".") or f"`{entry.name}" in page, entry.name
