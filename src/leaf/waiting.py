"""Run coroutines from plain code and wait for what they return.

One event loop in a thread of its own serves the whole process. What a coroutine opens (a connection, a session) belongs
to the loop it ran on, so a second loop could not use it in a later call.
"""

import asyncio
import threading
from collections.abc import Awaitable
from functools import cache
from typing import TypeVar

T = TypeVar("T")


def wait_for(awaitable: Awaitable[T]) -> T:
    """Run a coroutine to its end and give what it returns; it also works where an event loop runs already."""

    async def awaited() -> T:
        return await awaitable

    future = asyncio.run_coroutine_threadsafe(awaited(), _event_loop())
    try:
        return future.result()
    except BaseException:  # Ctrl-C while we wait: the coroutine must not run on without us
        future.cancel()
        raise


@cache
def _event_loop() -> asyncio.AbstractEventLoop:
    """Start the loop; its thread ends with the process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="leaf-waiting", daemon=True).start()
    return loop
