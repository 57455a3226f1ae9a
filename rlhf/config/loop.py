"""LOOP: average reward with optimism and rare planning."""

from typing import Any, Literal

from pydantic import Field, model_validator

from rlhf.config.critic_ensemble import ActorConfig, OptimismConfig
from rlhf.config.optimistic_actor_critic import (
    CLIPPED,
    TOKENS,
    OptimisticActorCriticConfig,
    OptimisticConfig,
)
from rlhf.config.section import Section

OTHER_LOOP = ("rollouts_per_scenario", "ppo_epsilon", "baseline")
"""Settings of leave-one-out PPO (arXiv 2502.01600), which is called LOOP as well."""


class GainConfig(Section):
    """What reward is counted against: the gain J is the reward for each unit of cost, learned beside the values."""

    unit: Literal["episode", "turn", "token"] = "episode"
    """episode: J is the mean reward, and the best policy that of the other recipes. turn: reward for each turn of a
    dialogue. token: reward for each token, a learned price of length, which can shrink answers to nothing."""
    per_episode: float = Field(1.0, ge=0)
    """Cost of a completion, whatever its length: the overhead that bounds how short answers get."""
    per_unit: float = Field(0.0, ge=0)
    """Cost of a turn or of a token; none with unit episode."""
    estimator: Literal["rvi", "renewal", "newton"] = "rvi"
    """rvi: a small step after each critic step (relative value iteration). renewal: what the policy's own episodes earn
    for their cost, which lags behind the optimum. newton: Dinkelbach's step at exchanges."""
    rate: float = Field(0.005, gt=0)
    """rvi: at most a tenth of ensemble.polyak. A gain that moves faster than the values runs away."""
    initial: float = 0.0
    """Where gains begin."""
    sessions: bool = False
    """Dialogues go on over prompts: a session that was cut is worth what comes behind the cut, values have no anchor,
    and the gain follows the errors. Needs actions.view turn and actions.truncation bootstrap."""
    span: float | None = Field(None, gt=0)
    """Bound of the values on either side of 0. None with unit episode: the range of returns. It must be given with the
    other units: range + J x most units of an episode."""

    @model_validator(mode="after")
    def _refuse_costs_that_cost_nothing(self) -> "GainConfig":
        if (self.unit == "episode") != (self.per_unit == 0):
            raise ValueError(
                f"unit = {self.unit} with per_unit = {self.per_unit:g}: units turn and token count theirs, and unit "
                "episode has none; set per_unit above 0, or unit to episode"
            )
        if self.per_episode + self.per_unit == 0:
            raise ValueError("per_episode = 0 and per_unit = 0: reward for no work has no meaning; set one above 0")
        if self.unit != "episode" and self.span is None:
            raise ValueError(
                f"unit = {self.unit} needs span: the range of returns + the expected gain x most units of an episode"
            )
        if self.sessions and self.estimator == "newton":
            raise ValueError("estimator = newton is for independent prompts: with sessions use rvi or renewal")
        return self


class PlanConfig(Section):
    """What the policy is planned with after an exchange."""

    kind: Literal["bonus", "argmax_J", "lagrange"] = "bonus"
    """bonus: the members' mean, with their spread as a bonus on every action, solved anew (the exact planner's form).
    argmax_J: the member of the confidence set with the highest gain (the paper's words; 16 members or more). lagrange:
    the mean of members that were trained to promise much (MEX)."""
    bonus_scale: float = Field(1.0, ge=0)
    """bonus: standard deviations for each action."""
    steps: int = Field(200, ge=1)
    """bonus: critic steps of the plan."""
    weight: float = Field(0.1, ge=0)
    """lagrange: of the prompts' values in the critic's loss, over the square root of the number of episodes."""


class AverageRewardConfig(OptimisticConfig):
    """LOOP (Local-fitted Optimization with OPtimism, arXiv 2404.12648): optimistic actor-critic's parts with a gain.
    Not leave-one-out PPO, which is `advantage: leave_one_out` of recipes/grpo.py."""

    BY_PRESET = {
        "loop": {**CLIPPED, "actor": {"steps": 4, "trace_decay": 0.0}},
        "loop_token": {
            **CLIPPED, **TOKENS, "actor": {"kind": "logit_match", "steps": 4},
            "ensemble": {"target": "soft", "path_spans": [0]},
        },
    }

    type: Literal["loop"] = "loop"
    preset: Literal["loop", "loop_token"] = "loop"
    """loop: values of states behind chunks or turns, policy gradient. loop_token: values of candidate tokens, and the
    policy is matched to them."""
    gain: GainConfig = GainConfig()
    """Average reward."""
    plan: PlanConfig = PlanConfig()
    """Optimism."""
    actor: ActorConfig = ActorConfig()
    """How the policy follows the plan: for `steps` steps after an exchange; it is then frozen until the next."""

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
                "recipes/grpo.py with algorithm.preset loo_ppo"
            )
        return values

    @model_validator(mode="after")
    def _refuse_what_the_plan_does_not_use(self) -> "AverageRewardConfig":
        if self.optimism != OptimismConfig():
            raise ValueError(
                "optimism is for recipes/optimistic_actor_critic.py: LOOP's is the plan's; leave the section out, and "
                "set plan.kind"
            )
        if self.ensemble.target == "mc_ref":
            raise ValueError("ensemble.target = mc_ref knows returns and no gain: set it to expectile")
        return self

    @model_validator(mode="after")
    def _refuse_units_of_other_views(self) -> "AverageRewardConfig":
        if (self.gain.unit == "turn" or self.gain.sessions) and self.actions.view != "turn":
            raise ValueError(
                f"gain.unit = {self.gain.unit}, gain.sessions = {self.gain.sessions} with actions.view = "
                f"{self.actions.view}: turns and sessions are counted in turns; set actions.view to turn"
            )
        if self.gain.sessions and self.actions.truncation != "bootstrap":
            raise ValueError(
                "gain.sessions with actions.truncation = end: a session that was cut goes on; set it to bootstrap"
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
