"""Options that map names, given as `left=right` and repeated."""

from typing import Annotated

import typer

from leaf.errors import DataError

Columns = Annotated[list[str] | None, typer.Option(help="ours=theirs, e.g. reference=answer; may be repeated")]


def pairs(option: str, given: list[str] | None, form: str) -> dict[str, str]:
    """Return the names that a repeated option maps."""
    mapped = {left: right for left, _, right in (one.partition("=") for one in given or [])}
    if not all(mapped) or not all(mapped.values()):
        raise DataError(f"{option} came as {', '.join(given or [])}; give {form}.")
    return mapped
