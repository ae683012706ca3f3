"""Run a server and end it when the process that wanted it is gone, whatever ended that one.

    python guard.py PARENT COMMAND ...

A server of vLLM is several processes in a session of its own, so nobody ends them for a parent that was killed. This
program leads that session. It ends as the server does. Nothing of leaf is imported, so that it starts at once.
"""

import os
import signal
import subprocess
import sys
import time

_EVERY, _PATIENCE = 0.5, 20.0  # seconds between two looks, and those that a server has to end by itself


def main() -> int:
    """Start the command, and wait for its end or the parent's."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, lambda *_: None)  # the server gets it, too, and its end is this program's
    server = subprocess.Popen(command)
    while server.poll() is None and os.getppid() == parent:
        time.sleep(_EVERY)
    if server.poll() is None:
        os.killpg(0, signal.SIGTERM)
        began = time.monotonic()
        while server.poll() is None and time.monotonic() - began < _PATIENCE:
            time.sleep(_EVERY)
        os.killpg(0, signal.SIGKILL)  # with whatever else of it is left
    return server.returncode


if __name__ == "__main__":
    sys.exit(main())
