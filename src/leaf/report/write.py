"""Write the report: one HTML file of one or several runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from leaf.config import LeafConfig
from leaf.files import write_text
from leaf.report.audio import SECTION_BYTES
from leaf.report.curves import curves_section
from leaf.report.evaluation import evaluation_section
from leaf.report.explorer import TEXT_BYTES, explorer_section
from leaf.report.forks import forks_section
from leaf.report.page import page
from leaf.report.runs import read_runs

PAGE_BYTES = 4_800_000  # of the whole page, so that it stays below 5 MB
ROOM_BYTES = 300_000  # the explorer has at least this much, however many runs there are


def write_report(
    runs: Sequence[str | Path], output: str | Path, *, predictions: Sequence[str | Path] = (), audio: bool = True
) -> Path:
    """Write one self-contained HTML file, and return its path.

    Args:
        runs: run directories of any stage; several may be seeds of one method.
        output: the file; an older report is replaced.
        predictions: further prediction files or folders for the evaluation section.
        audio: add recordings to the page.

    Raises:
        RunError: a run cannot be read, or the file cannot be written.
        ConfigError: the extra `report` is not installed.
    """
    shown = read_runs(runs)
    forks, notes = forks_section(shown)
    evaluation = evaluation_section([run.directory for run in shown], predictions, audio=audio)
    # The explorer can show fewer groups, so it gets the room that the other sections leave.
    curves = curves_section(shown)
    others = [each for each in (curves, forks, evaluation) if each is not None]
    room = max(PAGE_BYTES - len(page("", others).encode()), ROOM_BYTES)
    trained = [run for run in shown if isinstance(run.recipe, LeafConfig)]
    trees = explorer_section(
        [run.directory for run in trained],
        names=[run.name for run in trained],
        audio=audio,
        text_bytes=min(TEXT_BYTES, room // 2),
        audio_bytes=min(SECTION_BYTES, room // 2),
    )
    if trees is None:
        notes.append("No run recorded groups, so there are no trees and no forks. Set record_every in the recipe.")
    if evaluation is None:
        notes.append("No predictions were found. leaf evaluate writes them, and --predictions says where they are.")
    curves = replace(curves, data={**curves.data, "notes": notes})
    sections = [curves, *(each for each in (trees, forks, evaluation) if each is not None)]
    names = [run.name for run in shown]
    title = f"leaf: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    write_text(Path(output), page(title, sections))
    return Path(output)
