"""A line when something long begins, and one every half minute."""

import threading

import pytest

from leaf import progress
from leaf.progress import Busy


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.01)


def heard(busy, said, count):
    """Wait until so many lines have been said inside the block."""
    enough = threading.Event()

    def say(line):
        said.append(line)
        if len(said) == count:
            enough.set()

    busy.say = say
    with busy:
        busy.add(3)
        assert enough.wait(10)


def test_a_line_at_once_and_then_one_after_the_other_with_the_count(quick):
    said = []
    heard(Busy(said.append, "scoring 9 rows", 9), said, 3)
    assert said[0] == "scoring 9 rows"
    assert said[1].startswith("scoring 9 rows: ")
    assert said[2] == "scoring 9 rows: 3 of 9, 0 s"


def test_what_is_mostly_short_says_nothing_at_first(quick):
    said = []
    with Busy(said.append, "checking", quiet=True):
        pass
    assert said == []
    heard(Busy(said.append, "checking", quiet=True), said, 1)
    assert said[0] == "checking: 0 s"


def test_no_line_comes_after_the_end_nor_after_an_error(quick):
    said = []
    with pytest.raises(KeyError), Busy(said.append, "reading"):
        raise KeyError
    before = [*said]
    threading.Event().wait(0.05)
    assert said == before


def test_a_closed_pipe_ends_the_lines_and_not_the_work(quick):
    asked = threading.Event()

    def closed(line):
        asked.set()
        raise BrokenPipeError

    with Busy(closed, "reading", quiet=True) as busy:
        assert asked.wait(10)
        busy._thread.join(10)
        assert not busy._thread.is_alive()
