"""A run that nothing interrupts, and processes that can be killed, for all tests of this room."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from tests.helpers import resume_worker as worker
from tests.helpers.resuming import finish


@pytest.fixture(scope="session")
def fork():
    """Return a function that starts `function(*arguments)` in a fresh child with torch and the tiny model at hand."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.resume_worker"])
    children = []

    def start(function, *arguments):
        child = context.Process(target=function, args=arguments)
        child.start()
        children.append(child)
        return child

    # The process to fork from starts with the first child and keeps the environment that it finds then. It takes its
    # path from there, not from pytest. The first child waits for the imports, so that no test's time contains them.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONWARNINGS", "ignore")
        start(os.getpid).join()
    yield start
    for child in children:
        child.kill()
        child.join()
        child.close()


@pytest.fixture(scope="session")
def whole(fork, tmp_path_factory):
    """The run that nothing interrupts, and the seconds it took."""
    path = tmp_path_factory.mktemp("whole") / "run"
    began = time.perf_counter()
    finish(fork(worker.train, worker.recipe(path)))
    return path, time.perf_counter() - began
