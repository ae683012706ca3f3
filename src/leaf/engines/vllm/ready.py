"""Say when a server answers. `leaf serve` becomes the server, so another program has to look.

    python ready.py PARENT URL

It ends once it has said so, or with its parent. Nothing of leaf is imported, so that it starts at once.
"""

import os
import sys
import time
import urllib.error
import urllib.request


def main() -> None:
    """Ask the server once a second until it answers."""
    parent, url = int(sys.argv[1]), sys.argv[2]
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while os.getppid() == parent:
        try:
            with direct.open(f"{url}/health", timeout=5.0):
                print(f"leaf: the server answers at {url}", flush=True)
            return
        except (OSError, urllib.error.URLError):
            time.sleep(1.0)


if __name__ == "__main__":
    main()
