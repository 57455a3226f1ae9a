"""The optimizer (discriminated by `type`) and the learning-rate schedule."""

from typing import Annotated, Literal

from pydantic import Field

from rlhf.config.section import Section


class AdamWConfig(Section):
    """AdamW with decoupled weight decay (arXiv 1711.05101)."""

    type: Literal["adamw"] = "adamw"
    lr: float = Field(1e-6, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the moments."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay; norms and biases are not decayed."""


OptimizerConfig = Annotated[AdamWConfig, Field(discriminator=None)]
"""One type today; becomes a union discriminated by `type` as optimizers are added."""


class ScheduleConfig(Section):
    """Learning rate over optimizer steps."""

    type: Literal["constant", "linear", "cosine"] = "constant"
    """Shape after warm-up; linear and cosine end at `final_ratio` of the peak."""
    warmup_steps: int = Field(0, ge=0)
    """Linear warm-up from 0."""
    final_ratio: float = Field(0.0, ge=0, le=1)
    """Learning rate at the last step over the peak."""
