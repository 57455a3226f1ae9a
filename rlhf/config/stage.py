"""What the stages before reinforcement learning share: supervised fine-tuning and the reward model, by TRL."""

from typing import Literal

from pydantic import Field, model_validator

from rlhf.config.model import ModelConfig
from rlhf.config.optimizer import AdamWConfig, OptimizerConfig, ScheduleConfig
from rlhf.config.section import Section
from rlhf.config.training import RunConfig


class StageTrainingConfig(Section):
    """Steps and batches. Rows come in an order that is a function of `run.seed`, each once an epoch."""

    steps: int = Field(300, ge=1)
    """Optimizer steps."""
    rows_per_step: int = Field(16, ge=1)
    """Rows of an optimizer step, over all ranks: examples, or pairs."""
    rows_per_micro_batch: int = Field(8, ge=1)
    """Rows of one forward-backward on one rank; times the ranks it must divide rows_per_step."""
    max_length: int = Field(1024, ge=2)
    """Most tokens of a text, prompt and chat template included. Rows above it are left out (counted)."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping by global norm."""


class StageCheckpointConfig(Section):
    """What a killed run goes on from. The finished model is always written to `<run>/model`."""

    every: int = Field(0, ge=0)
    """Optimizer steps between checkpoints; 0: none."""
    keep_last: int = Field(2, ge=1)
    """Newest checkpoints to keep."""


class StageConfig(Section):
    """A stage's configuration; each says what its `data` is. TRL pads its batches: `model.attention` is not used."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    training: StageTrainingConfig = StageTrainingConfig()
    optimizer: OptimizerConfig = AdamWConfig(lr=3e-5)
    schedule: ScheduleConfig = ScheduleConfig(type="linear", warmup_steps=10, final_ratio=0.1)
    checkpoint: StageCheckpointConfig = StageCheckpointConfig()
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default_factory=list)
    """Where metrics go besides `metrics.jsonl`."""

    @model_validator(mode="after")
    def _refuse_ragged_batches(self) -> "StageConfig":
        training = self.training
        if training.rows_per_step % training.rows_per_micro_batch:
            raise ValueError(
                f"training.rows_per_step = {training.rows_per_step} is not a multiple of "
                f"training.rows_per_micro_batch = {training.rows_per_micro_batch}: change one of them"
            )
        return self
