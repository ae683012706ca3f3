"""The recipes that benchmarks on the embedded model share."""

from collections.abc import Sequence

from benchmarks.records import ROOT
from leaf.config import LeafConfig, load_recipe


def qa_recipe(overrides: Sequence[str]) -> LeafConfig:
    """Load recipes/qa.yaml with some keys replaced."""
    return _recipe("qa", overrides)


def task_recipe(task: str, overrides: Sequence[str]) -> LeafConfig:
    """Load the recipe of a variant of the embedded task (qa, fr, it, asr) with some keys replaced."""
    if task == "asr":
        return _recipe("transcription", overrides)
    return _recipe("qa", [f"task=asterisk_{task}", *overrides])


def _recipe(name: str, overrides: Sequence[str]) -> LeafConfig:
    config = load_recipe(ROOT / f"recipes/{name}.yaml", list(overrides))
    assert isinstance(config, LeafConfig)
    return config
