"""Mining preferences: a model's own right and wrong completions become pairs."""

from typing import Literal

from pydantic import Field, model_validator

from rlhf.config.data import NumberGuessingConfig, PromptSourceConfig
from rlhf.config.model import ModelConfig
from rlhf.config.rewards import RewardsConfig
from rlhf.config.rollouts import EngineConfig, SamplingConfig, VllmEngineConfig
from rlhf.config.section import Section
from rlhf.config.training import RunConfig
from rlhf.config.vpo import PairsConfig


class MiningConfig(Section):
    """Completions of a model, graded, and set against each other: a preference dataset in TRL's format."""

    run: RunConfig = RunConfig(name="preferences")
    model: ModelConfig
    data: PromptSourceConfig
    rewards: RewardsConfig = RewardsConfig()
    engine: EngineConfig = VllmEngineConfig()
    sampling: SamplingConfig = SamplingConfig()
    pairs: PairsConfig = PairsConfig()
    prompts: int = Field(500, ge=1)
    """How many prompts are answered."""
    prompts_per_batch: int = Field(64, ge=1)
    """Prompts between two writes: what an interruption loses at most."""
    split: Literal["train", "held_out"] = "train"
    """Which part of a generated task, four fifths or one; a dataset has the split that `data.split` says."""

    @model_validator(mode="after")
    def _refuse_sessions(self) -> "MiningConfig":
        if isinstance(self.data, NumberGuessingConfig):
            raise ValueError(
                "data.type = number_guessing: preferences are of single answers, and its prompts begin sessions of "
                "many; choose other prompts, or learn from sessions with recipes/grpo.py or recipes/ppo.py"
            )
        return self

    @model_validator(mode="after")
    def _refuse_what_makes_no_pairs(self) -> "MiningConfig":
        if self.sampling.samples_per_prompt < 2:
            raise ValueError(
                f"sampling.samples_per_prompt = {self.sampling.samples_per_prompt} makes no pairs: set it to 2 or more"
            )
        return self
