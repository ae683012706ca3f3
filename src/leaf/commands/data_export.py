"""The command `leaf data export`: rows as another framework reads them."""

from pathlib import Path
from typing import Annotated

import typer

from leaf.commands.data_check import listed, progress, unusable_line
from leaf.commands.pairs import Columns, pairs
from leaf.commands.terminal import say
from leaf.errors import DataError, did_you_mean

FORMATS = ("verl",)


def export(
    task: Annotated[str, typer.Argument(help="task, manifest, or folder of `leaf data prepare`")],
    framework: Annotated[str, typer.Option("--for", help="who reads it: verl")],
    target: Annotated[Path, typer.Option("--to", help="Parquet file to write")],
    split: Annotated[str, typer.Option(help="split to write")] = "train",
    items: Annotated[int | None, typer.Option(min=1, help="only the first N rows")] = None,
    columns: Columns = None,
    name: Annotated[str | None, typer.Option(help="data_source of the rows; default the task's name")] = None,
    hours: Annotated[float | None, typer.Option(help="hours of audio in one file; default 6")] = None,
    leaks: Annotated[bool, typer.Option("--leaks", help="write although training shares recordings")] = False,
) -> None:
    """Write a split with its audio as Parquet for verl; exit code 1, and no file, if a row is unusable or leaks."""
    if framework not in FORMATS:
        raise DataError(f"--for is {framework!r}.{did_you_mean(framework, FORMATS)} Allowed are {', '.join(FORMATS)}.")
    from leaf.data import load, splits_of
    from leaf.data.export import HOURS, check_prompt, export_for_verl

    mapped = pairs("--columns", columns, "ours=theirs, e.g. reference=answer")
    names = dict.fromkeys([split, *splits_of(task, columns=mapped)])  # first the one whose name may be wrong
    loaded = {one: load(task, one, columns=mapped) for one in names}
    if items is not None:
        loaded[split] = loaded[split].select(range(min(items, len(loaded[split]))))
    rows = {one: dataset.to_list() for one, dataset in loaded.items()}
    for row in rows[split]:
        check_prompt(row)
    if not _usable(rows, split, leaks=leaks):
        raise typer.Exit(1)
    most = HOURS if hours is None else hours
    with progress("writing", len(rows[split])) as tick:
        files = export_for_verl(loaded[split], name or Path(task).stem, split, target, hours=most, tick=tick)
    for file in files:
        say(f"{file} ({file.stat().st_size / 2**20:.1f} MiB)")
    given = ",".join(str(file.absolute()) for file in files)
    say(f"{len(rows[split])} rows; give verl data.{'train' if split == 'train' else 'val'}_files=[{given}]")


def _usable(loaded: dict[str, list], split: str, *, leaks: bool) -> bool:
    """Decode what is to be written and compare the splits; say what is wrong."""
    from leaf.data.check import Model, survey
    from leaf.data.leaks import heard_in, leaks_among

    heard = heard_in(loaded)
    with progress("decoding", len(loaded[split])) as tick:
        found = survey(loaded[split], heard[split], Model(), decode=True, tick=tick)
    unusable = [unusable_line(split, row.why, row.row) for row in found.unusable]
    if unusable:
        listed(f"{len(unusable)} of {found.rows} rows cannot be used, and nothing was written", unusable)
    shared = leaks_among(loaded, heard) if "train" in loaded else []
    if shared:
        listed(f"{len(shared)} leak{'s' if len(shared) != 1 else ''} of other splits into train", shared)
        say("written all the same, as --leaks says" if leaks else "nothing was written; --leaks writes all the same")
    return not unusable and (leaks or not shared)
