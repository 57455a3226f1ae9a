"""Wait until rollout servers are well: `python launch/wait_for_servers.py --timeout-s 900 -- http://127.0.0.1:8001`.

Ends with status 1, and says of which server it is and why, when the time is over or when one of `--pids`, the servers'
processes, has ended.
"""

import argparse
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

PROBE_TIMEOUT_S = 5.0
PAUSE_S = 0.5


def what_is_wrong(url: str) -> str:
    """Empty where the server answers its health check."""
    try:
        # addresses given by the user; no proxy stands between machines of one cluster
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{url}/health", timeout=PROBE_TIMEOUT_S):
            return ""
    except urllib.error.HTTPError as error:
        return f"health check answered with status {error.code}"
    except (OSError, ValueError) as error:
        return f"no answer ({error})"


def has_ended(pid: int) -> bool:
    """Whether there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_for(urls: Sequence[str], pids: Sequence[int], timeout_s: float) -> str:
    """Empty when all servers are well, else the reason why not."""
    deadline = time.monotonic() + timeout_s
    while True:
        wrong = {url: reason for url in urls if (reason := what_is_wrong(url))}
        if not wrong:
            return ""
        if ended := [pid for pid in pids if has_ended(pid)]:
            return f"a server's process ended before it was well: {', '.join(map(str, ended))}"
        if time.monotonic() > deadline:
            return "\n".join(f"{url} is not well after {timeout_s:g} s: {reason}" for url, reason in wrong.items())
        time.sleep(PAUSE_S)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--timeout-s", type=float, default=900.0)
    parser.add_argument("--pids", type=int, nargs="*", default=[], help="the servers' processes, where they are here")
    parser.add_argument("urls", nargs="+", metavar="URL")
    arguments = parser.parse_args()
    started = time.monotonic()
    if reason := wait_for(arguments.urls, arguments.pids, arguments.timeout_s):
        sys.exit(f"[launch] {reason}")
    print(f"[launch] {len(arguments.urls)} server(s) well after {time.monotonic() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
