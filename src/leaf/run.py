"""A run directory: resolved recipe, versions, metrics.jsonl, recorded groups, validation, adapters, checkpoints."""

import json
import os
import platform
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from leaf.config import RunConfig, from_dict, to_dict
from leaf.errors import RunError

_PACKAGES = ("leaf-speech", "torch", "transformers", "peft", "accelerate", "datasets", "sacrebleu", "numpy")


class RunDirectory:
    """Write and read one run directory.

    Files: recipe.yaml, versions.json, metrics.jsonl (one line per step), validation.jsonl, groups.jsonl (sampled groups
    with their trees), best/ and last/ (adapters), checkpoint/ (adapter, optimiser, step).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    @classmethod
    def create(cls, config: RunConfig) -> "RunDirectory":
        """Make a new run directory and write the resolved recipe; an existing one is refused."""
        path = Path(config.output_dir or "runs/run")
        if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
            raise RunError(
                f"The run directory {path} exists already and is kept as it is. Choose another output_dir, remove it, "
                "or continue it with `--resume`."
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"The run directory {path} cannot be made: {error}. Choose another output_dir.") from error
        run = cls(path)
        run.write("recipe.yaml", yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))
        versions = {name: _version(name) for name in _PACKAGES}
        machine = {"python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}
        run.write("versions.json", json.dumps({**versions, **machine}, indent=2) + "\n")
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """Open an existing run directory."""
        run = cls(path)
        if not (run.path / "recipe.yaml").is_file():
            raise RunError(f"{path} is not a run directory: it has no recipe.yaml. Name one that `leaf train` wrote.")
        return run

    def config(self) -> RunConfig:
        """Return the resolved recipe of the run."""
        return from_dict(yaml.safe_load((self.path / "recipe.yaml").read_text(encoding="utf-8")))

    def write(self, name: str, text: str) -> None:
        """Write a text file so that a reader sees the old or the new content, never half of it."""
        target = self.path / name
        partial = target.with_name(target.name + ".partial")
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Append one JSON line; NaN is refused, because no other program reads it."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the records of a JSON-lines file; none if it does not exist."""
        file = self.path / name
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                yield json.loads(line)

    def forget_after(self, step: int) -> None:
        """Drop records later than a step from the JSON-lines files, so that a resumed run logs no step twice."""
        for name in ("metrics.jsonl", "validation.jsonl", "groups.jsonl"):
            if (self.path / name).exists():
                kept = [json.dumps(r, ensure_ascii=False) + "\n" for r in self.lines(name) if r["step"] <= step]
                self.write(name, "".join(kept))

    def replace_directory(self, name: str, fill) -> Path:
        """Fill a fresh directory with `fill(path)` and put it in the place of `name` in one rename."""
        target, fresh, old = self.path / name, self.path / f"{name}.partial", self.path / f"{name}.old"
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
        fresh.mkdir()
        fill(fresh)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)
        return target


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
