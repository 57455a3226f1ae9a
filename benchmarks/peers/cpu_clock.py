"""Run a script whose phases are CPU seconds of its process: `python benchmarks/peers/cpu_clock.py recipes/grpo.py ...`.

With one thread they are about what the wall clock would say on an idle machine, also where the machine is shared.
Work of other processes (the grader's pool) is not in them.
"""

import functools
import runpy
import sys
import time

from rlhf.training import recorder
from rlhf.training.timing import PhaseTimer

if __name__ == "__main__":
    recorder.PhaseTimer = functools.partial(PhaseTimer, clock=time.process_time)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
