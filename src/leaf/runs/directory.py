"""A run directory: resolved recipe, versions, metrics.jsonl, recorded groups, validation, adapters, checkpoints.

Everything in it is either whole or absent, whenever the process is killed: a file or directory is filled under another
name, brought to the disk, and renamed. What a kill left between two renames is put right when the run is continued.
"""

import errno
import json
import os
import platform
import socket
import sys
import weakref
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from leaf.config import RunConfig, from_dict, to_dict
from leaf.errors import RunError
from leaf.files import _parsed, _remove, _sync, writing

LOGS = ("metrics.jsonl", "validation.jsonl", "groups.jsonl")
_WRITTEN = ("recipe.yaml", "versions.json", "projector.safetensors", *LOGS)
_PACKAGES = ("leaf-speech", "torch", "transformers", "peft", "accelerate", "datasets", "sacrebleu", "numpy")
# What a process killed while it made the directory leaves; recipe.yaml is written last.
_BEGINNINGS = {".lock", "recipe.yaml.partial", "versions.json", "versions.json.partial"}


class RunDirectory:
    """Write and read one run directory.

    Files: recipe.yaml, versions.json, metrics.jsonl (one line per step), validation.jsonl, groups.jsonl (sampled groups
    with their trees), best/ and last/ (adapters), checkpoints/ (leaf.runs.checkpoints), .lock (held by the process that
    trains).
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._unlock: weakref.finalize | None = None

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
        if resume is True and _empty(path):
            say(f"{path} holds no run yet, so there is nothing to resume: it starts at step 0")
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
        _refuse_existing(path)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        run.lock(say)
        _refuse_existing(path)  # another process may have been a moment faster
        run.write("versions.json", json.dumps(_versions(), indent=2) + "\n")
        run.write_recipe(config)
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """Open an existing run directory, to be read: it is neither locked nor changed."""
        run = cls(path)
        if not (run.path / "recipe.yaml").is_file():
            raise RunError(f"{path} is not a run directory: it has no recipe.yaml. Name one that `leaf train` wrote.")
        return run

    def config(self) -> RunConfig:
        """Return the resolved recipe of the run."""
        file = self.path / "recipe.yaml"
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise RunError(f"{file} cannot be read: {' '.join(str(error).split())}.") from error
        if not isinstance(values, dict):
            raise RunError(f"{file} holds no recipe; bring it back from a copy.")
        return from_dict(values)

    def write_recipe(self, config: RunConfig) -> None:
        """Write the resolved recipe."""
        self.write("recipe.yaml", yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))

    def other_versions(self) -> list[str]:
        """Return one phrase for everything in versions.json that is another today, as `torch 2.14.0, was 2.13.0`."""
        file = self.path / "versions.json"
        was = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return [f"{name} {now}, was {was[name]}" for name, now in _versions().items() if was.get(name, now) != now]

    # -- one process at a time -----------------------------------------------------------------------------------------
    def lock(self, say: Callable[[str], None] = print) -> None:
        """Keep other processes from training into this directory until `release`, or until this process ends.

        Windows has no such locks; where a network file system has none either, `say` is told.

        Raises:
            RunError: another process holds the lock.
        """
        if self._unlock is not None or sys.platform == "win32":
            return
        import fcntl  # not there on Windows

        with writing(self.path):
            file = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(file, 200, 0).decode(errors="replace") or "another process"
            os.close(file)
            raise RunError(
                f"The run directory {self.path} is being trained into by {holder}. Wait for it, stop it, or choose "
                "another output_dir."
            ) from error
        except OSError as error:
            os.close(file)
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise RunError(f"The run directory {self.path} cannot be locked: {error}.") from error
            say(f"the file system of {self.path} has no locks; take care that nothing else trains into it")
            return
        with writing(self.path):
            os.ftruncate(file, 0)
            os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
        self._unlock = weakref.finalize(self, os.close, file)
        _locked.add(self)

    def release(self) -> None:
        """Let other processes train into this directory again."""
        if self._unlock is not None:
            self._unlock()
            self._unlock = None

    # -- whole or absent -----------------------------------------------------------------------------------------------
    def write(self, name: str, text: str) -> None:
        """Write a text file so that a reader sees the old or the new content, never half of it."""
        self.replace_file(name, lambda partial: partial.write_text(text, encoding="utf-8"))

    def replace_file(self, name: str, fill: Callable[[Path], object]) -> None:
        """Fill a fresh file with `fill(path)` and put it in the place of `name` in one rename."""
        target = self.path / name
        partial = target.with_name(target.name + ".partial")
        with writing(target, partial):
            fill(partial)
            _sync(partial)
            os.replace(partial, target)
            _sync(target.parent)

    def replace_directory(self, name: str, fill: Callable[[Path], object]) -> Path:
        """Fill a fresh directory with `fill(path)` and put it in the place of `name`.

        Killed at any instant, `recover` brings back an intact directory, the old or the new one.
        """
        target, fresh, old = (self.path / f"{name}{suffix}" for suffix in ("", ".partial", ".old"))
        with writing(target, fresh):
            _remove(fresh)
            fresh.mkdir(parents=True)
            fill(fresh)
            for file in fresh.rglob("*"):
                _sync(file)
            _sync(fresh)
            if target.exists():
                _remove(old)
                target.rename(old)
            fresh.rename(target)
            _sync(target.parent)
            _remove(old)
        return target

    def remove_directory(self, name: str) -> None:
        """Remove a directory; killed half-way, it is gone from under its name all the same."""
        target, doomed = self.path / name, self.path / f"{name}.removed"
        with writing(target):
            _remove(doomed)
            target.rename(doomed)
            _remove(doomed)

    def recover(self) -> None:
        """Put right what a kill left: bring back directories caught between two renames, clear unfinished ones.

        Only the process that holds the lock may do so.
        """
        with writing(self.path):
            for pattern in ("best.*", "last.*", "checkpoints/step-*.*", *(f"{name}.partial" for name in _WRITTEN)):
                for leftover in list(self.path.glob(pattern)):
                    if leftover.suffix == ".old" and not leftover.with_suffix("").exists():
                        leftover.rename(leftover.with_suffix(""))
                    elif leftover.suffix in (".old", ".partial", ".removed"):
                        _remove(leftover)

    # -- logs ----------------------------------------------------------------------------------------------------------
    def append(self, name: str, record: dict[str, Any]) -> None:
        """Append one JSON line; NaN is refused, because no other program reads it."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        with writing(self.path / name), (self.path / name).open("a", encoding="utf-8") as file:
            file.write(line)

    def lines(self, name: str) -> Iterator[dict[str, Any]]:
        """Yield the records of a JSON-lines file, without a last line that is still unfinished; none if it is absent.

        Raises:
            RunError: a finished line is not JSON.
        """
        for number, line in enumerate(self._raw_lines(name), 1):
            record = _parsed(line)
            if record is None:
                raise RunError(f"Line {number} of {self.path / name} is not a JSON object; the file is damaged.")
            yield record

    def _raw_lines(self, name: str) -> Iterator[bytes]:
        file = self.path / name
        if file.exists():
            with file.open("rb") as opened:
                yield from (line for line in opened if line.endswith(b"\n"))

    def forget_after(self, name: str, step: int) -> int:
        """Drop the records later than a step from a JSON-lines file, and lines that cannot be read.

        Kept lines stay as they are, byte for byte. Returns how many finished lines could not be read.
        """
        if not (self.path / name).exists():
            return 0
        kept, unreadable = [], 0
        for line in self._raw_lines(name):
            record = _parsed(line)
            if record is None or "step" not in record:
                unreadable += 1
            elif record["step"] <= step:
                kept.append(line)
        content = b"".join(kept)
        if len(content) != (self.path / name).stat().st_size:
            self.write(name, content.decode("utf-8"))
        return unreadable

    def sync_logs(self) -> None:
        """Bring the JSON-lines files to the disk, so that no checkpoint is newer than its record."""
        with writing(self.path):
            for name in LOGS:
                if (self.path / name).exists():
                    _sync(self.path / name)


