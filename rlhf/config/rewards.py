"""What a completion is paid for: a weighted list of reward functions, discriminated by `type`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlhf.config.section import Section

CALLABLE_PATH = r"^[\w.\-/]+(\.py)?:\w+$"


class RewardFunctionConfig(Section):
    """What every reward function has."""

    weight: float = 1.0
    """Factor in the sum of rewards."""


class CorrectnessConfig(RewardFunctionConfig):
    """1 for a right answer, 0 for a wrong or ungradable one, judged by the task's own scorer or the math grader."""

    type: Literal["correctness"] = "correctness"


class FormatConfig(RewardFunctionConfig):
    """1 if the completion has the wanted shape, else 0."""

    type: Literal["format"] = "format"
    shape: Literal["boxed", "think_answer", "number_only"] = "boxed"
    r"""`boxed`: exactly one \boxed{}; `think_answer`: <think>...</think><answer>...</answer>; `number_only`: a bare
    number."""


class LengthConfig(RewardFunctionConfig):
    """Linear in length: 0 at no tokens, -1 at `target_tokens` and beyond; multiply by a small weight."""

    type: Literal["length"] = "length"
    target_tokens: int = Field(256, ge=1)
    """Where the penalty reaches -1."""


class RepetitionConfig(RewardFunctionConfig):
    """Minus the share of repeated n-grams of tokens, in [-1, 0]."""

    type: Literal["repetition"] = "repetition"
    ngram: int = Field(4, ge=1)
    """Length of the n-grams."""


class SoftOverlongConfig(RewardFunctionConfig):
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): 0 below max - buffer, falling linearly to -1 at
    max."""

    type: Literal["soft_overlong"] = "soft_overlong"
    max_tokens: int = Field(..., ge=1)
    """Where the punishment reaches -1."""
    buffer_tokens: int = Field(..., ge=1)
    """Length of the slope."""

    @model_validator(mode="after")
    def _refuse_long_buffer(self) -> "SoftOverlongConfig":
        if self.buffer_tokens > self.max_tokens:
            raise ValueError(
                f"buffer_tokens = {self.buffer_tokens} is above max_tokens = {self.max_tokens}: set it to "
                f"{self.max_tokens} or less"
            )
        return self


class EnvironmentRewardConfig(RewardFunctionConfig):
    """What the environment paid, summed over the turns of the session."""

    type: Literal["environment"] = "environment"


class CallableConfig(RewardFunctionConfig):
    """A user's function with TRL's signature `f(prompts, completions, **columns) -> list[float | None]`, sync or
    async."""

    type: Literal["callable"] = "callable"
    path: str = Field(..., pattern=CALLABLE_PATH)
    """`package.module:function`, or `path/to/file.py:function`."""
    timeout_s: float = Field(600.0, gt=0)
    """Wall-clock limit of one call on all of a step's completions; the run stops at a call that takes longer."""


class JudgeConfig(RewardFunctionConfig):
    """The share of its comparisons with the prompt's other completions that a completion wins, by a user's pairwise
    judge with TRL's signature `judge(prompts, completions) -> list[int]`, sync or async: two completions of each
    prompt, and the place (0 or 1) of the better one, or -1."""

    type: Literal["judge"] = "judge"
    path: str = Field(..., pattern=CALLABLE_PATH)
    """`package.module:function`, or `path/to/file.py:function`."""
    comparisons: Literal["all", "ring"] = "all"
    """Every two completions of a prompt, n (n - 1) / 2 of them; or each with the next one, n."""
    both_orders: bool = True
    """Ask again with the two exchanged, so that a judge who favours a place favours no completion."""
    timeout_s: float = Field(600.0, gt=0)
    """Wall-clock limit of one call on all of a step's pairs; the run stops at a call that takes longer."""


class RewardModelConfig(RewardFunctionConfig):
    """The score of a reward model: any sequence classifier with one label, e.g. of recipes/reward_model.py. It is held
    beside the policy. A completion that was cut off is scored as it stands, as though it ended there."""

    type: Literal["reward_model"] = "reward_model"
    path: str
    """A local folder or a hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the backbone; the head and the scores are float32."""
    token_budget: int = Field(16_384, ge=1)
    """Most tokens of a forward pass, padding included. Changes memory and speed only."""
    trust_remote_code: bool = False
    """Run Python code that comes with the checkpoint."""


def environment_weight(config: "RewardsConfig") -> float:
    """What a reward of the environment counts in the sum of rewards; 0 where it is no part of it."""
    return sum(function.weight for function in config.functions if isinstance(function, EnvironmentRewardConfig))


RewardConfig = Annotated[
    CorrectnessConfig
    | FormatConfig
    | LengthConfig
    | RepetitionConfig
    | SoftOverlongConfig
    | RewardModelConfig
    | JudgeConfig
    | EnvironmentRewardConfig
    | CallableConfig,
    Field(discriminator="type"),
]


class GraderPoolConfig(Section):
    """The killable worker processes in which grading happens."""

    workers: int = Field(1, ge=1)
    """Number of worker processes."""
    timeout_s: float = Field(10.0, gt=0)
    """Wall-clock limit per completion; a worker past it is killed and the completion counted as a time-out."""


class RewardsConfig(Section):
    """All rewards, and what happens when one fails."""

    functions: list[RewardConfig] = Field(default_factory=lambda: [CorrectnessConfig()], min_length=1)
    """The reward functions; the reward is their weighted sum."""
    on_error: Literal["raise", "ungradable"] = "raise"
    """An exception in a reward function stops the run with the sample's id, or marks the sample ungradable
    (counted)."""
    pool: GraderPoolConfig = GraderPoolConfig()
    """The grader's worker processes."""
