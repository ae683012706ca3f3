"""Push an adapter of a run to a model hub: the adapter, its card and its projector, and nothing else of the run."""

from pathlib import Path

from leaf.errors import RunError
from leaf.files import read_json
from leaf.runs.card import hub_name
from leaf.runs.directory import RunDirectory
from leaf.runs.lost import lost_adapter

FILES = ("adapter_config.json", "adapter_model.safetensors", "projector.safetensors", "README.md")


def push_run(
    run: RunDirectory,
    repo_id: str | None = None,
    *,
    adapter: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
) -> str:
    """Upload an adapter, and return the address of what was made of it.

    Args:
        run: the run directory.
        repo_id: owner/name; without an owner the token's. Default the name of the run directory.
        adapter: best or last; default best where there is one.
        private, token, revision, create_pr, commit_message: of huggingface_hub.

    Raises:
        RunError: there is no whole adapter, or the hub refused or cannot be reached.
    """
    from huggingface_hub import HfApi

    folder = adapter_folder(run, adapter)
    if lost := lost_adapter(folder):
        raise RunError(f"{run.path} has no adapter to push: {lost}. Train it, or name another one (best, last).")
    api = HfApi(token=token, library_name="leaf-speech")
    name = repo_id or run.path.resolve().name
    try:
        repo = api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo.repo_id,
            folder_path=folder,
            allow_patterns=list(FILES),
            commit_message=commit_message or f"Upload {folder.name} of a run of leaf",
            revision=revision,
            create_pr=create_pr,
        )
    except Exception as error:  # the client raises of many kinds: HTTP, network, validation, no token
        reason = " ".join(str(error).split())[:500]
        raise RunError(
            f"{folder} could not be pushed to {name} ({type(error).__name__}: {reason}). Log in with `hf auth login` "
            "or set HF_TOKEN, and check the name and the network."
        ) from error
    return str(getattr(done, "pr_url", None) or repo)


def adapter_folder(run: RunDirectory, adapter: str | None = None) -> Path:
    """Find the adapter of a run: `best` or `last`, or whichever there is, best first.

    Raises:
        RunError: another name.
    """
    if adapter not in (None, "best", "last"):
        raise RunError(f"The adapter is {adapter!r}; a run has best and last.")
    return run.path / (adapter or ("best" if (run.path / "best").is_dir() else "last"))


def path_of_base(folder: Path) -> str | None:
    """Read from an adapter the folder of its base model, which a push uploads too; None where that is no path."""
    settings = read_json(folder / "adapter_config.json") or {}
    base = str(settings.get("base_model_name_or_path") or "")
    return base if "/" in base and hub_name(base) is None else None


def pushed_files(folder: Path) -> list[str]:
    """List the files of an adapter that a push uploads."""
    return [name for name in FILES if (folder / name).is_file()]
