"""CPU time that a piece of work needs, on machines where a single reading can be of something else."""

import gc
import time
from collections.abc import Callable


def cpu_seconds(work: Callable[[], object], tries: int = 3) -> float:
    """CPU seconds of `work` in this thread: the shortest of up to `tries`.

    A virtual machine counts time that its host took away as its own, so one reading can be seconds too long. Garbage
    collection, of the heap of everything that other tests import, is put off.
    """
    readings = []
    for _ in range(tries):
        gc.disable()
        try:
            started = time.thread_time()
            work()
            readings.append(time.thread_time() - started)
        finally:
            gc.enable()
    return min(readings)
