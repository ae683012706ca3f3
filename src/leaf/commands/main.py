"""The command `leaf`, one function per subcommand. Each imports what it needs, so that `leaf --help` is quick."""

import os
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from leaf.commands import data as data_commands
from leaf.commands.demo import demo
from leaf.commands.export import export
from leaf.commands.forks import forks
from leaf.commands.output import OutputLost, watch_streams
from leaf.commands.push import push
from leaf.commands.recipe import recipe as show_keys
from leaf.commands.running import (
    OF_A_SCRIPT,
    Overrides,
    Recipe,
    Resume,
    load_policy,
    read_recipe,
    run_recipe,
)
from leaf.commands.serve import serve
from leaf.commands.terminal import Commands, complaints, console, say, show, width, with_home
from leaf.config import AlignConfig, LeafConfig, SftConfig, overridden_keys
from leaf.errors import ConfigError, LeafError, RunInterrupted, did_you_mean
from leaf.plugins import code_refused
from leaf.progress import Busy

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich cuts words off where the terminal is narrow
)
app.add_typer(data_commands.app, name="data")


Trust = Annotated[bool, typer.Option("--trust", help="run the code that the recipe names: plugins, own functions")]


def main() -> None:
    """Run the command line.

    Errors print one sentence to stderr and exit with 2. A run that was interrupted and saved exits with 75.
    """
    # The bars of libraries count files and tensors, and spoil a log. They read these variables when they are imported,
    # seconds from now.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    # peft 0.21 reads a property that transformers 5.23 has renamed; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
    watch_streams()
    code: str | int | None = 0
    try:
        app(with_home(sys.argv[1:]))
    except LeafError as error:
        say(f"leaf: {error}", complaints)
        code = error.exit_code
    except OutputLost as error:
        saved = error.__context__ if isinstance(error.__context__, RunInterrupted) else None  # the live view's last
        say(f"leaf: {saved or f'the output cannot be written: {error.strerror}.'}", complaints)
        code = LeafError.exit_code if saved is None else saved.exit_code
    except SystemExit as ended:
        code = ended.code
    if code in (None, 0, RunInterrupted.exit_code) and "leaf.runs.processes" in sys.modules:
        from leaf.runs.processes import leave

        leave()
    sys.exit(code)


def _say_version(asked: bool) -> None:
    if asked:
        say(f"leaf {metadata.version('leaf-speech')}")
        raise typer.Exit


