"""A folder in which the commands and the code of the pages run."""

import re
import shutil
from pathlib import Path

import pytest
import soundfile
import yaml

from leaf.files import read_rows, write_rows
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
    as_people_record(Path("my.jsonl"))
    Path("my_rewards.py").write_text(blocks("adding_a_reward.md", "python")[0])
    recipe = yaml.safe_load(Path("recipes/qa.yaml").read_text())
    recipe |= {"model": "path/or/hub-id", "task": "my.jsonl", "dtype": "float32", "max_steps": 2, "max_new_tokens": 4}
    recipe |= {"prompts_per_rollout": 2, "num_completions": 3, "rewards": ["chrf"]}
    Path("recipes/qa.yaml").write_text(yaml.safe_dump(recipe))
    for name, steps in {"demo": 10, "published/sft": 2}.items():
        shipped = Path(f"recipes/{name}.yaml")
        shipped.write_text(re.sub(r"max_steps: \d+", f"max_steps: {steps}", shipped.read_text()))


def as_people_record(manifest):
    """Put the recordings of a manifest into other formats, rates and channels, under names with spaces and Japanese."""
    rows = read_rows(manifest)
    for number, row in enumerate(rows):
        samples, rate = soundfile.read(row["audio"])
        name = f"calls/{('call', '日本')[number % 2]} {number}.{('wav', 'flac', 'mp3', 'ogg')[number % 4]}"
        Path("calls").mkdir(exist_ok=True)
        samples, rate = samples.repeat(3), 3 * rate  # 48 kHz
        soundfile.write(name, samples if number % 3 else samples[:, None].repeat(2, axis=1), rate)
        row["audio"] = name
    write_rows(manifest, rows)
