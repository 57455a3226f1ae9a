"""What a step learns from: completions that the engine makes and rewards grade, or pairs of a dataset."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from rlhf.config.recipe import RecipeConfig
from rlhf.data.order import PromptStream
from rlhf.data.seeds import derive_seed
from rlhf.data.types import REFERENCE, Prompt, Sample
from rlhf.rewards.scoring import RewardScorer
from rlhf.rollouts.engine import Engine, Request
from rlhf.rollouts.requests import make_requests
from rlhf.training.collectives import gather_lists
from rlhf.training.guards import TrainingStopped
from rlhf.training.recorder import Recorder

Group = list[Sample]
"""The samples of one prompt."""
WantsReplacement = Callable[[Group], bool]


class Collector(Protocol):
    """Makes this rank's samples of a step. Collective."""

    makes_rollouts: bool
    """The samples are completions of the policy: the engine needs its weights before the next step."""

    def collect(self, step: int) -> list[Sample]: ...


@dataclass(frozen=True, slots=True)
class StartedBatch:
    """A step's first requests of this rank; `seen`: how many requests each prompt of the step has had, on all ranks."""

    step: int
    requests: list[Request]
    seen: Counter[str]


class RolloutCollector:
    """Completions of the engine, graded; groups without a signal are replaced where `wants_replacement` says so.

    `config`: a recipe's, with prompts. `rank`, `world_size`: this process among those that share the prompts.
    """

    makes_rollouts = True

    def __init__(
        self,
        config: RecipeConfig,
        *,
        stream: PromptStream,
        engine: Engine,
        scorer: RewardScorer,
        recorder: Recorder,
        wants_replacement: WantsReplacement,
        rank: int,
        world_size: int,
    ) -> None:
        self.config, self.stream, self.engine, self.scorer, self.recorder = config, stream, engine, scorer, recorder
        self.wants_replacement, self.rank, self.world_size = wants_replacement, rank, world_size
        self.prompts_wanted = config.batch.prompts_per_step // world_size

    def collect(self, step: int) -> list[Sample]:
        started = self.start(step)
        return self.complete(started, self.generate(started))

    def start(self, step: int) -> StartedBatch:
        """Take the prompts that the step begins with. Collective."""
        seen: Counter[str] = Counter()
        return StartedBatch(step, self.take_requests(gather_lists([self.prompts_wanted]), step, seen), seen)

    def generate(self, started: StartedBatch) -> list[Group]:
        """The first samples of a step. Not collective: it may run in another thread."""
        return self.rollout(started.requests, started.step)

    def complete(self, started: StartedBatch, groups: list[Group]) -> list[Sample]:
        """The step's samples, with groups of fresh prompts in place of those that teach nothing. Collective."""
        refills = self.config.algorithm.dynamic_sampling.max_refills
        kept: list[Group] = []
        for attempt in range(refills + 1):
            if attempt < refills:
                fresh = [group for group in groups if not self.wants_replacement(group)]
                self.recorder.count_discarded(len(groups) - len(fresh))
                groups = fresh
            kept += groups
            missing_by_rank = gather_lists([self.prompts_wanted - len(kept)])
            if not sum(missing_by_rank):
                break
            groups = self.rollout(self.take_requests(missing_by_rank, started.step, started.seen), started.step)
        return [sample for group in kept for sample in group]

    def take_requests(self, missing_by_rank: list[int], step: int, seen: Counter[str]) -> list[Request]:
        """Requests for this rank's share of the next prompts. The ranks take exactly what each of them lacks from one
        stream, so every prompt is consumed once; all ranks see all prompts, and so agree on the sample indices."""
        prompts = self.stream.take(sum(missing_by_rank))
        count = self.config.sampling.samples_per_prompt
        requests = make_requests(prompts, count, self.config.run.seed, step, seen)
        first = sum(missing_by_rank[: self.rank]) * count
        return requests[first : first + missing_by_rank[self.rank] * count]

    def rollout(self, requests: list[Request], step: int) -> list[Group]:
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


class CalibratedCollector:
    """Rollouts, and for each of their prompts completions of the reference, which the value term of VPO is of.

    The engine holds the reference's weights while it makes them (`sync_reference`), and then again the policy's
    (`sync_policy`, called with their version). They have negative indices and the version `REFERENCE`.
    """

    makes_rollouts = True

    def __init__(
        self, rollouts: RolloutCollector, samples: int, *, sync_reference: Callable[[], None],
        sync_policy: Callable[[int], None],
    ) -> None:  # fmt: skip
        self.rollouts, self.samples = rollouts, samples
        self.sync_reference, self.sync_policy = sync_reference, sync_policy

    def collect(self, step: int) -> list[Sample]:
        rollouts, collected = self.rollouts, self.rollouts.collect(step)
        prompts: dict[str, Prompt] = {sample.prompt.id: sample.prompt for sample in collected}
        seed = derive_seed(rollouts.config.run.seed, "calibration")
        requests = make_requests(list(prompts.values()), self.samples, seed, step)
        requests = [replace(request, index=-1 - request.index) for request in requests]
        with rollouts.recorder.timer.phase("calibrate"):
            self.sync_reference()
            drawn = rollouts.engine.generate(requests, rollouts.config.sampling)
            self.sync_policy(step - 1)
        drawn = rollouts.scorer.score(drawn)
        # the engine's log-probs are the reference's: nothing that compares engine and policy may see them
        return collected + [
            replace(sample, policy_version=REFERENCE, logps=(float("nan"),) * len(sample.logps)) for sample in drawn
        ]


class PreferenceCollector:
    """Pairs of a dataset: two samples each, chosen and rejected."""

    makes_rollouts = False

    def __init__(self, stream: PromptStream, pairs_per_step: int, *, rank: int, world_size: int) -> None:
        self.stream, self.pairs_per_step, self.rank, self.world_size = stream, pairs_per_step, rank, world_size

    def collect(self, step: int) -> list[Sample]:
        seen: Counter[str] = Counter()
        numbered = []
        for pair in self.stream.take(self.pairs_per_step):
            # a pair that comes twice in a step (small datasets) goes on counting
            first = 2 * seen[pair[0].prompt.id]
            seen[pair[0].prompt.id] += 1
            numbered.append([replace(sample, index=first + sample.index) for sample in pair])
        share = self.pairs_per_step // self.world_size
        mine = numbered[self.rank * share : (self.rank + 1) * share]
        return [sample for pair in mine for sample in pair]
