"""The loop. Blind to the algorithm: it moves prompts to samples to a batch to an update, and records what happened."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from rlhf.config.grpo import GRPOConfig
from rlhf.data.order import PromptStream
from rlhf.data.types import Sample
from rlhf.rewards.scoring import RewardScorer
from rlhf.rollouts.engine import Engine, Request
from rlhf.rollouts.requests import make_requests
from rlhf.training.batch import TrainingSample
from rlhf.training.collectives import gather_lists
from rlhf.training.evaluation import Evaluator
from rlhf.training.guards import TrainingStopped
from rlhf.training.learner import Algorithm, Learner
from rlhf.training.recorder import Recorder
from rlhf.training.stopping import StopRequest
from rlhf.training.weight_sync import sync_weights


class RolloutAlgorithm(Algorithm, Protocol):
    """What the loop asks of an algorithm, besides what the learner asks."""

    def wants_replacement(self, group: list[Sample]) -> bool:
        """Whether a prompt's samples should be replaced by those of a fresh prompt."""

    def prepare(self, samples: list[Sample], learner: Learner) -> list[TrainingSample]:
        """Advantages and masks of this rank's samples."""


class Trainer:
    """Everything a run is made of; `save(step, pending)` writes a checkpoint."""

    def __init__(
        self,
        config: GRPOConfig,
        *,
        stream: PromptStream,
        engine: Engine,
        scorer: RewardScorer,
        algorithm: RolloutAlgorithm,
        learner: Learner,
        recorder: Recorder,
        evaluators: Sequence[Evaluator],
        save: Callable[[int, list[Sample]], None],
        step: int = 0,
        pending: list[Sample] | None = None,
    ) -> None:
        self.config, self.stream, self.engine, self.scorer, self.algorithm = config, stream, engine, scorer, algorithm
        self.learner, self.recorder, self.evaluators, self.save = learner, recorder, evaluators, save
        self.step, self.pending = step, pending or []
        self.rank, self.world_size = learner.accelerator.process_index, learner.accelerator.num_processes

    def train(self) -> bool:
        """Run the steps that are left. False if it was asked to stop before the last one (a checkpoint is then
        written)."""
        timer = self.recorder.timer
        with StopRequest(self.learner.device) as stop:
            if self.step == 0:
                self.evaluate(0)
            for step in range(self.step + 1, self.config.batch.steps + 1):
                timer.reset()
                samples = self.pending or self.collect(step)
                self.pending = []
                if stop.agreed():
                    self.save(step - 1, samples)
                    return False
                with timer.phase("update"):
                    batch = self.algorithm.prepare(samples, self.learner)
                    metrics = self.learner.update(batch, self.algorithm, step)
                with timer.phase("sync"):
                    sync_weights(self.learner.policy, self.engine, version=step)
                self.recorder.step(step, samples, metrics)
                is_last = step == self.config.batch.steps
                if is_last or (self.config.evaluation.every and step % self.config.evaluation.every == 0):
                    self.evaluate(step)
                should_stop = stop.agreed()
                every = self.config.checkpoint.every
                if is_last or should_stop or (every and step % every == 0):
                    self.save(step, [])
                if should_stop and not is_last:
                    return False
        return True

    def collect(self, step: int) -> list[Sample]:
        """This rank's graded samples of one step; groups without a signal are replaced where the algorithm asks for
        it."""
        wanted = self.config.batch.prompts_per_step // self.world_size
        refills = self.config.algorithm.dynamic_sampling.max_refills
        kept: list[list[Sample]] = []
        seen: Counter[str] = Counter()
        for attempt in range(refills + 1):
            missing_by_rank = gather_lists([wanted - len(kept)])
            if not sum(missing_by_rank):
                break
            groups = self.rollout(self.take_requests(missing_by_rank, step, seen), step)
            if attempt < refills:
                fresh = [group for group in groups if not self.algorithm.wants_replacement(group)]
                self.recorder.count_discarded(len(groups) - len(fresh))
                groups = fresh
            kept += groups
        return [sample for group in kept for sample in group]

    def take_requests(self, missing_by_rank: list[int], step: int, seen: Counter[str]) -> list[Request]:
        """Requests for this rank's share of the next prompts. The ranks take exactly what each of them lacks from one
        stream, so every prompt is consumed once; all ranks see all prompts, and so agree on the sample indices."""
        prompts = self.stream.take(sum(missing_by_rank))
        count = self.config.sampling.samples_per_prompt
        requests = make_requests(prompts, count, self.config.run.seed, step, seen)
        first = sum(missing_by_rank[: self.rank]) * count
        return requests[first : first + missing_by_rank[self.rank] * count]

    def rollout(self, requests: list[Request], step: int) -> list[list[Sample]]:
        """Graded samples by prompt."""
        with self.recorder.timer.phase("generate"):
            samples = self.engine.generate(requests, self.config.sampling)
        with self.recorder.timer.phase("reward"):
            samples = self.scorer.score(samples)
        bad = sum(s.verdict is not None and s.verdict.outcome == "ungradable" for s in samples) / max(1, len(samples))
        if bad > self.config.guards.max_ungradable_share:
            reasons = sorted({s.verdict.reason for s in samples if s.verdict and s.verdict.outcome == "ungradable"})[:3]
            raise TrainingStopped(
                f"step {step}: {bad:.0%} of the completions could not be graded (guards.max_ungradable_share "
                f"{self.config.guards.max_ungradable_share:.0%}), e.g.: {'; '.join(reasons)}. Check the gold "
                f"answers and the grader pool"
            )
        count = self.config.sampling.samples_per_prompt
        return [samples[first : first + count] for first in range(0, len(samples), count)]

    def evaluate(self, step: int) -> None:
        for evaluator in self.evaluators:
            for record in evaluator.evaluate(self.engine, step):
                self.recorder.evaluation(record)
