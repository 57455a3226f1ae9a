"""How is a learner judged: its regret at marks along the way, its switches, and how often optimism failed.

Gap regret sums V*(s_t) - Q*(s_t, a_t) for average reward, and V* - V^pi_t for episodes: 0 or more in every step, and
without the noise of rewards. For average reward it equals T J* - sum of rewards up to a martingale and a boundary term.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Switch(NamedTuple):
    """A new hypothesis before step (or episode) `step`, counted from 0, the first one included."""

    step: int
    estimate: float
    is_optimistic: bool


@dataclass(frozen=True, slots=True)
class LearningRecord:
    """`regret` so far after each of `marks`, in steps or episodes."""

    marks: tuple[int, ...]
    regret: tuple[float, ...]
    switches: tuple[Switch, ...]

    @property
    def violations(self) -> int:
        """Switches to a hypothesis that promises less than the optimum."""
        return sum(not switch.is_optimistic for switch in self.switches)

    def switches_by(self, mark: int) -> int:
        """How many hypotheses were in use within the first `mark` steps."""
        return sum(switch.step < mark for switch in self.switches)


def doubling_marks(steps: int, count: int = 5) -> tuple[int, ...]:
    """steps / 2^(count - 1), ..., steps / 2, steps. Raises ValueError where there are too few steps for that."""
    if steps < 2 ** (count - 1):
        raise ValueError(f"{steps} steps cannot be halved {count - 1} times: give at least {2 ** (count - 1)}")
    return tuple(steps >> shift for shift in reversed(range(count)))


def check_marks(marks: Sequence[int] | None, steps: int) -> tuple[int, ...]:
    """`marks`, or `doubling_marks`. Raises ValueError unless they increase, are above 0 and end at `steps`."""
    chosen = doubling_marks(steps) if marks is None else tuple(marks)
    if not chosen or list(chosen) != sorted(set(chosen)) or chosen[0] < 1 or chosen[-1] != steps:
        raise ValueError(f"marks {list(chosen)} must increase, from 1 or more to the {steps} steps of the run")
    return chosen


def log_log_slope(marks: Sequence[int], regret: Sequence[float], last: int = 3) -> float:
    """The exponent x of regret ~ T^x fitted to the last few marks: 1 is linear, 0.5 sqrt(T), 0 no further regret.

    A regret of 0 throughout has slope 0. Raises ValueError for fewer than two marks.
    """
    if min(last, len(marks)) < 2:
        raise ValueError(f"a slope needs 2 marks, got the last {last} of {len(marks)}")
    tail = np.maximum(np.asarray(regret[-last:], dtype=np.float64), np.finfo(np.float64).tiny)
    return float(np.polyfit(np.log(np.asarray(marks[-last:])), np.log(tail), 1)[0])
