"""Waiting in the browser for what holds, not for a time: the limit is for what never holds, also on a busy machine."""

import time

LIMIT = 60  # seconds


def until(tab, condition):
    """Wait for a condition of the page, as JavaScript.

    Playwright's own `wait_for_function` evaluates text inside the page, which its policy forbids.
    """
    limit = time.monotonic() + LIMIT
    while not tab.evaluate(condition):
        assert time.monotonic() < limit, condition
        tab.wait_for_timeout(20)
