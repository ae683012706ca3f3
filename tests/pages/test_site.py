"""The documentation builds without a broken link, reads without a network, and its reference is complete."""

import dataclasses
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
import zlib

import pytest
import typer
import yaml

import leaf
import leaf.credit
from leaf.commands.main import app
from leaf.config import STAGES
from leaf.credit import CREDIT_RULES
from tests.pages.shown import DOCS, NOTEBOOKS, PAGES, ROOT, text


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


def test_every_module_is_listed_on_the_page_of_the_architecture(site):
    shown = (site / "architecture.html").read_text(encoding="utf-8")
    source = ROOT / "src/leaf"
    for file in source.rglob("*.py"):
        assert file.name == "__init__.py" or f"<code>{file.relative_to(source)}</code>" in shown, file


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
                assert f"<code>{option}</code>" in shown or option.endswith(("help", "completion", "version")), option


def test_every_page_is_in_the_navigation():
    def pages(entries):
        for entry in entries:
            value = next(iter(entry.values())) if isinstance(entry, dict) else entry
            yield from pages(value) if isinstance(value, list) else [value]

    named = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    outside = ["changelog.md", "contributing.md", *(f"notebooks/{notebook.name}" for notebook in NOTEBOOKS)]
    assert sorted(named) == sorted([*(str(page.relative_to(DOCS)) for page in PAGES), *outside])


def test_links_lead_somewhere_in_the_repository_too():
    """The build follows links in the site; this follows them where a reader of the repository does."""
    for page in [*ROOT.glob("*.md"), *PAGES, *NOTEBOOKS]:
        for target in re.findall(r"\]\((?!\w+:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


# -- the reference -----------------------------------------------------------------------------------------------------
# Modules that users import from; those left out serve them from inside.
USED = (
    "leaf.config",
    "leaf.errors",
    "leaf.memory",
    "leaf.plugins",
    "leaf.credit.spans",
    "leaf.data",
    "leaf.data.audio",
    "leaf.data.leaks",
    "leaf.data.manifest",
    "leaf.data.rows",
    "leaf.model.budget",
    "leaf.model.checks",
    "leaf.model.families",
    "leaf.model.family",
    "leaf.model.footprint",
    "leaf.model.lora",
    "leaf.model.own_adapter",
    "leaf.model.policy",
    "leaf.model.projector",
    "leaf.model.sampling",
    "leaf.model.scoring",
    "leaf.rewards.functions",
    "leaf.rewards.judge",
    "leaf.rewards.judge_prompts",
    "leaf.rewards.total",
    "leaf.runs.directory",
    "leaf.engines.common",
    "leaf.evaluation.compare",
    "leaf.evaluation.evaluate",
    "leaf.evaluation.judge_file",
    "leaf.evaluation.metrics",
    "leaf.evaluation.predict",
    "leaf.evaluation.predictions",
    "leaf.evaluation.registry",
    "leaf.evaluation.systems",
    "leaf.train.align",
    "leaf.train.leaf_trainer",
    "leaf.train.learner",
    "leaf.train.records",
    "leaf.train.rollout",
    "leaf.train.sft",
    "leaf.train.trainer",
    "leaf.train.update",
    "leaf.report.live",
    "leaf.report.terminal",
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
