"""Settings of the whole suite. The import hook must stand before anything imports leaf."""

import os
from pathlib import Path

import jaxtyping

# Shapes in these modules are checked in tests only; users pay nothing for the annotations.
CHECKED = ["leaf.credit", "leaf.model.attention", "leaf.model.children", "leaf.model.head", "leaf.model.packing"]
jaxtyping.install_import_hook(CHECKED, "beartype.beartype")

# The embedded model is assembled in the checkout, where `make clean` removes it, not in the home of who runs the tests.
os.environ["LEAF_CACHE"] = str(Path(__file__).parents[1] / "build")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def policy():
    """A tiny policy for tests that leave it as it is; those that train one make their own."""
    # Imported here, since transformers takes seconds and most tests of leaf.credit do without it.
    import peft

    from leaf.model.policy import Policy
    from tests.helpers import tiny

    return Policy.wrap(*tiny.tiny_model(), lora=peft.LoraConfig(r=2))
