"""What the pages show: their text, code blocks, tables and commands."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "benchmarks/notebooks").glob("*.md"))


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return code_blocks(DOCS / page, language)


def code_blocks(file: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", file.read_text(encoding="utf-8"), flags=re.S)


def tables(page: str) -> list[list[str]]:
    """Rows of every table of a page, as lists of cells."""
    lines = re.findall(r"^\|(.+)\|$", text(page), flags=re.M)
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]


def commands() -> Iterator[tuple[str, str]]:
    """Every `leaf ...` line of the indented blocks of README and docs, launched or not, with $P as the pages set it."""
    for page in [ROOT / "README.md", *PAGES]:
        for line in page.read_text(encoding="utf-8").splitlines():
            found = re.match(r"    (?:(?:torchrun|accelerate launch) .*-m |srun )?(leaf .*)$", line)
            if found:
                yield page.name, found[1].replace("$P/", "recipes/published/")
