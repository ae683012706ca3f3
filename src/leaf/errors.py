"""The errors that leaf raises on purpose. They share a base class, and each also inherits the standard type."""

import difflib
import reprlib
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class LeafError(Exception):
    """Base class of every error raised on purpose. Its message says what came, what is allowed, and what to do.

    Attributes:
        exit_code: the exit code of the command `leaf` after this error.
    """

    exit_code = 2


class ConfigError(LeafError, ValueError):
    """A recipe or an argument has an unknown name, a wrong type or a value out of range."""


class CodeRefused(ConfigError):
    """A command that only looks would have run code that a recipe names."""


class NotRecorded(ConfigError):
    """A credit rule reads something of the rollout that nobody recorded.

    Attributes:
        what: "surprisal" or "entropy".
    """

    def __init__(self, message: str, *, what: str = "surprisal"):
        super().__init__(message)
        self.what = what


class DataError(LeafError, ValueError):
    """A data set, manifest or row cannot be used as it is."""


class MissingFiles(DataError):
    """Rows of a data set name audio files that are not there."""


class AudioError(DataError):
    """A recording is missing, unreadable, empty or not a usable waveform."""


class ModelError(LeafError, RuntimeError):
    """A model's checkpoint cannot be used for this job, or a start-up check on it failed."""


class RewardError(LeafError, RuntimeError):
    """A reward function failed or returned something that is not one number per completion."""


class JudgeError(LeafError, RuntimeError):
    """The endpoint of an LLM judge refused a request, or gave no usable answer after all retries."""


class RunError(LeafError, RuntimeError):
    """A run directory exists already, is missing or is damaged."""


class RunInterrupted(LeafError, RuntimeError):
    """A run was saved and ended, for a signal or a server that stays away; `--resume` continues as if nothing had been.

    Its exit code is 75, EX_TEMPFAIL of sysexits.h, "try again later". So a scheduler can tell it from a failure (1, 2)
    and from a process that was killed and saved nothing (128 + signal).
    """

    exit_code = 75


class Unavailable(RunError):
    """What a run depends on, such as a server, does not answer for now: nothing is wrong with the run itself."""


def did_you_mean(given: object, allowed: Iterable[str]) -> str:
    """Name the allowed word that is closest to a mistyped one: " Did you mean 'seed'?", or "" where none is close."""
    typed = str(given)[:80]  # cut: the search takes quadratic time
    close = difflib.get_close_matches(typed, [*allowed], n=3)
    close.sort(key=lambda word: sorted(word) != sorted(typed))  # two letters swapped are likelier than another word
    return f" Did you mean {close[0]!r}?" if close else ""


def install_extra(name: str) -> str:
    """Say how to install an optional extra of leaf, which is not on PyPI yet."""
    return f"pip install '.[{name}]' in leaf's clone"


def some_of(names: Sequence[str]) -> str:
    """List the first three of some names, as a message shows them."""
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def shown(value: Any) -> str:
    """Write a value as an error message shows it: like repr, but never long."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict, short.maxstring, short.maxother = 3, 8, 8, 300, 120
    return short.repr(value)


def raised_at(error: BaseException) -> str:
    """Say where the user's own code raised: " (my_rewards.py, line 3, in polite: `return 1 / len(text)`)".

    That is the deepest frame which is neither of leaf nor of Python or an installed package; "" if there is none.
    """
    foreign = [Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib"))]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if frame.filename.startswith("<frozen") or any(file.is_relative_to(folder) for folder in foreign):
            continue
        shown_file = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
        code = f": `{frame.line[:120]}`" if frame.line else ""
        return f" ({shown_file}, line {frame.lineno}, in {frame.name}{code})"
    return ""
