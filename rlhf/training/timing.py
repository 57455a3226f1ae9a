"""Where the wall-clock time of a step goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class PhaseTimer:
    """Accumulates wall seconds by phase between two resets.

    `with timer.phase("generate"): ...` may be entered many times per step; a phase inside another counts in both. Two
    threads may be in different phases.
    `synchronize_cuda` waits for the device at the borders of each phase, so that queued kernels are charged to the
    phase that launched them; it costs overlap, so it is off unless asked for.
    """

    def __init__(self, synchronize_cuda: bool = False, clock: Callable[[], float] = time.perf_counter) -> None:
        self._synchronize = synchronize_cuda and torch.cuda.is_available()
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Forget all phases and start a step now."""
        self._seconds: dict[str, float] = {}
        self._start = self._clock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Charge the wall time of the block to `name`, also when the block raises."""
        start = self._now()
        try:
            yield
        finally:
            self.add(name, self._now() - start)

    def add(self, name: str, seconds: float) -> None:
        """Charge seconds that were measured elsewhere to `name`."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase since the last reset."""
        return dict(self._seconds)

    def metrics(self) -> dict[str, float]:
        """`time/<phase>` for every phase, and `time/step`: all seconds since the last reset."""
        phases = {f"time/{name}": value for name, value in self._seconds.items()}
        return phases | {"time/step": self._now() - self._start}

    def _now(self) -> float:
        if self._synchronize:
            torch.cuda.synchronize()
        return self._clock()