@app.callback()
def leaf(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train speech LLMs with reinforcement learning: LEAF, GRPO and relatives. Start with `leaf demo`."""


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train with a recipe of any stage, e.g. `leaf train recipes/demo.yaml seed=1 output_dir=runs/s1`."""
    needed = () if resume else OF_A_SCRIPT
    run_recipe(read_recipe(recipe, overrides, needed=needed, resume=resume), resume=resume)


@app.command()
def sft(
    recipe: Recipe = Path("recipes/sft.yaml"),
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train on references (stage sft), e.g. `leaf sft recipes/sft.yaml max_steps=50`."""
    run_recipe(read_recipe(recipe, overrides, SftConfig, resume=resume), resume=resume)


@app.command()
def align(
    recipe: Recipe = Path("recipes/align.yaml"),
    overrides: Overrides = None,
    resume: Resume = False,
) -> None:
    """Train the projector alone, with a CTC loss against the token embeddings of the language model (stage align)."""
    run_recipe(read_recipe(recipe, overrides, AlignConfig, resume=resume), resume=resume)


@app.command()
def evaluate(
    recipe: Recipe,
    overrides: Overrides = None,
    adapter: Annotated[
        list[str] | None, typer.Option(help="adapter DIR or NAME=DIR, e.g. runs/demo/best; may be repeated")
    ] = None,
    run: Annotated[list[Path] | None, typer.Option(help="a run: score every checkpoint that it keeps")] = None,
    with_base: Annotated[
        bool, typer.Option("--with-base", help="score the bare model too; without --adapter it alone")
    ] = False,
    split: Annotated[str, typer.Option(help="split to evaluate")] = "test",
    items: Annotated[int | None, typer.Option(help="only the first N rows")] = None,
    items_seed: Annotated[int | None, typer.Option(help="draw the N rows with this seed instead")] = None,
    greedy: Annotated[
        bool | None, typer.Option("--greedy/--sampled", help="one greedy pass, or sampled passes; default eval_greedy")
    ] = None,
    passes: Annotated[
        int | None, typer.Option(min=1, max=1000, help="sampled passes, seeds 42, 43, ...; default 5")
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            help="metrics, `reward`, rewards of the recipe or FILE.py:function, comma-separated or repeated, or none; "
            "default bleu,exact_match,chrf"
        ),
    ] = None,
    metric_path: Annotated[list[str] | None, typer.Option(help="METRIC=PATH of its data or model")] = None,
    lowercase: Annotated[bool, typer.Option(help="compare without case")] = False,
    out: Annotated[Path | None, typer.Option(help="default runs/evaluation-RECIPE-SPLIT[-greedy]")] = None,
) -> None:
    """Score a model and its adapters on a split, with the task and decoding of a recipe; keep the predictions."""
    config = read_recipe(recipe, overrides, LeafConfig, needed=("model", "task"))
    from leaf.commands.evaluating import decoding_of, folder_of, rows_of, scoring_of
    from leaf.evaluation.compare import chosen_metrics, compare_files
    from leaf.evaluation.systems import evaluate_systems, name_systems
    from leaf.train.recipe import check_recipe

    check_recipe(config)
    systems = name_systems(config.model, adapter or [], with_base=with_base, runs=run or [])
    names, paths = chosen_metrics(metrics, metric_path)
    decoding = decoding_of(config, greedy=greedy, passes=passes)
    scoring = scoring_of(config, names, lowercase=lowercase, paths=paths)
    rows = rows_of(config, split, items, overridden_keys(overrides), say, seed=items_seed)
    folder = out or folder_of(recipe, split, decoding)
    how: dict[str, Any] = {"split": split, "decoding": decoding, "scoring": scoring, "say": say}
    results = evaluate_systems(config, systems, lambda path: load_policy(config, path), rows, folder, **how)
    files = [folder / f"{name}.jsonl" for name in systems]
    first, *others = (result.scores for result in results.values())
    scored = [name for name in first if all(name in other for other in others)]  # what one lacks was said above
    say(compare_files(files, metrics=scored, paths=paths, lowercase=lowercase, width=width()))


@app.command()
def judge(
    predictions: Annotated[Path, typer.Argument(help="prediction file of `leaf evaluate`")],
    url: Annotated[str, typer.Option(help="OpenAI-compatible endpoint, e.g. http://localhost:8000/v1")],
    model: Annotated[str, typer.Option(help="name of the judge at the endpoint")],
    kind: Annotated[str, typer.Option(help="direct (0-100), rubric (1-5) or pairwise")] = "direct",
    against: Annotated[Path | None, typer.Option(help="the other prediction file, for pairwise")] = None,
    out: Annotated[Path | None, typer.Option(help="default PREDICTIONS.judge-KIND-MODEL.jsonl")] = None,
    template: Annotated[Path | None, typer.Option(help="own prompt, a text file")] = None,
    key_env: Annotated[str | None, typer.Option(help="environment variable with the API key")] = None,
    passes: Annotated[int, typer.Option(help="passes of the file to judge, the first N")] = 1,
    samples: Annotated[int | None, typer.Option(help="samples per item; default direct 5, others 1")] = None,
    temperature: Annotated[float | None, typer.Option(help="of the judge; default 1 with samples, else 0")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="length limit of the judge's reply")] = None,
    body: Annotated[str | None, typer.Option(help="further keys of the request, JSON; null takes a key out")] = None,
    concurrency: Annotated[int, typer.Option(help="requests at a time")] = 8,
    timeout: Annotated[float, typer.Option(help="seconds a reply may take")] = 120.0,
    cache: Annotated[Path | None, typer.Option(help="file of replies; default beside --out")] = None,
) -> None:
    """Let a language model judge predictions. An interrupted command continues when you repeat it."""
    from leaf.evaluation.judge_file import judge_file
    from leaf.http import Endpoint
    from leaf.rewards.judge import JudgeSettings

    endpoint = Endpoint(url, model, key_env=key_env, concurrency=concurrency, timeout_s=timeout)
    asked: dict[str, Any] = {"samples": samples, "temperature": temperature, "max_tokens": max_tokens, "extra": body}
    settings = JudgeSettings.of(kind, template=template, **asked)
    console.print(judge_file(predictions, endpoint, settings, against=against, out=out, passes=passes, cache=cache))


@app.command()
def compare(
    predictions: Annotated[
        list[Path], typer.Argument(help="prediction files, or folders of them; the first is the base")
    ],
    metrics: Annotated[
        list[str] | None, typer.Option(help="comma-separated or repeated; default those they were scored with")
    ] = None,
    metric_path: Annotated[list[str] | None, typer.Option(help="METRIC=PATH of its data or model")] = None,
    lowercase: Annotated[bool | None, typer.Option(help="default as they were scored")] = None,
    judged: Annotated[list[Path] | None, typer.Option("--judge", help="further files of `leaf judge`")] = None,
    format: Annotated[str, typer.Option(help="text, markdown or latex")] = "text",
    samples: Annotated[int, typer.Option(min=1, max=1_000_000, help="bootstrap resamples")] = 1000,
) -> None:
    """Compare systems in a table: scores with 95 % intervals, and differences to the first with p-values."""
    from leaf.evaluation.compare import chosen_metrics, compare_files
    from leaf.evaluation.predictions import prediction_files

    names, paths = chosen_metrics(metrics, metric_path)
    options: dict[str, Any] = {"lowercase": lowercase, "judged": judged or [], "format": format, "samples": samples}
    files = prediction_files(predictions)
    say(compare_files(files, metrics=names, paths=paths, width=width(), **options))


@app.command()
def merge(
    recipe: Recipe,
    adapter: Annotated[Path, typer.Option(help="adapter directory, e.g. runs/sft/last")],
    out: Annotated[Path, typer.Option(help="checkpoint directory to write")],
    overrides: Overrides = None,
) -> None:
    """Merge an adapter into the model of a recipe, for serving or to train on from (`model=`)."""
    config = read_recipe(recipe, overrides, needed=("model",))
    from leaf.commands.merging import merge_adapter
    from leaf.evaluation.systems import name_systems
    from leaf.train.recipe import check_recipe

    check_recipe(config)
    name_systems(config.model, [str(adapter)], with_base=False)  # refuses what is no adapter
    merge_adapter(config, adapter, out)


@app.command("demo-model")
def demo_model(
    stage: Annotated[str, typer.Option(help="base (no training) or demo (after align and sft)")] = "demo",
    cache: Annotated[Path | None, typer.Option(help="folder to build in; default $LEAF_CACHE or ~/.cache/leaf")] = None,
) -> None:
    """Assemble the embedded model: Whisper tiny.en, projector, SmolLM2-135M."""
    from leaf.model.demo import resolve_model

    if stage not in ("base", "demo"):
        raise ConfigError(f"stage is {stage!r}; allowed are base and demo.{did_you_mean(stage, ('base', 'demo'))}")
    say(f"the {stage} model is in {resolve_model(stage, cache, say)}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="run directories; several seeds of a method are shown together")],
    output: Annotated[Path, typer.Option(help="the file to write")] = Path("report.html"),
    predictions: Annotated[list[Path] | None, typer.Option(help="further prediction files or folders to show")] = None,
    audio: Annotated[bool, typer.Option(help="put recordings into the page")] = True,
    trust: Trust = False,
) -> None:
    """Write a report on runs, with curves, trees, forks and evaluations: one HTML file that needs no server."""
    with code_refused(not trust), Busy(say, f"reading {', '.join(map(str, runs))}"):
        from leaf.report.write import write_report

        written = write_report(runs, output, predictions=predictions or [], audio=audio)
    say(f"the report is in {written}")


app.command()(demo)
app.command()(forks)
app.command()(push)
app.command()(export)
app.command()(serve)


@app.command()
def tree(
    run: Annotated[Path, typer.Argument(help="run directory of stage rl, e.g. runs/demo")],
    step: Annotated[int | None, typer.Option(help="recorded step; default the last one")] = None,
    group: Annotated[int, typer.Option(help="which of the step's recorded groups, from 0")] = 0,
    credit: Annotated[str | None, typer.Option(help="show this rule's credit on the same rollouts, e.g. grpo")] = None,
    trust: Trust = False,
) -> None:
    """Draw a recorded group as a prefix tree, to see where completions part and what each part is credited with."""
    from leaf.report.terminal import show_group

    with code_refused(not trust):
        show_group(console, run, step=step, group=group, credit=credit)


@app.command()
def doctor(recipe: Recipe, overrides: Overrides = None, trust: Trust = False) -> None:
    """Check whether this machine can run a recipe, and say what to change. Exits with 1 if it cannot."""
    config = read_recipe(recipe, overrides)
    from leaf.commands.doctor import examine

    states = []
    with code_refused(not trust):
        for finding in examine(config):
            states.append(finding.state)
            say(f"{finding.state:6}  {finding.subject}: {finding.found}")
            if finding.advice:
                say(f"        {finding.advice}")
    if "fails" in states:
        raise typer.Exit(1)


app.command("recipe")(show_keys)


@app.command("families")
def show_families() -> None:
    """List the families of speech models that can be trained, and why others are refused."""
    from leaf.model import families as known

    table = Table()
    for title in ("model type", "placeholder", "audio", "its speech LoRA"):
        table.add_column(title)
    for name in known.families():
        family = known.family(name)
        own = "none" if family.adapter is None else "merged on loading"
        table.add_row(name, family.audio_token, family.audio_limit, own)
    show(table)
    for name, reason in known.refused().items():
        say(f"{name}: not supported. {reason}")


if __name__ == "__main__":
    main()
