"""The recipes that come with leaf. A command finds them by the names `recipes/...` from any folder."""

import os
from pathlib import Path

from leaf.errors import did_you_mean

FOLDER = Path(__file__).parent / "recipes"


def shipped_recipes() -> list[str]:
    """List the recipes that come with leaf, by the names that commands and `extends` take."""
    found = (file.relative_to(FOLDER.parent) for file in FOLDER.rglob("*.yaml"))
    return sorted(str(file) for file in found if "accelerate" not in file.parts)  # those are not leaf's recipes


def find_recipe(path: str | Path, folder: str | Path = "") -> Path:
    """Find a recipe: the user's file, or else the one of that name that comes with leaf.

    Args:
        path: as the user gave it; a leading `~` is the home.
        folder: what a relative path is relative to.
    """
    wanted = Path(path).expanduser()
    own = Path(folder) / wanted
    shipped = FOLDER.parent / wanted
    return shipped if not os.path.exists(own) and str(wanted) in shipped_recipes() else own


def recipe_meant(path: Path) -> str:
    """Say which recipe may be meant by a file that does not exist, and how to write one."""
    if os.path.exists(path):  # unlike Path's, it also takes a name that is too long
        return ""
    close = did_you_mean("/".join(path.parts[-2:]), shipped_recipes())
    return close or f" `leaf recipe rl > {path.name}` writes one to begin with."
