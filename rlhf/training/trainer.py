"""The loop. Blind to the algorithm: it moves samples to a batch to an update, and records what happened."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from rlhf.config.recipe import RecipeConfig
from rlhf.data.types import Sample
from rlhf.rollouts.engine import Engine, GuidedEngine
from rlhf.training.algorithm import Algorithm
from rlhf.training.batch import TrainingSample
from rlhf.training.collecting import Collector
from rlhf.training.evaluation import Evaluator
from rlhf.training.generation_ahead import GenerationAhead
from rlhf.training.learner import Learner
from rlhf.training.recorder import Recorder
from rlhf.training.stopping import StopRequest
from rlhf.training.weight_sync import sync_weights


class RolloutAlgorithm(Algorithm, Protocol):
    """What the loop asks of an algorithm, besides what the learner asks."""

    def wants_replacement(self, group: list[Sample]) -> bool:
        """Whether a prompt's samples should be replaced by those of a fresh prompt."""

    def prepare(self, samples: list[Sample], learner: Learner) -> list[TrainingSample]:
        """Advantages and masks of this rank's samples."""

    def should_sync(self) -> bool:
        """Whether the last update is to reach the engine: not where it left the policy as it was."""


@runtime_checkable
class GuidingAlgorithm(Protocol):
    """An algorithm whose policy is the starting weights and what guides them at every token."""

    def guide(self, engine: GuidedEngine, learner: Learner, version: int) -> None:
        """Give the engine the policy as it is, which has its weights already."""


class Trainer:
    """Everything a run is made of; `save(step, pending)` writes a checkpoint, with batches of later steps. No engine:
    nothing is evaluated and the collector makes no rollouts."""

    def __init__(
        self,
        config: RecipeConfig,
        *,
        collector: Collector,
        engine: Engine | None,
        algorithm: RolloutAlgorithm,
        learner: Learner,
        recorder: Recorder,
        evaluators: Sequence[Evaluator],
        save: Callable[[int, Mapping[int, list[Sample]]], None],
        step: int = 0,
        version: int = 0,
        pending: Mapping[int, list[Sample]] | None = None,
    ) -> None:
        self.config, self.collector, self.engine, self.algorithm = config, collector, engine, algorithm
        self.learner, self.recorder, self.evaluators, self.save = learner, recorder, evaluators, save
        self.step = step
        self.batches = GenerationAhead(collector, recorder.timer, config.batch.staleness, pending or {})
        self.version = version
        """Of the weights that the engine has: the step after which it got them."""

    def train(self) -> bool:
        """Run the steps that are left. False if it was asked to stop before the last one (a checkpoint is then
        written)."""
        timer = self.recorder.timer
        with StopRequest(self.learner.device) as stop, self.batches:
            if self.step == 0:
                self.evaluate(0)
            for step in range(self.step + 1, self.config.batch.steps + 1):
                timer.reset()
                samples = self.batches.take(step, stop.agreed)
                if stop.agreed():
                    self.save(step - 1, {step: samples, **self.batches.ready})
                    return False
                self.batches.start(step)
                with timer.phase("update"):
                    batch = self.algorithm.prepare(samples, self.learner)
                    metrics = self.learner.update(batch, self.algorithm, step)
                self.batches.finish()
                is_last = step == self.config.batch.steps
                every = self.config.evaluation.every
                is_evaluated = bool(self.evaluators) and (is_last or (every > 0 and step % every == 0))
                if (self.collector.makes_rollouts or is_evaluated) and self.algorithm.should_sync():
                    with timer.phase("sync"):
                        self.sync(step)
                    self.version = step
                self.recorder.step(step, samples, metrics, makes_rollouts=self.collector.makes_rollouts)
                if is_evaluated:
                    self.evaluate(step)
                should_stop = stop.agreed()
                every = self.config.checkpoint.every
                if is_last or should_stop or (every and step % every == 0):
                    self.save(step, self.batches.ready)
                if should_stop and not is_last:
                    return False
        return True

    def sync(self, version: int) -> None:
        """The engine gets the policy as it is: its weights, or where those never change what guides them."""
        if isinstance(self.algorithm, GuidingAlgorithm):
            self.algorithm.guide(self.engine, self.learner, version)
        else:
            sync_weights(self.learner.policy_weights(), self.engine, version=version)

    def evaluate(self, step: int) -> None:
        for evaluator in self.evaluators:
            for record in evaluator.evaluate(self.engine, step):
                self.recorder.evaluation(record)
