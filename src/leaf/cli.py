"""The command `leaf`: train, sft, align, evaluate, demo, demo-model, data, recipe, families."""

import dataclasses
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from leaf import data_commands
from leaf.config import STAGES, AlignConfig, LeafConfig, RunConfig, SftConfig, load_recipe
from leaf.errors import ConfigError, LeafError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="RL post-training for speech-aware LLMs: LEAF, GRPO and relatives. Start with `leaf demo`.",
)
app.add_typer(data_commands.app, name="data")
console = Console(highlight=False, soft_wrap=True)

Recipe = Annotated[Path, typer.Argument(help="recipe file (YAML)")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, laid over the recipe")]


def main() -> None:
    """Run the command; a mistake of the user's is one sentence on standard error and exit code 2."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # its bars are about loading files; ours are lines about the run
    # peft 0.21 reads a property that transformers 5.23 has renamed; nothing a user could act on.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    try:
        app()
    except LeafError as error:
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"leaf: {error}", markup=False)
        sys.exit(2)


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run directory of the recipe")] = False,
) -> None:
    """Run a recipe of any stage (rl, sft, align), e.g. `leaf train recipes/demo.yaml seed=1 output_dir=runs/s1`."""
    run_recipe(load_recipe(recipe, overrides), resume=resume)


@app.command()
def sft(recipe: Recipe = Path("recipes/sft.yaml"), overrides: Overrides = None) -> None:
    """Run a supervised warm start, e.g. `leaf sft recipes/sft.yaml max_steps=50`."""
    run_recipe(_of_stage(recipe, overrides, SftConfig))


@app.command()
def align(recipe: Recipe = Path("recipes/align.yaml"), overrides: Overrides = None) -> None:
    """Train a projector with CTC against the language model's token embeddings."""
    run_recipe(_of_stage(recipe, overrides, AlignConfig))


@app.command()
def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    adapter: Annotated[
        Path | None, typer.Option(help="adapter directory, e.g. runs/demo/best; none: the model")
    ] = None,
    split: Annotated[str, typer.Option(help="split to evaluate")] = "test",
    items: Annotated[int | None, typer.Option(help="only the first N rows")] = None,
    greedy: Annotated[bool, typer.Option(help="one greedy pass instead of sampled passes")] = False,
    passes: Annotated[int, typer.Option(help="sampled passes, seeds 42, 43, ...")] = 5,
    metrics: Annotated[str, typer.Option(help="comma-separated metric names")] = "bleu,exact_match,chrf",
    lowercase: Annotated[bool, typer.Option(help="compare without case")] = False,
    out: Annotated[Path | None, typer.Option(help="write predictions here (JSON lines)")] = None,
) -> None:
    """Score a model or an adapter on a split with the model, task and decoding of a recipe."""
    from leaf.evaluate import evaluate as run_evaluation
    from leaf.tasks import load

    config = _of_stage(recipe, overrides, LeafConfig)
    policy = _policy(config, adapter=adapter)
    rows = load(config.task, split, limit=items, columns=config.columns)
    result = run_evaluation(
        policy,
        rows.to_list(),
        greedy=greedy,
        max_new_tokens=config.max_new_tokens,
        temperature=config.eval_temperature,
        top_p=config.eval_top_p,
        seeds=range(42, 42 + passes),
        metrics=tuple(metrics.split(",")),
        lowercase=lowercase,
        intervals=True,
    )
    table = Table("metric", "value", "95 % interval (first pass)", "over passes", "signature")
    for name, value in result.scores.items():
        low, high = result.intervals[name]
        least, most = result.spreads[name]
        spread = f"{least:.2f} to {most:.2f}"
        table.add_row(name, f"{value:.2f}", f"{low:.2f} to {high:.2f}", spread, result.signatures[name])
    console.print(table)
    console.print(f"{len(result.rows)} items, {len(result.passes)} passes, {result.truncated:.1%} truncated")
    if out is not None:
        result.write(out)


@app.command("demo-model")
def demo_model(
    stage: Annotated[str, typer.Option(help="base (no training) or demo (after align and sft)")] = "demo",
    cache: Annotated[Path, typer.Option(help="folder to build in")] = Path("build"),
) -> None:
    """Assemble the embedded model: Whisper tiny.en, projector, SmolLM2-135M."""
    from leaf.demo_model import resolve_model

    if stage not in ("base", "demo"):
        raise ConfigError(f"stage is {stage!r}; allowed are base and demo.")
    console.print(f"the {stage} model is in {resolve_model(stage, cache)}")


@app.command()
def demo(
    recipe: Annotated[Path, typer.Option(help="recipe to run")] = Path("recipes/demo.yaml"),
    overrides: Overrides = None,
    items: Annotated[int, typer.Option(help="test rows scored before and after")] = 300,
) -> None:
    """Post-train the embedded model with LEAF on spoken QA and show held-out scores before and after."""
    from leaf.evaluate import evaluate as run_evaluation
    from leaf.metrics import paired_bootstrap
    from leaf.speech.policy import Policy
    from leaf.tasks import load

    config = _of_stage(recipe, overrides, LeafConfig)
    began = time.perf_counter()
    trainer = _trainer(config)
    policy: Policy = trainer.policy
    rows = load(config.task, "test", limit=items).to_list()
    options: dict[str, Any] = {"greedy": True, "max_new_tokens": config.max_new_tokens, "intervals": True}
    trainer.start()
    console.print(f"scoring {len(rows)} held-out recordings before training")
    before = run_evaluation(policy, rows, **options)
    run = _train(trainer)
    after = run_evaluation(policy, rows, **options)
    before.write(run.path / "test_before.jsonl")
    after.write(run.path / "test_after.jsonl")
    groups = [row["utterance"] for row in rows]
    table = Table("metric", "before", "after", "gain (95 % interval)", "p", title="held-out test, greedy decoding")
    for name in before.scores:
        pair = (before.passes[0], after.passes[0], [row["reference"] for row in rows])
        gain, low, high, p = paired_bootstrap(*pair, name, groups=groups)
        cells = [
            f"{r.scores[name]:.2f} ({r.intervals[name][0]:.1f} to {r.intervals[name][1]:.1f})" for r in (before, after)
        ]
        table.add_row(name, *cells, f"{gain:+.2f} ({low:+.2f} to {high:+.2f})", f"{p:.3f}")
    console.print(table)
    console.print(
        f"{config.max_steps} steps of {config.prompts_per_rollout} x {config.num_completions} completions, "
        f"{len(rows)} test rows, {(time.perf_counter() - began) / 60:.1f} minutes. The run is in {run.path}"
    )


