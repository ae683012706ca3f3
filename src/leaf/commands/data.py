"""The commands `leaf data`: list the tasks, show rows, prepare a corpus, check splits for leaks."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from leaf.commands.terminal import Commands, say
from leaf.commands.terminal import show as show_table
from leaf.errors import DataError, did_you_mean

app = typer.Typer(
    cls=Commands, rich_markup_mode=None, help="List tasks and corpora, show rows, prepare a corpus, check for leaks."
)

_PATHS = ("audio", "audio_sources")  # columns shown by the names of the files alone

TaskName = Annotated[str, typer.Argument(help="task, manifest, or folder of `leaf data prepare`")]
Columns = Annotated[list[str] | None, typer.Option(help="ours=theirs, e.g. reference=answer; may be repeated")]


@app.callback(invoke_without_command=True)
def tasks(context: typer.Context) -> None:
    """List the tasks that come with leaf and the corpora that it prepares."""
    from leaf.data import TASKS
    from leaf.data.corpora import CORPORA

    if context.invoked_subcommand is not None:
        return
    table = Table("task", "what", "splits", "licence")
    for name, entry in TASKS.items():
        table.add_row(name, entry.description, ", ".join(entry.splits), entry.licence)
    show_table(table)
    for name, corpus in CORPORA.items():
        say(f"\n{name}: {corpus.description}")
        say(f"    --from holds {corpus.layout}\n    licence: {corpus.licence}")
    say("\nleaf data show TASK, leaf data prepare CORPUS --from DIR --to DIR, leaf data check TASK")


@app.command()
def show(
    task: TaskName,
    split: Annotated[str, typer.Option(help="split to show")] = "train",
    rows: Annotated[int, typer.Option(help="rows to print", min=1)] = 5,
    columns: Columns = None,
) -> None:
    """Show rows of a task; `--columns` maps a manifest's names, as the key `columns` of a recipe does."""
    from leaf.data import load

    loaded = load(task, split, columns=_pairs("--columns", columns, "ours=theirs, e.g. reference=answer"))
    say(f"{task}, {split}: {len(loaded)} rows")
    for row in loaded.select(range(min(rows, len(loaded)))):
        shown = {k: [Path(x).name for x in v or ()] if k in _PATHS else v for k, v in row.items()}  # type: ignore[union-attr]
        say(str(shown))


@app.command()
def prepare(
    corpus: Annotated[str, typer.Argument(help="librisqa, covost2, dailytalk, longaudio, voicebench or hub")],
    source: Annotated[Path, typer.Option("--from", help="folder with the publisher's files")],
    target: Annotated[Path, typer.Option("--to", help="folder to write; an interrupted one is continued")],
    pair: Annotated[str, typer.Option(help="languages of a translation corpus")] = "en_de",
    columns: Columns = None,
    split: Annotated[
        list[str] | None, typer.Option(help="theirs=ours, e.g. train.clean.360=train, or =none; may be repeated")
    ] = None,
    config: Annotated[str | None, typer.Option(help="configuration of a data set on the hub")] = None,
    split_by: Annotated[
        str, typer.Option(help="recording, or published (audio may be heard on both sides)")
    ] = "recording",
    max_seconds: Annotated[
        float | None, typer.Option(help="refuse longer audio; default the corpus's own limit")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="stop after this many entries", min=1)] = None,
    decode: Annotated[bool, typer.Option("--decode", help="decode all audio instead of trusting headers")] = False,
) -> None:
    """Read a corpus as its publisher lays it out and write its splits as Arrow."""
    from leaf.data.corpora import CORPORA, Options
    from leaf.data.corpora import prepare as run

    if corpus not in CORPORA:
        hint = did_you_mean(corpus, CORPORA)
        raise DataError(f"The corpus {corpus!r} is unknown.{hint} Allowed are {', '.join(CORPORA)}.")
    names = _pairs("--columns", columns, "ours=theirs, e.g. reference=answer")
    splits = _pairs("--split", split, "theirs=ours, e.g. train.clean.360=train")
    summary = run(
        corpus,
        CORPORA[corpus],
        source,
        target,
        options=Options(pair=pair, columns=names, splits=splits, config=config),
        split_by=split_by,
        max_seconds=max_seconds,
        limit=limit,
        decode=decode,
        say=say,
    )
    table = Table("split", "rows", "recordings", "hours", title=f"{corpus}, licence {summary['licence']}")
    for name, counts in summary["splits"].items():
        table.add_row(name, *(str(counts[key]) for key in ("rows", "recordings", "hours")))
    show_table(table)
    for reason, count in summary["refused"].items():
        say(f"refused, {reason}: {count}, e.g. {summary['examples'][reason][0]}")
    say(f"use it as task: {target}")


@app.command()
def check(
    task: TaskName,
    splits: Annotated[str | None, typer.Option(help="comma-separated; default all that there are")] = None,
    columns: Columns = None,
) -> None:
    """Look for recordings that training shares with other splits; exit code 1 if there are any."""
    from leaf.data import load, splits_of
    from leaf.data.leaks import check_leakage

    mapped = _pairs("--columns", columns, "ours=theirs, e.g. reference=answer")
    names = splits.split(",") if splits else splits_of(task, columns=mapped)
    loaded = {split: load(task, split, columns=mapped).to_list() for split in names}
    if "train" not in loaded:
        raise DataError(f"{task} has no split train to compare {', '.join(names)} with.")
    leaks = check_leakage(loaded)
    for line in leaks[:20]:
        say(line)
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in loaded.items())
    say(f"{len(leaks)} leaks in {task} ({counts})")
    if leaks:
        raise typer.Exit(1)


def _pairs(option: str, given: list[str] | None, form: str) -> dict[str, str]:
    """Return the names that a repeated option maps."""
    pairs = {left: right for left, _, right in (one.partition("=") for one in given or [])}
    if not all(pairs) or not all(pairs.values()):
        raise DataError(f"{option} came as {', '.join(given or [])}; give {form}.")
    return pairs
