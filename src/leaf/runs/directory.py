"""A run directory: what is in it, how it is made and reopened, and the lock that keeps a second process out.

Everything in it is either whole or absent, whenever the process is killed (leaf.files). What a kill left between two
renames is put right when the run is continued.
"""

import errno
import fcntl
import os
import platform
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from leaf import files
from leaf.config import FROM_PYTHON, RunConfig, from_dict, of_version_0_1, to_dict
from leaf.errors import ConfigError, RunError
from leaf.files import OLD, UNFINISHED, writing
from leaf.text import fold_whitespace
from leaf.yaml_text import read_yaml

LOGS = ("metrics.jsonl", "validation.jsonl", "groups.jsonl")
_BESIDE = ("provenance.json", "versions.json", "signatures.json", "tracker.json")
_WRITTEN = ("recipe.yaml", "projector.safetensors", *_BESIDE, *LOGS)
_PACKAGES = ("leaf-speech", "torch", "transformers", "peft", "accelerate", "datasets", "sacrebleu", "numpy")
# What a process leaves that is killed while it makes the directory; recipe.yaml is written last.
_BEGINNINGS = {".lock", f"recipe.yaml{UNFINISHED}", "versions.json", f"versions.json{UNFINISHED}"}

# File descriptors of the locks that this process holds. A child forked from here (a data loader's worker, a reward
# function's pool) shares them, and would keep the lock after this process has died.
_locks: set[int] = set()


def _let_go_in_child() -> None:
    for lock in _locks:
        os.close(lock)
    _locks.clear()


os.register_at_fork(after_in_child=_let_go_in_child)


