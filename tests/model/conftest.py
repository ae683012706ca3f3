"""Every family in turn, and a policy that a test may change."""

import peft
import pytest

from leaf.model.policy import Policy
from tests.helpers import tiny
from tests.helpers.families import CASES
from tests.helpers.policies import LORA


@pytest.fixture(params=CASES, ids=lambda case: case.replace(" ", "-"))
def case(request):
    return request.param


@pytest.fixture
def policy():
    model, processor = tiny.tiny_model()
    return Policy.wrap(model, processor, lora=peft.LoraConfig(**LORA), temperature=0.7)
