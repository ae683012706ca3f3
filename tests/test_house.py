"""The rooms of src/leaf: imports run one way, and modules and functions stay short enough to read at once."""

import ast
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import leaf

SOURCE = Path(leaf.__file__).parent
# In the order of the way through the house. `ground` is what has no folder.
FLOORS = "ground credit data model rewards runs engines evaluation train report commands".split()


LINES, FUNCTION_LINES = 400, 60
# What is still longer. An entry that is no longer needed fails the test, so that these sets only shrink.
LONG_MODULES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()


def sources():
    """Yield (path in src/leaf, text) of every module."""
    for file in sorted(SOURCE.rglob("*.py")):
        yield file.relative_to(SOURCE).as_posix(), file.read_text(encoding="utf-8")


def imports():
    """Yield (module, module it imports), both as dotted names, imports inside functions too."""
    modules = {".".join(file.relative_to(SOURCE.parent).with_suffix("").parts): file for file in SOURCE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): file for name, file in modules.items()}
    for name, file in modules.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                found = [one if one in modules else node.module for one in inner]
            else:
                continue
            yield from ((name, one) for one in found if one in modules)


def room(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else "ground"


def test_a_room_imports_only_from_the_rooms_before_it():
    entrances = ("leaf", "leaf.__main__")  # they lead into the house
    up = [
        f"{one} imports {other}"
        for one, other in imports()
        if one not in entrances and FLOORS.index(room(other)) > FLOORS.index(room(one))
    ]
    assert up == []


def test_no_two_modules_import_each_other():
    graph: dict[str, set[str]] = {}
    for one, other in imports():
        if one != other and not one.startswith(f"{other}."):  # a package is imported with every module in it
            graph.setdefault(one, set()).add(other)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_module_is_longer_than_400_lines():
    assert {path for path, text in sources() if len(text.splitlines()) > LINES} == LONG_MODULES


def test_no_function_is_longer_than_60_lines():
    long = {
        f"{path}:{node.name}"
        for path, text in sources()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES  # from `def` on, decorators left out
    }
    assert long == LONG_FUNCTIONS


def test_every_file_beside_the_code_is_in_the_package():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["leaf"]
    files = [file for file in SOURCE.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")]
    assert [file.name for file in files if file.name not in patterns and f"**/*{file.suffix}" not in patterns] == []