class RunDirectory:
    """Make, reopen and read one run directory.

    Files: recipe.yaml, provenance.json (what a script passed in place of the recipe's values), versions.json,
    metrics.jsonl (one line per step), validation.jsonl, groups.jsonl (sampled groups with their trees), best/ and last/
    (adapters), checkpoints/ (leaf.runs.checkpoints), .lock (held by the process that trains).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock: int | None = None  # a file descriptor
        self._counts: dict[str, int] = {}  # lines of the logs, as far as they were counted

    @classmethod
    def begin(
        cls, config: RunConfig, resume: bool | str | Path = False, say: Callable[[str], None] = print
    ) -> "RunDirectory":
        """Make the run directory of a recipe, or reopen it (`resume`: True, or its path); locked and put right.

        Raises:
            RunError: it exists and is not being resumed, is not a run directory, cannot be written, or another process
                trains into it.
        """
        path = run_path(config, resume)
        if resume is True and is_empty(path):
            say(f"{path} has no run yet, so there is nothing to resume: training starts at step 0 there")
            resume = False
        if not resume:
            return cls.create(config, say)
        run = cls.open(path)
        run.lock(say)
        run.recover()
        return run

    @classmethod
    def create(cls, config: RunConfig, say: Callable[[str], None] = print) -> "RunDirectory":
        """Make and lock a new run directory and write the resolved recipe; an existing one is refused."""
        path = run_path(config)
        refuse_existing(path)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        run.lock(say)
        refuse_existing(path)  # another process may have been a moment faster
        files.write_json(path / "versions.json", _versions())
        run.write_recipe(config)
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """Open an existing run directory, to be read: it is neither locked nor changed."""
        run = cls(path)
        if not (run.path / "recipe.yaml").is_file():
            raise RunError(f"{path} is not a run directory: it has no recipe.yaml. Name one that `leaf train` wrote.")
        return run

    def holds_run(self) -> bool:
        """Tell whether there is a run: a recipe alone may lie in any folder."""
        return (self.path / "recipe.yaml").is_file() and (self.path / "checkpoints").is_dir()

    def config(self) -> RunConfig:
        """Read the resolved recipe of the run."""
        values, _ = of_version_0_1(self._recipe())
        return from_dict(values)

    def script_values(self) -> dict[str, Any]:
        """Read, by key of the recipe, the names of what a script passed in place of the recipe's values.

        There are none in a run of the command line (leaf.runs.provenance).
        """
        file = self.path / "provenance.json"
        if not os.path.lexists(file):
            return of_version_0_1(self._recipe())[1]
        script = files.read_json(file)
        if script is None:
            raise RunError(f"{file} cannot be read as a JSON object. Restore it from a copy.")
        return script

    def what_ran(self) -> RunConfig:
        """Read the recipe for people: what a script passed is named, and marked, in place of the recipe's values."""
        marked = {
            key: [f"{one}{FROM_PYTHON}" for one in name] if isinstance(name, list) else f"{name}{FROM_PYTHON}"
            for key, name in self.script_values().items()
        }
        return replace(self.config(), **marked)

    def _recipe(self) -> dict[str, Any]:
        file = self.path / "recipe.yaml"
        try:
            values = read_yaml(file)
        except (OSError, ConfigError) as error:
            raise RunError(f"{file} cannot be read: {fold_whitespace(str(error))}.") from error
        if not isinstance(values, dict):
            raise RunError(f"{file} has no recipe. Restore it from a copy.")
        return values

    def write_recipe(self, config: RunConfig, script: Mapping[str, Any] | None = None) -> None:
        """Write the resolved recipe, and beside it what a script passed in place of its values."""
        # Before the recipe: whoever finds the recipe is to know what it does not say.
        if script:
            files.write_json(self.path / "provenance.json", script)
        text = yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
        files.write_text(self.path / "recipe.yaml", text)

    def other_versions(self) -> list[str]:
        """Compare versions.json with today: one phrase for each difference, as `torch 2.14.0, was 2.13.0`."""
        was = self.versions() or {}
        return [f"{name} {now}, was {was[name]}" for name, now in _versions().items() if was.get(name, now) != now]

    def versions(self) -> dict[str, Any] | None:
        """Read the versions that the run began with; None where versions.json is missing or damaged."""
        return files.read_json(self.path / "versions.json")

    # -- one process at a time -----------------------------------------------------------------------------------------
    def lock(self, say: Callable[[str], None] = print) -> None:
        """Keep other processes from training into this directory until `release`, or until this process ends.

        A network file system may have no locks; `say` is then told.

        Raises:
            RunError: another process holds the lock.
        """
        if self._lock in _locks:
            return
        with writing(self.path):
            lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(lock, 200, 0).decode(errors="replace") or "another process"
            os.close(lock)
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                say(f"the file system of {self.path} has no locks; take care that nothing else trains into it")
                return
            raise RunError(
                f"The run directory {self.path} is being trained into by {holder}. Wait for it, stop it, or choose "
                "another output_dir."
            ) from error
        with writing(self.path):
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        self._lock = lock
        _locks.add(lock)

    def release(self) -> None:
        """Let other processes train into this directory again."""
        if self._lock in _locks:
            _locks.remove(self._lock)
            os.close(self._lock)
        self._lock = None

    # -- whole or absent -----------------------------------------------------------------------------------------------
    def replace_file(self, name: str, fill: Callable[[Path], object]) -> None:
        """Fill a fresh file with `fill(path)` and put it in the place of `name`."""
        files.replace_file(self.path / name, fill)

    def replace_directory(self, name: str, fill: Callable[[Path], object]) -> None:
        """Fill a fresh directory with `fill(path)` and put it in the place of `name`."""
        files.replace_directory(self.path / name, fill)

    def recover(self) -> None:
        """Put right what a kill left of every file and directory; only the process that holds the lock may."""
        steps = {leftover.with_suffix("") for leftover in self.path.glob("checkpoints/step-*.leaf-*")}
        for path in (*(self.path / name for name in (*_WRITTEN, "best", "last")), *steps):
            files.recover(path)

    # -- logs ----------------------------------------------------------------------------------------------------------
    def append(self, name: str, record: dict[str, Any]) -> None:
        """Append one JSON line; NaN is refused, because no other program reads it."""
        files.append_row(self.path / name, record)
        if name in self._counts:
            self._counts[name] += 1

    def count(self, name: str) -> int:
        """Count the lines of a JSON-lines file; the file is read the first time only."""
        if name not in self._counts:
            self._counts[name] = sum(1 for _ in files.finished_lines(self.path / name))
        return self._counts[name]

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the records of a JSON-lines file without a torn last line; none if there is no file.

        Raises:
            RunError: the file cannot be read, or a finished line is no JSON object with a step.
        """
        for number, line in enumerate(files.finished_lines(self.path / name), 1):
            record = record_of(line)
            if record is None:
                raise RunError(
                    f"Line {number} of {self.path / name} is not a JSON object with a step; the file is damaged. "
                    "`--resume` drops such lines."
                )
            yield record

    def raw_lines(self, name: str) -> Iterator[bytes]:
        """Yield the lines of a JSON-lines file without a torn last one, as they are; none if there is no file."""
        return files.finished_lines(self.path / name)

    def forget_after(self, name: str, step: int) -> int:
        """Drop the records later than a step from a JSON-lines file, and lines that cannot be read.

        Kept lines stay as they are, byte for byte. The number of finished lines that could not be read is returned.
        """
        if not (self.path / name).exists():
            return 0
        kept, unreadable = [], 0
        for line in files.finished_lines(self.path / name):
            record = record_of(line)
            if record is None:
                unreadable += 1
            elif record["step"] <= step:
                kept.append(line)
        content = b"".join(kept)
        if len(content) != (self.path / name).stat().st_size:
            self.replace_file(name, lambda partial: partial.write_bytes(content))
        self._counts[name] = len(kept)
        return unreadable

    def sync_logs(self) -> None:
        """Bring the JSON-lines files to the disk, so that no checkpoint is newer than its record."""
        with writing(self.path):
            for name in LOGS:
                if (self.path / name).exists():
                    files.sync(self.path / name)


def record_of(line: bytes) -> dict[str, Any] | None:
    """Parse a line of a log; None if it is no JSON object with a step."""
    record = files.parsed_row(line)
    return record if record is not None and isinstance(record.get("step"), int) else None


def bring_back(adapter: Path) -> None:
    """Bring back an adapter directory (best/, last/) that a kill caught between two renames.

    Raises:
        RunError: the process that writes it is alive; try again in a moment.
    """
    if not adapter.exists() and adapter.with_name(f"{adapter.name}{OLD}").is_dir():
        run = RunDirectory.open(adapter.parent)
        run.lock()
        run.recover()
        run.release()


def run_path(config: RunConfig, resume: bool | str | Path = False) -> Path:
    """Tell where the run of a recipe is: in its output_dir, or at the path that is to be resumed."""
    return Path(config.output_dir or "runs/run") if isinstance(resume, bool) else Path(resume).expanduser()


def is_empty(path: Path) -> bool:
    """Tell whether a path has nothing, or only what a process killed while it made a run directory left there."""
    return not path.exists() or (path.is_dir() and {entry.name for entry in path.iterdir()} <= _BEGINNINGS)


def refuse_existing(path: Path) -> None:
    """Refuse to begin a run where there is something already."""
    if not is_empty(path):
        raise RunError(
            f"The run directory {path} exists already and is kept as it is. Choose another output_dir, remove it, "
            "or continue it with `--resume` (from Python: `train(resume_from_checkpoint=True)`)."
        )


def _versions() -> dict[str, Any]:
    versions = {name: _version(name) for name in _PACKAGES}
    return {**versions, "python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
