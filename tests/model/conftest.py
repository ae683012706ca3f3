"""Every family in turn."""

import pytest

from tests.helpers.families import CASES


@pytest.fixture(params=CASES, ids=lambda case: case.replace(" ", "-"))
def case(request):
    return request.param
