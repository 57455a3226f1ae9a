"""Where prompts come from: generated tasks or a dataset; discriminated by `type`."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rlhf.config.section import Section


class PromptFormat(Section):
    """What every source of prompts shares: how a row becomes token ids."""

    system_prompt: str | None = None
    """Put before each prompt as a system message (chat models only)."""
    max_prompt_tokens: int = Field(1024, ge=1)
    """Longest allowed prompt, chat template included."""
    overlong_prompts: Literal["error", "skip", "truncate_left"] = "error"
    """What happens to a longer prompt: stop with its row, leave it out (counted), or keep its last tokens."""


# distinct problems that no run trains on, by level (rlhf/data/arithmetic.py)
ARITHMETIC_HELD_OUT = {1: 25, 2: 508, 3: 4_136, 4: 4_932, 5: 19_635}


class ArithmeticConfig(PromptFormat):
    """Generated sums: `What is 12 + 7? Answer with only the number.` The last integer of the completion is graded."""

    type: Literal["arithmetic"] = "arithmetic"
    level: int = Field(2, ge=1, le=5)
    """1: one-digit sums; 2: sums below 50; 3: + and - below 100; 4: + - and * of two-digit numbers; 5: two
    operations."""
    size: int = Field(100_000, ge=1)
    """How many prompts an epoch has (drawn with replacement from the training part where the level has fewer)."""


class CountdownConfig(PromptFormat):
    """Generated countdown: reach the target with + - * / using each given number at most once."""

    type: Literal["countdown"] = "countdown"
    numbers: int = Field(3, ge=2, le=6)
    """How many numbers are given."""
    largest: int = Field(20, ge=4, le=100)
    """The largest given number."""
    size: int = Field(100_000, ge=1)
    """How many prompts an epoch has."""


class NumberGuessingConfig(PromptFormat):
    """Generated sessions of number guessing: `Guess my number from 1 to 8. ...` Needs `environment.type:
    number_guessing`, which answers."""

    type: Literal["number_guessing"] = "number_guessing"
    numbers: int = Field(8, ge=2, le=1000)
    """Numbers from 1 to this."""
    drift: int = Field(1, ge=0)
    """How far the next number of a session may be from the last; 0: it stays. A policy that remembers needs fewer
    guesses."""
    size: int = Field(100_000, ge=1)
    """How many sessions an epoch has."""


class RowsConfig(PromptFormat):
    """Rows of the hub, or of local files."""

    path: str
    """Hub id, or a local file or glob ending in .jsonl, .json or .parquet."""
    subset: str | None = None
    """The hub dataset's configuration, e.g. `main` for openai/gsm8k."""
    split: str = "train"
    """The hub dataset's split; slices such as `train[:1000]` work."""
    revision: str | None = None
    """The hub dataset's commit."""


class DatasetConfig(RowsConfig):
    """A prompt dataset: hub id, or local jsonl / parquet files; standard (`prompt: str`) or conversational
    (`prompt: [messages]`)."""

    type: Literal["dataset"] = "dataset"
    prompt_field: str = "prompt"
    """The field with the prompt: a string or a list of chat messages."""
    answer_field: str | None = None
    """The field with the gold answer; required by the `correctness` reward."""
    answer_after: str | None = None
    """Keep only what follows the last occurrence of this marker in the answer, e.g. `####` for GSM8K."""
    prompt_template: str = "{prompt}"
    """Text around a string prompt; `{prompt}` is replaced, nothing else is interpreted."""
    as_chat: bool = False
    """Send a string prompt as a user message through the chat template; off, it is tokenised as plain text (TRL's
    standard format)."""

    @field_validator("prompt_template")
    @classmethod
    def _refuse_template_without_place(cls, value: str) -> str:
        if "{prompt}" not in value:
            raise ValueError(f"{value!r} has no place for the prompt: write {{prompt}} where it goes")
        return value

    @model_validator(mode="after")
    def _refuse_marker_without_answer(self) -> "DatasetConfig":
        if self.answer_after is not None and not self.answer_field:
            raise ValueError(f"answer_after = {self.answer_after!r} cuts the gold answer: set answer_field")
        return self


PromptSourceConfig = Annotated[
    ArithmeticConfig | CountdownConfig | NumberGuessingConfig | DatasetConfig, Field(discriminator="type")
]


class PreferencesConfig(RowsConfig):
    """A preference dataset in TRL's formats: `chosen`, `rejected`, and `prompt` unless both begin with it; text or
    messages. A completion longer than `sampling.max_tokens` leaves its row out (counted)."""

    type: Literal["preferences"] = "preferences"


PreferenceSourceConfig = Annotated[
    ArithmeticConfig | CountdownConfig | DatasetConfig | PreferencesConfig, Field(discriminator="type")
]
"""Prompts to roll out, or pairs to learn from."""
