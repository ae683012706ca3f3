"""The command `leaf push`: upload an adapter of a run to a model hub."""

from pathlib import Path
from typing import Annotated, Any

import typer

from leaf.commands.terminal import say


def push(
    run: Annotated[Path, typer.Argument(help="run directory, e.g. runs/demo")],
    repo: Annotated[str | None, typer.Option(help="owner/name on the hub; default the run's name, under yours")] = None,
    adapter: Annotated[str | None, typer.Option(help="best or last; default best where there is one")] = None,
    private: Annotated[bool, typer.Option("--private", help="make a new repository private")] = False,
    revision: Annotated[str | None, typer.Option(help="branch to push to")] = None,
    message: Annotated[str | None, typer.Option(help="commit message")] = None,
) -> None:
    """Push an adapter with its model card to the Hugging Face hub; the token is that of `hf auth login` or HF_TOKEN."""
    from leaf.runs.directory import RunDirectory
    from leaf.runs.pushing import adapter_folder, path_of_base, push_run, pushed_files

    directory = RunDirectory.open(run)
    how: dict[str, Any] = {"adapter": adapter, "revision": revision, "commit_message": message}
    folder = adapter_folder(directory, adapter)
    if base := path_of_base(folder):
        say(f"adapter_config.json has the path of the base model, {base}, and whoever may read the repository sees it")
    address = push_run(directory, repo, private=private or None, **how)
    say(f"{address} has {', '.join(pushed_files(folder))} of {folder}")
