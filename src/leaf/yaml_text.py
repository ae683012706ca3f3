"""YAML as recipes use it: without code, and without a key given twice."""

from typing import Any

import yaml

from leaf.errors import ConfigError, shown
from leaf.text import fold_whitespace


class _Loader(yaml.SafeLoader):
    """YAML without code, as PyYAML's safe loader reads it, that also refuses a key given twice."""

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


def parse_yaml(text: str, what: str) -> Any:
    """Parse YAML.

    Args:
        text: the YAML.
        what: the name of it in a message.

    Raises:
        ConfigError: it is no YAML, or a key is given twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of what looks like a date and is none
        raise ConfigError(f"Cannot parse {what} as YAML: {fold_whitespace(str(error))[:500]}.") from error
