"""Servers end with whoever started them, and say when they answer; a small web server stands in for the slow one."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leaf.engines.vllm import launch
from leaf.errors import ConfigError

WEB = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]
PARENT = """
import sys, time
from pathlib import Path
from leaf.engines.vllm.launch import running
with running(sys.argv[2:], int(sys.argv[1]), Path("log")) as url:
    print(url, flush=True)
    time.sleep(60)
"""


def listens(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition, seconds=10.0):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_a_server_ends_with_the_process_that_started_it(tmp_path):
    (tmp_path / "health").touch()
    port = launch.free_port()
    command = [sys.executable, "-c", PARENT, str(port), *WEB, str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().strip() == f"http://127.0.0.1:{port}"
        assert listens(port)
        os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: not listens(port))


def test_a_server_that_ends_by_itself_is_said(tmp_path):
    command = [sys.executable, "-c", "print('no room'); raise SystemExit(3)"]
    with (
        pytest.raises(launch.RunError, match=r"ended with 3\. The end of its log .*\nno room"),
        launch.running(command, launch.free_port(), tmp_path / "log"),
    ):
        pass


def test_a_port_in_use_is_said_in_a_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"on port {port} of 127\.0\.0\.1: Address already in use\. .*--port"):
            launch.check_port("127.0.0.1", port)
    launch.check_port("127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"of 192\.0\.2\.77: Cannot assign requested address"):
        launch.check_port("192.0.2.77", port)


def test_a_line_says_when_the_server_answers(tmp_path):
    """The watcher's parent becomes the server, as `leaf serve` does; without a server it ends with its parent."""
    (tmp_path / "health").touch()
    port = launch.free_port()
    becoming = "import os, sys; from leaf.engines.vllm.launch import saying_when_ready; "
    becoming += f"saying_when_ready('0.0.0.0', {port}); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", becoming, *WEB, str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert "the server answers" in next(line for line in server.stdout if "answers" in line)
        server.terminate()
    late = [sys.executable, str(Path(launch.__file__).with_name("ready.py")), "1", f"http://127.0.0.1:{port}"]
    assert subprocess.run(late, capture_output=True, text=True, timeout=20).stdout == ""
