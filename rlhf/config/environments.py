"""Who answers the model between its turns, discriminated by `type`; none: a completion is one answer."""

from typing import Annotated, Literal

from pydantic import Field

from rlhf.config.rewards import CALLABLE_PATH
from rlhf.config.section import Section


class DialogueConfig(Section):
    """What every environment has. `sampling.max_tokens` is of one turn."""

    turns: int = Field(8, ge=1)
    """Turns of a session; one that would go on is cut there."""
    max_reply_tokens: int = Field(32, ge=1)
    """Most tokens of the environment's answer to one turn, chat template included. Memory and the engine's context are
    planned with it; a longer answer stops the run."""


class NumberGuessingEnvironmentConfig(DialogueConfig):
    """The game of `data.type: number_guessing`: higher, lower, right, and the next number. Each number found pays 1."""

    type: Literal["number_guessing"] = "number_guessing"


class CallableEnvironmentConfig(DialogueConfig):
    """A user's environment (docs/environments.md), with prompts from any `data` that are conversations."""

    type: Literal["callable"] = "callable"
    path: str = Field(..., pattern=CALLABLE_PATH)
    """`package.module:name`, or `path/to/file.py:name`, of what makes the environment: called once, without
    arguments."""


EnvironmentConfig = Annotated[NumberGuessingEnvironmentConfig | CallableEnvironmentConfig, Field(discriminator="type")]
