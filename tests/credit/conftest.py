import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Switch shape annotations off, to meet the library's own errors as a user would."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
