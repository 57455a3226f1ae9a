import pytest

from rlhf.training.timing import PhaseTimer


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_phases_accumulate_and_reset_starts_anew():
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    for seconds in (1.0, 2.5):
        with timer.phase("generate"):
            clock.now += seconds
    with timer.phase("update"):
        clock.now += 4.0
    clock.now += 0.5
    assert timer.metrics() == {"time/generate": 3.5, "time/update": 4.0, "time/step": 8.0}
    timer.reset()
    assert timer.metrics() == {"time/step": 0.0}


def test_a_phase_that_raises_is_charged():
    clock = Clock()
    timer = PhaseTimer(synchronize_cuda=True, clock=clock)
    with pytest.raises(RuntimeError, match="engine"), timer.phase("generate"):
        clock.now += 3.0
        raise RuntimeError("engine is gone")
    assert timer.seconds == {"generate": 3.0}
