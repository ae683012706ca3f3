"""Import the user's own Python: reward functions by import path, and modules that a recipe names as plugins.

A recipe may come from somebody else. Commands that only look (report, tree, doctor) refuse its code inside
`code_refused`, unless the user trusts it.
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from leaf.errors import CodeRefused, ConfigError, raised_at
from leaf.files import file_mark

_allowed: ContextVar[bool] = ContextVar("allowed", default=True)
_read: dict[str, bytes] = {}  # file → its text when it was run


@contextmanager
def code_refused(refuse: bool = True) -> Iterator[None]:
    """Refuse the code of recipes and of checkpoints inside the block."""
    before = _allowed.set(not refuse)
    try:
        yield
    finally:
        _allowed.reset(before)


def code_allowed() -> bool:
    """Tell whether the code of a recipe or of a checkpoint may run here."""
    return _allowed.get()


def load_plugins(names: Iterable[str]) -> None:
    """Import modules or Python files for what they register.

    Raises:
        ConfigError: one cannot be imported.
    """
    for name in names:
        try:
            import_module(name)
        except CodeRefused:
            raise
        except (Exception, SystemExit) as error:  # the user's module may raise anything
            raise ConfigError(
                f"The plugin {name!r} cannot be imported ({type(error).__name__}: {error}){raised_at(error)}; give the "
                "path of a file, or a module that Python finds."
            ) from error


def code_mark(thing: Any) -> str | None:
    """Name the file that a function, object or module is from, with the start of its SHA-256; None if there is none."""
    while isinstance(thing, partial):
        thing = thing.func
    thing = inspect.unwrap(thing) if callable(thing) else thing
    for one in (thing, type(thing)):  # an object has no file of its own; its class has one
        with suppress(TypeError, OSError):  # built in, or typed in
            file = inspect.getsourcefile(one)
            if file is not None and Path(file).is_file():
                return file_mark(Path(file))
    return None


def import_module(name: str) -> ModuleType:
    """Import a module by name, or a file by a path that ends in .py; a file is run once, and again once it changed.

    Raises:
        CodeRefused: no code may run here.
    """
    if not code_allowed():
        raise CodeRefused(
            f"{name} is code that the recipe names, and this command does not run it by itself. Read it, and give "
            "--trust to run it."
        )
    if not name.endswith(".py"):
        return importlib.import_module(name)
    file = str(Path(name).expanduser().resolve())
    text = Path(file).read_bytes()
    # Two functions of one file share its state. In a notebook a file may have been corrected after a run failed.
    if file in sys.modules and _read.get(file) == text:
        return sys.modules[file]
    spec = importlib.util.spec_from_file_location(file, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    _read[file] = text
    sys.modules[file] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[file]
        raise
    return module
