"""A policy and rows that it can be evaluated on."""

import pytest

from leaf.model.policy import Policy
from tests.helpers import tiny


@pytest.fixture(scope="session")
def policy():
    """A tiny policy without adapters; no test may leave it changed."""
    model, processor = tiny.tiny_model()
    return Policy.wrap(model, processor)


@pytest.fixture
def rows():
    return [{**row, "text": row["reference"]} for row in tiny.rows(4)]
