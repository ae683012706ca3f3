"""The rooms of src/leaf: a room imports only from those before it, and no two modules import each other."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import leaf

SOURCE = Path(leaf.__file__).parent
# In the order of the way through the house. `ground` is what has no folder.
FLOORS = ("ground", "credit", "data", "model", "rewards", "runs", "evaluation", "train", "report", "commands")


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