def bring_back(adapter: Path) -> None:
    """Bring back an adapter directory (best/, last/) that a kill caught between two renames.

    Raises:
        RunError: the process that writes it is alive; in a moment it will be there.
    """
    if not adapter.exists() and adapter.with_name(f"{adapter.name}.old").is_dir():
        run = RunDirectory.open(adapter.parent)
        run.lock()
        run.recover()
        run.release()


def run_path(config: RunConfig, resume: bool | str | Path = False) -> Path:
    """Return where the run of a recipe lies: its output_dir, or the path that is to be resumed."""
    return Path(config.output_dir or "runs/run") if isinstance(resume, bool) else Path(resume)


# Children forked from here (a reward function's, a data loader's) would keep the lock beyond this process's death.
_locked: "weakref.WeakSet[RunDirectory]" = weakref.WeakSet()


def _release_in_child() -> None:
    for run in list(_locked):
        run.release()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_release_in_child)


def _empty(path: Path) -> bool:
    """Tell whether there is nothing at a path but what a process leaves that is killed while it makes a run."""
    return not path.exists() or (path.is_dir() and {entry.name for entry in path.iterdir()} <= _BEGINNINGS)


def _refuse_existing(path: Path) -> None:
    if not _empty(path):
        raise RunError(
            f"The run directory {path} exists already and is kept as it is. Choose another output_dir, remove it, "
            "or continue it with `--resume`."
        )


def _versions() -> dict[str, Any]:
    versions = {name: _version(name) for name in _PACKAGES}
    return {**versions, "python": platform.python_version(), "machine": platform.machine(), "cpus": os.cpu_count()}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
