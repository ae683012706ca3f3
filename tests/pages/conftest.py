"""A folder in which the commands and the code of the pages run."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.helpers import tiny
from tests.helpers.project import save, write_manifest
from tests.pages.shown import ROOT, blocks


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The shipped recipes with a tiny model and manifest in place of theirs, and the files that pages speak of."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "recipes", "recipes")
    model, processor = tiny.tiny_model()
    save(model, processor, "path/or/hub-id")
    write_manifest(Path("my.jsonl"), count=3)
    Path("my_rewards.py").write_text(blocks("adding_a_reward.md", "python")[0])
    recipe = yaml.safe_load(Path("recipes/qa.yaml").read_text())
    recipe |= {"model": "path/or/hub-id", "task": "my.jsonl", "dtype": "float32", "max_steps": 2, "max_new_tokens": 4}
    recipe |= {"prompts_per_rollout": 2, "num_completions": 3, "rewards": ["chrf"]}
    Path("recipes/qa.yaml").write_text(yaml.safe_dump(recipe))
    for name, steps in {"demo": 10, "published/sft": 2}.items():
        shipped = Path(f"recipes/{name}.yaml")
        shipped.write_text(re.sub(r"max_steps: \d+", f"max_steps: {steps}", shipped.read_text()))