@app.command("recipe")
def recipe_keys(stage: Annotated[str, typer.Argument(help="rl, sft or align")] = "rl") -> None:
    """List every key of a recipe with its default."""
    if stage not in STAGES:
        raise ConfigError(f"The stage {stage!r} is unknown; allowed are {', '.join(STAGES)}.")
    table = Table("key", "default", "meaning")
    for field in dataclasses.fields(STAGES[stage]):
        value = field.default_factory() if callable(field.default_factory) else field.default
        table.add_row(field.name, str(value), field.metadata["help"])
    console.print(table)


@app.command("families")
def show_families() -> None:
    """List the speech model families that can be trained, and those that are refused with the reason."""
    from leaf.speech import families as known

    table = Table()
    for title in ("model type", "placeholder", "audio", "its own speech LoRA"):
        table.add_column(title, no_wrap=True)
    for name in known.families():
        family = known.family(name)
        own = "none" if family.adapter is None else "merged on loading"
        table.add_row(name, family.audio_token, family.audio_limit, own)
    console.print(table, markup=False)
    for name, reason in known.refused().items():
        console.print(f"{name}: not supported. {reason}", markup=False)


# -- running a recipe --------------------------------------------------------------------------------------------------
def run_recipe(config: RunConfig, *, resume: bool = False) -> None:
    """Run a recipe of any stage with lines on the terminal."""
    if isinstance(config, LeafConfig):
        _train(_trainer(config), resume=resume)
        console.print(f"the run is in {config.output_dir}")
        return
    if resume:
        raise ConfigError("Only runs of stage rl can be resumed; start this stage afresh in another output_dir.")
    from leaf.align import align as run_align
    from leaf.run import RunDirectory
    from leaf.sft import sft as run_sft

    policy = _policy(config)
    run = RunDirectory.create(config)
    rows = _rows(config)
    if isinstance(config, SftConfig):
        run_sft(config, policy, *rows, run, report=_say)
    elif isinstance(config, AlignConfig):
        run_align(config, policy, *rows, run, report=_say)
    console.print(f"the run is in {run.path}")


def _train(trainer: Any, *, resume: bool = False) -> Any:
    """Train with a progress bar and live figures on a terminal, plain lines elsewhere."""
    from leaf.trainer import step_line

    if not console.is_terminal:
        return trainer.train(resume_from_checkpoint=resume)
    columns = (
        TextColumn("step"),
        MofNCompleteColumn(),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("", total=trainer.args.max_steps, figures="")
        trainer.on_step = lambda record: progress.update(bar, completed=record["step"], figures=step_line(record))
        return trainer.train(resume_from_checkpoint=resume)


def _of_stage(recipe: Path, overrides: list[str] | None, wanted: type) -> Any:
    config = load_recipe(recipe, overrides)
    if not isinstance(config, wanted):
        raise ConfigError(f"{recipe} is of stage {config.stage}; this command needs a recipe of another stage.")
    return config


def _say(line: str) -> None:
    console.print(line, markup=False)


def _rows(config: RunConfig) -> tuple[Any, Any]:
    """Return training and validation rows; further tasks of an sft recipe are appended."""
    from datasets import concatenate_datasets

    from leaf.tasks import load

    names = [config.task, *(config.extra_tasks if isinstance(config, SftConfig) else [])]
    training = [load(name, config.train_split, limit=config.train_items, columns=config.columns) for name in names]
    validation = load(config.task, config.eval_split, columns=config.columns)
    return concatenate_datasets(training), validation


def _policy(config: RunConfig, adapter: Path | None = None) -> Any:
    """Load the policy of a recipe, with a fresh adapter for stage sft."""
    import peft

    from leaf.demo_model import resolve_model
    from leaf.plugins import load_plugins
    from leaf.speech.policy import Policy
    from leaf.training import pick_device

    load_plugins(config.plugins)
    lora = None
    if isinstance(config, SftConfig):
        lora = peft.LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=config.lora_layers,
        )
    policy = Policy.load(
        resolve_model(config.model),
        lora=lora,
        adapter=adapter,
        dtype=config.dtype,
        device=pick_device(config.device),
        gradient_checkpointing=config.gradient_checkpointing,
        trust_remote_code=config.trust_remote_code,
        attention=config.attention,
        token_budget=config.token_budget or 4096,
        max_prompt_tokens=config.max_prompt_tokens,
    )
    if config.projector is not None:
        policy.load_projector(config.projector)
    return policy


def _trainer(config: LeafConfig) -> Any:
    from leaf.demo_model import resolve_model
    from leaf.trainer import LeafTrainer

    rows = _rows(config)
    return LeafTrainer(resolve_model(config.model), None, config, *rows, report=_say)


if __name__ == "__main__":
    main()
