"""The command `leaf demo`: train the embedded model, and score it on held-out recordings before and after."""

import shutil
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from leaf.commands.running import Overrides, make_trainer, read_recipe
from leaf.commands.terminal import console, say, show
from leaf.config import LeafConfig
from leaf.progress import Busy


def demo(
    recipe: Annotated[Path, typer.Option(help="recipe to run")] = Path("recipes/demo.yaml"),
    overrides: Overrides = None,
    items: Annotated[int, typer.Option(help="test rows scored before and after")] = 300,
    resume: Annotated[bool, typer.Option("--resume", help="continue a demo that was interrupted")] = False,
) -> None:
    """Train the embedded model with LEAF on spoken questions, and show held-out scores before and after."""
    began = time.perf_counter()
    config = read_recipe(recipe, overrides, LeafConfig, resume=resume)
    from leaf.data import load
    from leaf.evaluation.evaluate import evaluate
    from leaf.evaluation.predict import Decoding
    from leaf.evaluation.registry import Scoring
    from leaf.report import live
    from leaf.train.recipe import check_recipe, check_run

    check_recipe(config)
    check_run(config, resume=resume)
    rows = load(config.task, "test", limit=items, columns=config.columns).to_list()
    trainer = make_trainer(config)
    policy = trainer.policy
    how = Decoding(greedy=True, max_new_tokens=config.max_new_tokens), Scoring(intervals=True)
    trainer.start(resume)
    what = f"scoring {len(rows)} held-out recordings"
    # A resumed run has trained the adapter already.
    with policy.reference(), Busy(say, f"{what} before training", len(rows)) as busy:
        before = evaluate(policy, rows, *how, progress=busy.add)
    run = live.train(trainer, console)
    with Busy(say, f"{what} after training", len(rows)) as busy:
        after = evaluate(policy, rows, *how, progress=busy.add)
    for scored, name in ((before, "test_before"), (after, "test_after")):
        scored.predictions.meta["made_with"] |= {"task": Path(config.task).name, "split": "test"}
        scored.write(run.path / f"{name}.jsonl")
    show(_gains(before, after, [row["reference"] for row in rows]))
    say(
        f"{trainer.length.steps} steps of {config.prompts_per_rollout} x {config.num_completions} completions, "
        f"{len(rows)} test rows, {(time.perf_counter() - began) / 60:.1f} minutes. The run is in {run.path}; "
        f"look at it with `{'leaf' if shutil.which('leaf') else sys.argv[0]} report {run.path}`"
    )


def _gains(before: Any, after: Any, references: list[str]) -> Table:
    """Make the table of scores before and after training, with paired differences."""
    from leaf.evaluation.registry import paired_bootstrap
    from leaf.evaluation.table import DASH, between

    table = Table("metric", "before", "after", "gain (95 % interval)", "p", title="held-out test, greedy decoding")
    for name in before.scores:
        gain, low, high, p = paired_bootstrap(
            before.passes[0], after.passes[0], references, name, groups=before.predictions.groups
        )
        cells = [f"{one.scores[name]:.2f} ({between(one.intervals.get(name), '.1f')})" for one in (before, after)]
        table.add_row(name, *cells, f"{gain:+.2f} ({between((low, high), '+.2f')})", DASH if p is None else f"{p:.3f}")
    return table
