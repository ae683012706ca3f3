"""Servers that die while they work: threads and queues are real, a server is an object that raises when it is down."""

import threading
import time
from typing import Any

import pytest

from leaf.engines.vllm.client import Lost
from leaf.engines.vllm.pool import Work
from leaf.errors import RunError, Unavailable


class Dying:
    """A server that goes after some tasks, and comes back when it is asked often enough."""

    def __init__(self, url, *, dies_after=None, back_after=None):
        self.url, self.left, self.back_after = url, dies_after, back_after
        self.done, self.lock = [], threading.Lock()

    def answers(self):
        if self.back_after is None:
            return False
        self.back_after -= 1
        if self.back_after <= 0:
            self.left = None
        return self.back_after <= 0

    def work(self, task):
        with self.lock:
            if self.left == 0:
                raise Lost("connection refused")
            if self.left is not None:
                self.left -= 1
            self.done.append(task)
        time.sleep(0.002)
        return task * 10


def run(servers, count=30, *, wait_s=5.0, interrupt=lambda: None):
    said = []
    given: Any = servers
    work = Work(given, lambda server, task: server.work(task), concurrency=3, wait_s=wait_s, say=said.append)  # type: ignore[attr-defined]
    return work.run(range(count), interrupt), said


def test_all_servers_take_part_and_results_come_in_order():
    servers = [Dying("http://a"), Dying("http://b")]
    results, said = run(servers)
    assert results == [i * 10 for i in range(30)]
    assert all(server.done for server in servers)
    assert said == []


def test_what_a_dying_server_loses_the_others_do():
    servers = [Dying("http://a", dies_after=3), Dying("http://b")]
    results, said = run(servers)
    assert results == [i * 10 for i in range(30)]
    assert sorted(servers[0].done + servers[1].done) == list(range(30))  # nothing twice, nothing lost
    assert said == ["the server http://a is gone (connection refused); its prompts go to the other 1"]


def test_where_all_are_gone_the_work_waits_for_one_to_come_back(monkeypatch):
    monkeypatch.setattr("leaf.engines.vllm.pool._LOOK_EVERY", 0.01)
    servers = [Dying("http://a", dies_after=3, back_after=4)]
    results, said = run(servers)
    assert results == [i * 10 for i in range(30)]
    assert [line.split(" ")[-1] for line in said] == ["it", "back"]


def test_the_wait_has_an_end(monkeypatch):
    monkeypatch.setattr("leaf.engines.vllm.pool._LOOK_EVERY", 0.01)
    servers = [Dying("http://a", dies_after=3), Dying("http://b", dies_after=2)]
    with pytest.raises(Unavailable, match=r"No server answered for 0\.1 s, so start one .*\(http://a, http://b; last"):
        run(servers, wait_s=0.1)


def test_an_error_of_a_task_and_an_interruption_end_the_work():
    class Wrong(Dying):
        def work(self, task):
            raise RunError("refused")

    with pytest.raises(RunError, match="refused"):
        run([Wrong("http://a")])

    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([Dying("http://a")], count=3000, interrupt=interrupt)
