"""What the commands share: the recipe of a command line, its policy and trainer, and running it.

Everything slow is imported inside the functions, so that `leaf --help` answers at once.
"""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from leaf.commands.terminal import say
from leaf.config import AlignConfig, LeafConfig, RunConfig, SftConfig, load_recipe, overridden_keys
from leaf.errors import ConfigError
from leaf.progress import Busy

Recipe = Annotated[Path, typer.Argument(help="recipe file (YAML)")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="further recipes (.yaml) laid over the first, then key=value")
]
Resume = Annotated[bool, typer.Option("--resume", help="continue the recipe's run")]
C = TypeVar("C", bound=RunConfig)

_PACKAGE = Path(__file__).parents[1]  # whose recipes are everybody's
# What a script may pass in place of a recipe's values.
OF_A_SCRIPT = ("model", "task", "rewards", "credit", "lora_layers")


def read_recipe(
    path: Path,
    overrides: list[str] | None,
    stage: type[C] = RunConfig,
    *,
    needed: Collection[str] = OF_A_SCRIPT,
    resume: bool = False,
) -> C:
    """Read the recipe of a command line, and say what it is.

    Args:
        path, overrides: as given on the command line.
        stage: dataclass of the stage that the command is for.
        needed: keys that the command uses and that a run's recipe.yaml may lack, because a script passed them.
        resume: whether the recipe's run is to be continued; its output_dir is then where that run is.

    Raises:
        ConfigError: the recipe is wrong, of another stage, or lacks what is needed.
    """
    config = load_recipe(path, overrides)
    if not isinstance(config, stage):
        command = "train" if isinstance(config, LeafConfig) else config.stage
        raise ConfigError(
            f"{path} is a recipe of stage {config.stage}, and this command takes one of stage {stage.stage}. Train "
            f"with it by `leaf {command} {path}`; `leaf recipe {stage.stage}` writes a recipe of stage {stage.stage}."
        )
    say(f"{path}: stage {config.stage}, model {config.model}, task {config.task}")  # at once
    with Busy(say, "loading PyTorch and transformers", quiet=True):
        import leaf.train.recipe  # noqa: F401  (what all these commands need; it takes seconds)
    if path.name == "recipe.yaml":
        from leaf.runs.provenance import refuse_missing

        refuse_missing(path, needed, overridden_keys(overrides))
    return _at_its_run(config, path, overrides) if resume else config


def _at_its_run(config: C, recipe: Path, overrides: list[str] | None) -> C:
    """Find the run that a recipe is to continue, and say so where it is not in the output_dir below this folder.

    A recipe.yaml in a run directory means that run. Of another recipe, its output_dir may be below a folder above the
    recipe, because the run was begun from there. One on the command line is taken as it is.
    """
    from leaf.runs.directory import RunDirectory, is_empty, run_path

    path = run_path(config)
    if "output_dir" in overridden_keys(overrides):
        return config
    places: list[Path] = []
    if RunDirectory(recipe.parent).holds_run() and recipe.name == "recipe.yaml":
        places = [recipe.parent]
    elif is_empty(path) and not path.is_absolute() and not recipe.resolve().is_relative_to(_PACKAGE):
        places = [folder / path for folder in recipe.resolve().parents]
    found = next((place for place in places if RunDirectory(place).holds_run()), path)
    if found.resolve() == path.resolve():
        return config
    say(f"continuing the run in {found.absolute()}, not in {path} below this folder")
    return dataclasses.replace(config, output_dir=str(found.absolute()))  # the run's recipe.yaml notes it


def run_recipe(config: RunConfig, *, resume: bool = False) -> None:
    """Run a recipe of any stage with lines on the terminal."""
    from leaf.runs.directory import run_path
    from leaf.train.recipe import check_recipe, check_run

    check_recipe(config)
    check_run(config, resume=resume)
    if isinstance(config, LeafConfig):
        from leaf.commands.terminal import console
        from leaf.report import live

        trainer = make_trainer(config)
        live.train(trainer, console, resume=resume)
        if not trainer.accelerator.is_main_process:
            return
    else:
        _run_supervised(config, resume)
    path = run_path(config)
    say(f"the run is in {path}; look at it with `leaf report {path}`")


def _run_supervised(config: RunConfig, resume: bool) -> None:
    """Run a recipe of stage sft or align."""
    from leaf.runs.directory import RunDirectory
    from leaf.train.align import align
    from leaf.train.recipe import check_targets, load_rows
    from leaf.train.sft import sft

    rows = load_rows(config)
    check_targets(config, *rows)
    policy = load_policy(config)
    run = RunDirectory.begin(config, resume, say)
    try:
        if isinstance(config, SftConfig):
            sft(config, policy, *rows, run, say, resume=resume)
        elif isinstance(config, AlignConfig):
            align(config, policy, *rows, run, say, resume=resume)
    finally:
        run.release()


def load_policy(config: RunConfig, adapter: Path | None = None) -> Any:
    """Load the policy of a recipe with an adapter and the projector that goes with it, a fresh one for stage sft.

    The adapter may be a checkpoint of a run; the run's last/ then says what it is made of.
    """
    import torch

    from leaf.model import from_recipe
    from leaf.model.demo import resolve_model
    from leaf.model.device import pick_device
    from leaf.runs.kept import is_checkpoint, load_weights

    weights = adapter if adapter is not None and is_checkpoint(adapter) else None
    adapter = adapter if weights is None else weights.parents[1] / "last"
    torch.manual_seed(config.seed)  # of a fresh adapter's values; torch seeds itself differently in every process
    checkpoint = resolve_model(config.model, say=say)
    with Busy(say, f"loading the model {config.model}" + ("" if adapter is None else f" with {adapter}")):
        policy = from_recipe.load_policy(
            dataclasses.replace(config, projector=from_recipe.projector_of(config, adapter)),
            checkpoint,
            device=pick_device(config.device),
            lora=from_recipe.recipe_lora(config) if isinstance(config, SftConfig) else None,
            adapter=adapter,
            token_budget=config.token_budget or 4096,
            base_name=config.model,  # not the folder in which the embedded model was assembled
        )
    if weights is not None:
        load_weights(policy, weights)
    if isinstance(config, SftConfig):
        from_recipe.set_token_budget(policy, config, config.max_new_tokens)
    return policy


def make_trainer(config: LeafConfig) -> Any:
    """Make the trainer of a recipe of stage rl."""
    from leaf.train.trainer import RLTrainer

    return RLTrainer.from_recipe(config, say=say)
