"""The tree explorer of runs, as a section and as a page."""

from leaf.report.explorer import explorer_section
from leaf.report.page import page


def drawn(runs, **options):
    """Return the explorer's section, which has something to show."""
    section = explorer_section(runs, **options)
    assert section is not None
    return section


def html(*runs, **options):
    return page("a run", [drawn(runs, **{"audio": False, **options})])
