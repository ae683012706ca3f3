"""What `leaf evaluate` takes from its recipe, and what its own options say in place of that."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from leaf.config import LeafConfig
from leaf.errors import ConfigError
from leaf.evaluation.predict import Decoding
from leaf.evaluation.registry import DEFAULT_METRICS, Scoring, is_plain

FIRST_SEED, PASSES = 42, 5


def decoding_of(config: LeafConfig, *, greedy: bool | None, passes: int | None) -> Decoding:
    """Decide how to decode: as the recipe validates, with several passes where it samples.

    Args:
        config: the recipe.
        greedy: of the command line; None where it does not say.
        passes: of the command line; it asks for sampling.

    Raises:
        ConfigError: both are given, and a greedy pass is one.
    """
    if greedy and passes is not None:
        raise ConfigError(f"--greedy is one pass, and --passes is {passes}. Leave one of them out.")
    if greedy is None:
        greedy = config.eval_greedy and passes is None
    return Decoding.of_recipe(config, greedy=greedy, seeds=range(FIRST_SEED, FIRST_SEED + (passes or PASSES)))


def rows_of(
    config: LeafConfig,
    split: str,
    items: int | None,
    overridden: set[str],
    say: Callable[[str], None],
    *,
    seed: int | None = None,
) -> list[dict[str, Any]]:
    """Load the rows of a split: `items` of them, or those of an `eval_items=` on the command line, or all.

    Some are the first ones, or drawn with a seed.

    The recipe's own `eval_items` keeps validation short while a model trains. What is taken in its place is said.
    """
    from leaf.data import load
    from leaf.data.rows import subset

    if items is None and "eval_items" in overridden:
        items = config.eval_items
    if seed is not None and items is None:
        raise ConfigError(f"--items-seed is {seed}, and without --items all rows are evaluated. Give both.")
    limit = None if seed is not None else items
    rows = load(config.task, split, limit=limit, columns=config.columns).to_list()
    rows = [rows[i] for i in subset(len(rows), items, seed)]
    if items is None and config.eval_items is not None and len(rows) > config.eval_items:
        say(
            f"all {len(rows)} rows of {split} are evaluated; the recipe's eval_items {config.eval_items} is for "
            f"validation in training (--items {config.eval_items} takes as many)"
        )
    return rows


def scoring_of(config: LeafConfig, metrics: Sequence[str] | None, *, lowercase: bool, paths: dict[str, str]) -> Scoring:
    """Decide how to score; the recipe's rewards are made only where a metric may be one of them."""
    names = DEFAULT_METRICS if metrics is None else tuple(metrics)
    rewards = None
    if not all(map(is_plain, names)):
        from leaf.rewards.total import rewards_from

        rewards = rewards_from(config)
    return Scoring(names, lowercase, paths, rewards=rewards)


def folder_of(recipe: Path, split: str, decoding: Decoding) -> Path:
    """Name the folder of the prediction files."""
    return Path("runs") / f"evaluation-{recipe.stem}-{split}{'-greedy' if decoding.greedy else ''}"
