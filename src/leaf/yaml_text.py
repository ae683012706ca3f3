"""Read YAML that may come from somebody else: no code, no key twice, and no more than a recipe can need."""

import stat
from pathlib import Path
from typing import Any

import yaml

from leaf.errors import ConfigError, shown
from leaf.text import fold_whitespace

LARGEST = 2**20  # bytes of a file; a recipe has a few thousand
_VALUES = 100_000  # of a document once its aliases are written out


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        ConfigError: it is no regular file, too large, not in UTF-8, or no YAML; OSError: it is not there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ConfigError(f"{path} is not a regular file. Give the file of a recipe.")
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ConfigError(f"{path} is larger than 1 MiB, so it is no recipe. Give the file of a recipe.")
    try:
        return parse_yaml(content.decode("utf-8"), f"the recipe {path.name}")
    except UnicodeDecodeError as error:
        raise ConfigError(f"The recipe {path} cannot be read: {error}. Save it in UTF-8.") from error


def parse_yaml(text: str, what: str) -> Any:
    """Parse YAML; `what` names it in messages.

    Raises:
        ConfigError: it is no YAML, or holds too much.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of what looks like a date and is none
        raise ConfigError(f"Cannot parse {what} as YAML: {fold_whitespace(str(error))[:500]}.") from error
    except RecursionError:
        raise ConfigError(f"Cannot parse {what} as YAML: it is nested too deeply.") from None


class _Loader(yaml.SafeLoader):
    """YAML without code, as PyYAML's safe loader reads it, that also refuses a key given twice."""

    def get_single_node(self) -> Any:
        """Compose the document; a few aliases of aliases would stand for more values than fit into memory."""
        node = super().get_single_node()
        if node is not None and _size(node, {}) > _VALUES:
            raise yaml.YAMLError(f"its aliases stand for over {_VALUES} values")
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; PyYAML would silently take the last of two equal keys."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":  # merged keys are there to be overridden
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {shown(key.value)} is there twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def _size(node: Any, known: dict[int, int]) -> int:
    """Count the values of a node with its aliases written out; a node within itself has more than any."""
    if id(node) not in known:
        known[id(node)] = _VALUES + 1  # until it is known
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for pair in inner for part in (pair if isinstance(pair, tuple) else [pair])]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]
