"""The commands `leaf data`: list the tasks, show rows, prepare a corpus, check splits for leaks."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from leaf.errors import DataError

app = typer.Typer(add_completion=False, help="List tasks and corpora, show rows, prepare a corpus, check for leaks.")
console = Console(highlight=False, soft_wrap=True)

TaskName = Annotated[str, typer.Argument(help="task, manifest, or folder of `leaf data prepare`")]


@app.callback(invoke_without_command=True)
def tasks(context: typer.Context) -> None:
    """List the tasks that come with leaf and the corpora that it prepares."""
    from leaf.tasks import TASKS
    from leaf.tasks.corpora import CORPORA

    if context.invoked_subcommand is not None:
        return
    table = Table("task", "what", "splits", "licence")
    for name, entry in TASKS.items():
        table.add_row(name, entry.description, ", ".join(entry.splits), entry.licence)
    console.print(table)
    for name, corpus in CORPORA.items():
        console.print(f"\n{name}: {corpus.description}", markup=False)
        console.print(f"    --from holds {corpus.layout}\n    licence: {corpus.licence}", markup=False)
    console.print("\nleaf data show TASK, leaf data prepare CORPUS --from DIR --to DIR, leaf data check TASK")


@app.command()
def show(
    task: TaskName,
    split: Annotated[str, typer.Option(help="split to show")] = "train",
    rows: Annotated[int, typer.Option(help="rows to print", min=1)] = 5,
) -> None:
    """Show rows of a task."""
    from leaf.tasks import load

    loaded = load(task, split)
    console.print(f"{task}, {split}: {len(loaded)} rows", markup=False)
    for row in loaded.select(range(min(rows, len(loaded)))):
        shown = {k: v if k != "audio" else [Path(x).name for x in v] for k, v in row.items()}  # type: ignore[union-attr]
        console.print(str(shown), markup=False)


@app.command()
def prepare(
    corpus: Annotated[str, typer.Argument(help="librisqa, covost2, dailytalk, longaudio, voicebench or hub")],
    source: Annotated[Path, typer.Option("--from", help="folder with the publisher's files")],
    target: Annotated[Path, typer.Option("--to", help="folder to write; an interrupted one is continued")],
    pair: Annotated[str, typer.Option(help="languages of a translation corpus")] = "en_de",
    columns: Annotated[
        list[str] | None, typer.Option(help="ours=theirs, e.g. reference=answer; may be repeated")
    ] = None,
    split_by: Annotated[
        str, typer.Option(help="recording, or published (by question: audio is heard on both sides)")
    ] = "recording",
    max_seconds: Annotated[
        float | None, typer.Option(help="refuse longer audio; default the corpus's own limit")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="stop after this many entries", min=1)] = None,
    decode: Annotated[bool, typer.Option("--decode", help="decode all audio instead of trusting headers")] = False,
) -> None:
    """Read a corpus as its publisher lays it out and write its splits as Arrow."""
    import difflib

    from leaf.tasks.corpora import CORPORA, Options
    from leaf.tasks.corpora import prepare as run

    if corpus not in CORPORA:
        close = difflib.get_close_matches(corpus, CORPORA, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DataError(f"The corpus {corpus!r} is unknown.{hint} Allowed are {', '.join(CORPORA)}.")
    pairs = {ours: theirs for ours, _, theirs in (column.partition("=") for column in columns or [])}
    if not all(pairs.values()):
        raise DataError(f"--columns came as {columns}; give ours=theirs, e.g. reference=answer.")
    summary = run(
        corpus,
        CORPORA[corpus],
        source,
        target,
        options=Options(pair=pair, columns=pairs),
        split_by=split_by,
        max_seconds=max_seconds,
        limit=limit,
        decode=decode,
        report=lambda line: console.print(line, markup=False),
    )
    table = Table("split", "rows", "recordings", "hours", title=f"{corpus}, licence {summary['licence']}")
    for split, counts in summary["splits"].items():
        table.add_row(split, *(str(counts[key]) for key in ("rows", "recordings", "hours")))
    console.print(table)
    for reason, count in summary["refused"].items():
        console.print(f"refused, {reason}: {count}, e.g. {summary['examples'][reason][0]}", markup=False)
    console.print(f"use it as task: {target}", markup=False)


@app.command()
def check(
    task: TaskName, splits: Annotated[str | None, typer.Option(help="comma-separated; default all")] = None
) -> None:
    """Look for recordings that training shares with other splits; exit code 1 if there are any."""
    from leaf.tasks import check_leakage, load, splits_of

    names = splits.split(",") if splits else splits_of(task)
    loaded = {split: load(task, split).to_list() for split in names}
    if "train" not in loaded:
        raise DataError(f"{task} has no split train to compare {', '.join(names)} with.")
    leaks = check_leakage(loaded)
    for line in leaks[:20]:
        console.print(line, markup=False)
    counts = ", ".join(f"{len(rows)} {split}" for split, rows in loaded.items())
    console.print(f"{len(leaks)} leaks in {task} ({counts})", markup=False)
    if leaks:
        raise typer.Exit(1)
