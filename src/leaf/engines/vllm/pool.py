"""Share work among servers: each takes what is next, and what one of them loses, another one does.

Nothing is lost when a server dies: its prompts go back to the others. Where all are gone, the work waits for one to
come back, up to a bound.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from leaf.engines.vllm.client import Lost, Server
from leaf.errors import Unavailable

S = TypeVar("S")
T = TypeVar("T")
_LOOK_EVERY = 1.0  # seconds between two looks whether a server is back


class Work(Generic[S, T]):
    """One batch of tasks for some servers.

    Args:
        servers: do the work.
        action: does a task on a server, or raises `Lost`.
        concurrency: tasks at a time at each server.
        wait_s: how long to wait when all servers are gone.
        say: takes a line when a server goes or comes back.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        action: Callable[[Server, S], T],
        *,
        concurrency: int,
        wait_s: float,
        say: Callable[[str], None],
    ):
        self.servers, self.action, self.concurrency = servers, action, concurrency
        self.wait_s, self.say = wait_s, say
        self._changed = threading.Condition()
        self._waiting: deque[int] = deque()
        self._done: dict[int, T] = {}
        self._gone: dict[Server, str] = {}  # and why
        self._alone_since: float | None = None  # when the last server went
        self._error: BaseException | None = None

    def run(self, tasks: Sequence[S], interrupt: Callable[[], None] = lambda: None) -> list[T]:
        """Do all tasks and give their results in order.

        Args:
            tasks: what is to be done.
            interrupt: called about once a second; what it raises ends the work.

        Raises:
            Unavailable: no server came back in time.
            RunError: one refused a task.
        """
        self._waiting.extend(range(len(tasks)))
        # Threads of the process, not of a pool: where the work ends early, nobody waits for requests still out.
        for server in self.servers:
            for _ in range(min(self.concurrency, len(tasks))):
                threading.Thread(target=self._serve, args=(server, tasks), name="leaf-sampler", daemon=True).start()
        try:
            with self._changed:
                while self._error is None and len(self._done) < len(tasks):
                    self._changed.wait(1.0)
                    interrupt()
        except BaseException as error:
            self._fail(error)
            raise
        if self._error is not None:
            raise self._error
        return [self._done[i] for i in range(len(tasks))]

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _serve(self, server: Server, tasks: Sequence[S]) -> None:
        """Do tasks on a server until all are done."""
        while (number := self._next(server, len(tasks))) is not None:
            try:
                result = self.action(server, tasks[number])
            except Lost as lost:
                self._put_back(server, number, str(lost))
            except BaseException as error:  # raised again by `run`, in the caller's thread
                self._fail(error)
            else:
                with self._changed:
                    self._done[number] = result
                    self._changed.notify_all()

    def _next(self, server: Server, count: int) -> int | None:
        """Wait for a task that this server may take; None when there will be none."""
        while True:
            with self._changed:
                if self._error is not None or len(self._done) == count:
                    return None
                if server not in self._gone and self._waiting:
                    return self._waiting.popleft()
                gone = server in self._gone
                if not gone:
                    self._changed.wait(_LOOK_EVERY)
            if gone:
                self._look_again(server)

    def _put_back(self, server: Server, number: int, why: str) -> None:
        with self._changed:
            self._waiting.appendleft(number)
            if server not in self._gone:
                self._gone[server] = why
                left = len(self.servers) - len(self._gone)
                self.say(
                    f"the server {server.url} is gone ({why}); its prompts "
                    + (f"go to the other {left}" if left else f"wait up to {self.wait_s:g} s for it")
                )
                if not left:
                    self._alone_since = time.monotonic()
            self._changed.notify_all()

    def _look_again(self, server: Server) -> None:
        """Look whether a server that was gone is back, and give up where all have been gone for too long."""
        if server.answers():
            with self._changed:
                if self._gone.pop(server, None) is not None:
                    self._alone_since = None
                    self.say(f"the server {server.url} is back")
                self._changed.notify_all()
            return
        with self._changed:
            since, why = self._alone_since, self._gone.get(server, "")
        if since is not None and time.monotonic() - since > self.wait_s:
            urls = ", ".join(one.url for one in self.servers)
            self._fail(
                Unavailable(f"No server answered for {self.wait_s:g} s, so start one again ({urls}; last: {why})")
            )
            return
        time.sleep(_LOOK_EVERY)
