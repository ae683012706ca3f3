"""The recipe that benchmarks on the embedded model share."""

from collections.abc import Sequence

from benchmarks.records import ROOT
from leaf.config import LeafConfig, load_recipe


def qa_recipe(overrides: Sequence[str]) -> LeafConfig:
    """Load recipes/qa.yaml with some keys replaced."""
    config = load_recipe(ROOT / "recipes/qa.yaml", list(overrides))
    assert isinstance(config, LeafConfig)
    return config
