"""Ctrl-C and SIGTERM (a cluster's preemption) end a run at the next safe point, with a checkpoint."""

import signal
from types import FrameType

import torch

from rlhf.training.collectives import maximum


class StopRequest:
    """Set by a first SIGINT or SIGTERM; a second SIGINT interrupts at once. Used as a context manager in the main
    thread."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def agreed(self) -> bool:
        """Whether any rank was asked to stop; the same answer on all. Collective."""
        return bool(maximum(int(self.requested), self.device))
