"""The commands `leaf data`: list the tasks, show rows, prepare a corpus, check a data set."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from leaf.commands.data_check import check
from leaf.commands.data_export import export
from leaf.commands.pairs import Columns, pairs
from leaf.commands.terminal import Commands, say
from leaf.commands.terminal import show as show_table
from leaf.errors import DataError, did_you_mean

app = typer.Typer(
    cls=Commands, rich_markup_mode=None, help="List tasks and corpora, show rows, prepare a corpus, check a data set."
)

_PATHS = ("audio", "audio_sources")  # columns shown by the names of the files alone

TaskName = Annotated[str, typer.Argument(help="task, manifest, or folder of `leaf data prepare`")]


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
    say("\nleaf data show TASK, leaf data prepare CORPUS --from DIR --to DIR, leaf data check TASK or RECIPE")


@app.command()
def show(
    task: TaskName,
    split: Annotated[str, typer.Option(help="split to show")] = "train",
    rows: Annotated[int, typer.Option(help="rows to print", min=1)] = 5,
    columns: Columns = None,
) -> None:
    """Show rows of a task; `--columns` maps a manifest's names, as the key `columns` of a recipe does."""
    from leaf.data import load

    loaded = load(task, split, columns=pairs("--columns", columns, "ours=theirs, e.g. reference=answer"))
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
    wordings: Annotated[
        str | None, typer.Option(help="how prompts are worded: published (default), leaf, or a YAML file of your own")
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
    names = pairs("--columns", columns, "ours=theirs, e.g. reference=answer")
    splits = pairs("--split", split, "theirs=ours, e.g. train.clean.360=train")
    summary = run(
        corpus,
        CORPORA[corpus],
        source,
        target,
        options=Options(pair=pair, columns=names, splits=splits, config=config, wordings=wordings),
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


app.command("check")(check)
app.command("export")(export)
