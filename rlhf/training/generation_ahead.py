"""Batches of coming steps, generated beside the learner's updates: `batch.staleness`.

With staleness n the batch of step k is of the weights after step k - 1 - n (of the starting weights in the first n + 1
steps), whatever ends first. While step k is learned a thread generates the batch of step k + n with the weights of step
k - 1; it is joined before the engine gets those of step k. So n batches lie ready between two steps, nothing is under
way while the engine is synced, evaluates or a checkpoint is written, and n above 1 makes samples older, not steps
faster.

The thread samples and grades. What is collective (prompts are taken, groups replaced) stays in the main thread, in the
same order on every rank: two threads on one process group would dead-lock.
"""

import time
from collections.abc import Callable, Mapping

from rlhf.data.types import Sample
from rlhf.training.background_call import BackgroundCall
from rlhf.training.collecting import Collector, Group, RolloutCollector, StartedBatch
from rlhf.training.timing import PhaseTimer


class GenerationAhead:
    """Used as a context manager: a generation under way is ended with an error of the main thread.

    `ready`: batches that were generated and not yet learned from, by step; of this rank. All methods are collective.
    Times are charged to `wait`, in which the learner had nothing to do, and `overlap`, in which generation went on
    beside it. It goes on past a run's last step: with what lies ready there a longer run goes on exactly.
    """

    def __init__(
        self, collector: Collector, timer: PhaseTimer, staleness: int, ready: Mapping[int, list[Sample]]
    ) -> None:
        self.collector, self.timer, self.staleness = collector, timer, staleness
        self.ready = dict(ready)
        self._started: StartedBatch | None = None
        self._generation: BackgroundCall[list[Group]] | None = None

    def __enter__(self) -> "GenerationAhead":
        return self

    def __exit__(self, *_: object) -> None:
        if self._generation is not None:
            self._generation.abandon()

    def take(self, step: int, should_stop: Callable[[], bool]) -> list[Sample]:
        """The step's batch. Where batches that should lie ready do not (at the start of a run), they are generated
        first, until `should_stop`."""
        if not self.staleness:
            return self.ready.pop(step) if step in self.ready else self.collector.collect(step)
        with self.timer.phase("wait"):
            for needed in range(step, step + self.staleness):
                if needed not in self.ready:
                    if self.ready and should_stop():
                        break
                    self.ready[needed] = self.collector.collect(needed)
        return self.ready.pop(step)

    def start(self, step: int) -> None:
        """Begin, while `step` is learned, the batch that is `staleness` steps later."""
        if not self.staleness:
            return
        collector = self.collector
        assert isinstance(collector, RolloutCollector), "config/staleness_rules.py lets no other collector through"
        started = self._started = collector.start(step + self.staleness)
        self._generation = BackgroundCall(lambda: collector.generate(started), f"the batch of step {started.step}")

    def finish(self) -> None:
        """Wait for what `start` began, and replace groups without a signal, with the engine's weights as they are.
        Raises what the thread raised."""
        if self._generation is None:
            return
        with self.timer.phase("wait"):
            start = time.perf_counter()
            groups = self._generation.result()
            self.timer.add("overlap", max(0.0, self._generation.seconds - (time.perf_counter() - start)))
            self._generation = None
            self.ready[self._started.step] = self.collector.complete(self._started, groups)
