"""The command `leaf forks`: how often the completions of a checkpoint share a prefix where LEAF would cut them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from leaf.commands.running import Overrides, Recipe, load_policy, read_recipe
from leaf.commands.terminal import say, show
from leaf.config import LeafConfig, overridden_keys
from leaf.errors import ConfigError


def forks(
    recipe: Recipe,
    overrides: Overrides = None,
    adapter: Annotated[list[str] | None, typer.Option(help="adapter DIR or NAME=DIR; may be repeated")] = None,
    run: Annotated[list[Path] | None, typer.Option(help="a run: every checkpoint that it keeps")] = None,
    with_base: Annotated[bool, typer.Option("--with-base", help="the bare model too; without others it alone")] = False,
    split: Annotated[str, typer.Option(help="split to sample from")] = "validation",
    items: Annotated[int, typer.Option(min=1, help="how many rows")] = 64,
    items_seed: Annotated[int | None, typer.Option(help="draw the rows with this seed; default the first ones")] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write; default runs/forks-RECIPE-SPLIT")] = None,
) -> None:
    """Measure forkability: sample groups as the recipe trains, and count boundaries at which a prefix is shared."""
    config = read_recipe(recipe, overrides, LeafConfig, needed=("model", "task", "rewards"))
    from leaf.commands.evaluating import rows_of
    from leaf.evaluation.forks import HEADERS, as_record, boundary_options, fork_statistics, table_of
    from leaf.evaluation.systems import name_systems
    from leaf.files import write_json
    from leaf.progress import Busy
    from leaf.rewards.total import rewards_from
    from leaf.train.recipe import check_recipe

    check_recipe(config)
    if config.rollout == "distinct":
        raise ConfigError(
            "rollout is distinct, and `leaf forks` samples independent completions. Set rollout=independent and a "
            "credit rule for it, such as credit=leaf."
        )
    systems = name_systems(config.model, adapter or [], with_base=with_base, runs=run or [])
    rows = rows_of(config, split, items, overridden_keys(overrides), say, seed=items_seed)
    rewards = rewards_from(config)
    rewards.check_rows(rows, split)
    folder = out or Path("runs") / f"forks-{recipe.stem}-{split}"
    how = boundary_options(config) | {
        key: getattr(config, key) for key in ("num_completions", "temperature", "top_p", "max_new_tokens", "seed")
    }
    records = {}
    for name, path in systems.items():
        policy = load_policy(config, path)
        with Busy(say, f"{name}: sampling {len(rows)} groups", len(rows)) as busy:
            found = fork_statistics(policy, rows, rewards, config, progress=busy.add)
        records[name] = as_record(found)
        about = {"system": name, "split": split, "items": len(rows), "items_seed": items_seed, **how}
        write_json(folder / f"{name}.json", about | records[name])
    table = Table(*HEADERS)
    for line in table_of(records):
        table.add_row(*line)
    show(table)
    say(
        "a fork fires where two or more completions share the prefix before a boundary, which the published statistics "
        f"call usable; it is usable where their rewards differ too. By position: {folder}/NAME.json"
    )
