import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Switch shape annotations off, so that the library's own errors come, as they do for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
