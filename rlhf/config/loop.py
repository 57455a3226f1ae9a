"""LOOP: average reward with optimism and rare planning."""

from typing import Any, Literal

from pydantic import Field, model_validator

from rlhf.config.optimistic_actor_critic import (
    CLIPPED,
    OptimismConfig,
    OptimisticActorCriticConfig,
    OptimisticConfig,
)
from rlhf.config.section import Section

OTHER_LOOP = ("rollouts_per_scenario", "ppo_epsilon", "baseline")
"""Settings of leave-one-out PPO (arXiv 2502.01600), which is called LOOP as well."""


class GainConfig(Section):
    """What reward is counted against: the gain J is the reward for each unit of cost, learned beside the values."""

    unit: Literal["episode", "token"] = "episode"
    """episode: J is the mean reward, and the best policy that of the other recipes. token: reward for each token, a
    learned price of length, which can shrink answers to nothing."""
    per_episode: float = Field(1.0, ge=0)
    """Cost of a completion, whatever its length: the overhead that bounds how short answers get."""
    per_token: float = Field(0.0, ge=0)
    """Cost of a token; unit token only."""
    estimator: Literal["rvi", "newton"] = "rvi"
    """rvi: a small step after each critic step (relative value iteration). newton: Dinkelbach's step at exchanges."""
    rate: float = Field(0.005, gt=0)
    """rvi: at most a tenth of ensemble.polyak. A gain that moves faster than the values runs away."""
    span: float | None = Field(None, gt=0)
    """Bound of the values on either side of 0. None with unit episode: the range of returns. It must be given with unit
    token: range + J x most tokens."""

    @model_validator(mode="after")
    def _refuse_costs_that_cost_nothing(self) -> "GainConfig":
        if (self.unit == "token") != (self.per_token > 0):
            raise ValueError(
                f"unit = {self.unit} with per_token = {self.per_token:g}: unit token counts tokens, and unit episode "
                "does not; set per_token above 0, or unit to episode"
            )
        if self.per_episode + self.per_token == 0:
            raise ValueError("per_episode = 0 and per_token = 0: reward for no work has no meaning; set one above 0")
        if self.unit == "token" and self.span is None:
            raise ValueError("unit = token needs span: the range of returns + the expected gain x most tokens")
        return self


class AverageRewardConfig(OptimisticConfig):
    """LOOP (Local-fitted Optimization with OPtimism, arXiv 2404.12648): optimistic actor-critic's parts with a gain.
    Not leave-one-out PPO, which is `advantage: leave_one_out` of recipes/grpo.py."""

    BY_PRESET = {"loop": CLIPPED}

    type: Literal["loop"] = "loop"
    preset: Literal["loop"] = "loop"
    """The settings below."""
    gain: GainConfig = GainConfig()
    """Average reward."""
    policy_steps: int = Field(4, ge=1)
    """Steps after an exchange in which the policy learns; it is then frozen until the next, as values and gain are."""

    @property
    def value_bounds(self) -> tuple[float, float]:
        low, high = self.actions.bounds
        span = self.gain.span if self.gain.span is not None else high - low
        return -span, span

    @model_validator(mode="before")
    @classmethod
    def _refuse_the_other_loop(cls, values: Any) -> Any:
        given = [name for name in OTHER_LOOP if isinstance(values, dict) and name in values]
        if given:
            raise ValueError(
                f"{', '.join(given)}: two methods are called LOOP. This recipe is average-reward LOOP (Local-fitted "
                "Optimization with OPtimism, arXiv 2404.12648). For leave-one-out PPO (arXiv 2502.01600) use "
                "recipes/grpo.py with algorithm.advantage leave_one_out and algorithm.loss clip"
            )
        return values

    @model_validator(mode="after")
    def _refuse_what_the_plan_does_not_use(self) -> "AverageRewardConfig":
        if self.optimism != OptimismConfig():
            raise ValueError(
                "optimism is for recipes/optimistic_actor_critic.py: LOOP plans with the member of the confidence set "
                "that has the highest gain; leave the section out"
            )
        return self

    @model_validator(mode="after")
    def _refuse_a_gain_that_is_too_fast(self) -> "AverageRewardConfig":
        if self.gain.estimator == "rvi" and self.gain.rate > 0.1 * self.ensemble.polyak * (1 + 1e-9):
            raise ValueError(
                f"gain.rate = {self.gain.rate:g} is above a tenth of ensemble.polyak = {self.ensemble.polyak:g}: the "
                "gain would move faster than the values and run away; lower it, or set gain.estimator to newton"
            )
        return self


class LOOPConfig(OptimisticActorCriticConfig):
    """Average-reward LOOP (arXiv 2404.12648); research: default off, compare with GRPO and PPO."""

    algorithm: AverageRewardConfig = AverageRewardConfig()
