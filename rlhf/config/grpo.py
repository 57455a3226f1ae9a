"""The whole configuration of the GRPO family's recipe, and the rules between its sections."""

from pydantic import model_validator

from rlhf.config.algorithm import PolicyGradientConfig
from rlhf.config.data import PromptSourceConfig
from rlhf.config.evaluation import EvaluationConfig
from rlhf.config.model import ModelConfig
from rlhf.config.optimizer import AdamWConfig, OptimizerConfig, ScheduleConfig
from rlhf.config.rewards import RewardsConfig
from rlhf.config.rollouts import EngineConfig, SamplingConfig, VllmEngineConfig
from rlhf.config.rules import contradictions
from rlhf.config.section import Section
from rlhf.config.training import (
    BatchConfig,
    CheckpointConfig,
    GuardConfig,
    RunConfig,
    TrackingConfig,
)


class GRPOConfig(Section):
    """Group-relative policy optimisation and its relatives: grpo, dr_grpo, dapo, gspo, cispo, rloo, reinforce."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    data: PromptSourceConfig
    rewards: RewardsConfig = RewardsConfig()
    engine: EngineConfig = VllmEngineConfig()
    sampling: SamplingConfig = SamplingConfig()
    algorithm: PolicyGradientConfig = PolicyGradientConfig()
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = AdamWConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    guards: GuardConfig = GuardConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "GRPOConfig":
        if problems := contradictions(self):
            raise ValueError("\n".join(problems))
        return self
