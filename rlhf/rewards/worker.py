"""A grading worker: `python -m rlhf.rewards.worker module:function`. Reads tasks from stdin, writes verdicts to stdout.

One JSON value a line: in, a list of tasks; out, one verdict for each task as soon as it is known. JSON escapes keep
lone surrogates whole. An exception ends the process, and the parent reports it for the task at hand.
"""

import json
import os
import sys
import threading
import time
from dataclasses import asdict
from importlib import import_module

MEMORY_LIMIT_BYTES = 2 * 1024**3
"""Address space of a worker; a task that needs more ends this worker, not the training process."""


def main(function_path: str, parent: int) -> None:
    """Serve until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # a print in a grading function must not look like a reply
    _limit_memory()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    module, _, name = function_path.partition(":")
    function = getattr(import_module(module), name)
    if "rlhf.rewards.numeric" in sys.modules:
        import_module("mpmath.libmp")  # needed by the first irrational answer; its import must not count for that task
    replies.write('"ready"\n')
    replies.flush()
    for line in sys.stdin.buffer:
        for task in json.loads(line):
            replies.write(json.dumps(asdict(function(task))) + "\n")
            replies.flush()


def _limit_memory() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def _end_with(parent: int) -> None:
    """A worker stuck in a task never sees its stdin end: leave when the parent is gone."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
