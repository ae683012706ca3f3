"""Which rows a step gets: the same for a seed as ever, at a cost that does not grow with their number."""

import random

import pytest

from leaf.data.rows import batch_indices, shuffled


def by_shuffling_every_time(num_rows, batch_size, step, seed):
    """Take a batch out of all epochs laid end to end."""
    order = []
    for epoch in range((step + 1) * batch_size // num_rows + 1):
        rows = list(range(num_rows))
        random.Random(f"{seed}/{epoch}").shuffle(rows)
        order += rows
    return order[step * batch_size : (step + 1) * batch_size]


@pytest.mark.parametrize(("num_rows", "batch_size"), [(1, 3), (7, 2), (7, 7), (5, 12), (100, 8)])
def test_a_step_gets_the_rows_of_its_place_in_the_epochs(num_rows, batch_size):
    for step in (0, 1, 2, 13):
        expected = by_shuffling_every_time(num_rows, batch_size, step, 5)
        assert batch_indices(num_rows, batch_size, step, 5) == expected


def test_an_epoch_is_shuffled_once():
    shuffled.cache_clear()
    steps = [batch_indices(1000, 4, step, 0) for step in range(250)]
    assert sorted(row for rows in steps for row in rows) == list(range(1000))
    assert shuffled.cache_info().misses == 1
