"""The sections that every recipe with rollouts has."""

from typing import Any

from rlhf.config.environments import EnvironmentConfig
from rlhf.config.evaluation import EvaluationConfig
from rlhf.config.model import ModelConfig
from rlhf.config.optimizer import AdamWConfig, OptimizerConfig, ScheduleConfig
from rlhf.config.rewards import RewardsConfig
from rlhf.config.rollouts import EngineConfig, SamplingConfig, VllmEngineConfig
from rlhf.config.section import Section
from rlhf.config.training import BatchConfig, CheckpointConfig, GuardConfig, RunConfig, TrackingConfig


class RecipeConfig(Section):
    """A recipe's configuration; each says what its `data` and its `algorithm` may be."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    data: Any
    rewards: RewardsConfig = RewardsConfig()
    engine: EngineConfig = VllmEngineConfig()
    sampling: SamplingConfig = SamplingConfig()
    environment: EnvironmentConfig | None = None
    algorithm: Any
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    guards: GuardConfig = GuardConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def completions_per_prompt(self) -> int:
        return self.sampling.samples_per_prompt
