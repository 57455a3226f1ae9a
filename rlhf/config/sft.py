"""The whole configuration of supervised fine-tuning."""

from typing import Annotated, Literal

from pydantic import Field

from rlhf.config.data import ArithmeticConfig, RowsConfig
from rlhf.config.section import Section
from rlhf.config.stage import StageConfig


class ExamplesConfig(RowsConfig):
    """A dataset in TRL's formats: `prompt` and `completion`, of which the completion is learned, or `text` or
    `messages`, learned whole. Prompt, completion and text may be text; prompt and completion messages."""

    type: Literal["examples"] = "examples"


class SFTEvaluationConfig(Section):
    """Held-out examples, before and after: loss, and how many completions are the model's likeliest, token by token."""

    examples: int = Field(200, ge=0)
    """How many; 0 is off."""
    data: ExamplesConfig | None = None
    """Where they come from. None given: the held-out fifth of a generated task, or the fifth of a dataset's prompts
    that is never trained on."""


class SFTConfig(StageConfig):
    """Supervised fine-tuning on TRL's SFTTrainer: generated sums, or a dataset."""

    data: Annotated[ArithmeticConfig | ExamplesConfig, Field(discriminator="type")]
    evaluation: SFTEvaluationConfig = SFTEvaluationConfig()
