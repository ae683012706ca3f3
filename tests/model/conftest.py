"""Every family in turn, a policy that a test may change, and the embedded model."""

from pathlib import Path

import peft
import pytest

from leaf.model.demo import build_base_model
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


@pytest.fixture(scope="session")
def base_model_dir():
    """Return the checkpoint below build/ of this repository; it is built there once, then kept."""
    return build_base_model(Path(__file__).parents[2] / "build/base-model")
