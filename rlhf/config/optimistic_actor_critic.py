"""Optimistic actor-critic in NORA's manner: advantages of an optimistic critic that is exchanged rarely."""

from typing import Any, Literal

from pydantic import Field, model_validator

from rlhf.config.algorithm import KLConfig, PolicyGradientConfig
from rlhf.config.grpo import GRPOConfig
from rlhf.config.section import Section


class ActionViewConfig(Section):
    """What counts as one action of a completion, and what it can earn."""

    view: Literal["token", "chunk"] = "chunk"
    """Every token, or every `chunk_tokens` tokens."""
    chunk_tokens: int = Field(32, ge=1)
    """Tokens of a chunk. The theory's cost grows with the number of actions, not of tokens."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """The smallest and the largest return of an episode; values are clipped to them."""
    truncation: Literal["end", "bootstrap"] = "end"
    """A completion that was cut off is over, with the reward that it got; or it goes on, worth what the critic says of
    its last state: only where the limit is one of the rollouts and not of the task, for an optimistic critic promises
    much of what was never finished, and completions grow to the limit."""

    @model_validator(mode="after")
    def _refuse_an_empty_range(self) -> "ActionViewConfig":
        if not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds = {list(self.bounds)} is no range: give the smallest and the largest return")
        return self


class EnsembleConfig(Section):
    """The critic: an ensemble of values on the reference's hidden states, which no update of the policy moves."""

    members: int = Field(10, ge=2)
    """Of the ensemble; their spread is the uncertainty."""
    prior_scale: float = Field(0.3, ge=0)
    """Size of the members' fixed random parts, in units of the range. Without them members collapse onto each other."""
    initial_share: float = Field(0.5, gt=0, lt=1)
    """Where between the bounds values begin. The middle is optimism already, where most returns are below it."""
    bootstrap: float = Field(0.8, gt=0, le=1)
    """Chance that a member learns from an episode."""
    expectile: float = Field(0.9, ge=0.5, lt=1)
    """Above one half values lean to the best of what was seen: an in-sample maximum. 0.7 where the environment is
    random, whose luck it would count as skill."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate of the ensemble."""
    polyak: float = Field(0.05, gt=0, le=1)
    """Rate at which the copy that targets are made of follows."""
    updates: int = Field(32, ge=1)
    """Critic steps in each step of the run."""
    episodes: int = Field(128, ge=1)
    """Episodes of a critic step, over all ranks: half of them since the last switch, half from all that is kept."""
    buffer_episodes: int = Field(20_000, ge=1)
    """Episodes that are kept, on each rank."""


class OptimismConfig(Section):
    """What the policy is told a state is worth."""

    kind: Literal["ucb", "lme", "none"] = "ucb"
    """Mean plus spread of the members, their log-mean-exp, or their mean."""
    bonus_scale: float = Field(1.0, ge=0)
    """ucb: how many standard deviations."""
    temperature: float = Field(0.05, gt=0)
    """lme: large gives the mean, small the maximum."""


class SwitchConfig(Section):
    """When the critic that guides the policy is exchanged for the one that has learned on. Rarely: each exchange makes
    the policy start anew towards another goal."""

    features: int = Field(64, ge=1)
    """Random directions of the states that are counted."""
    nats: float = Field(8.0, gt=0)
    """Exchange when the log-determinant of the features' Gram matrix has grown by so much."""
    min_steps: int = Field(2, ge=1)
    """Never sooner after the last exchange. Until the first one the critic alone learns."""
    max_steps: int = Field(16, ge=1)
    """Never later."""

    @model_validator(mode="after")
    def _refuse_an_empty_window(self) -> "SwitchConfig":
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps = {self.min_steps} is above max_steps = {self.max_steps}: lower one of them")
        return self


CLIPPED = dict(loss="clip", importance="token", denominator="token")
OPTIMISTIC_PRESETS: dict[str, dict[str, Any]] = {
    "nora": CLIPPED,
    "non_optimistic": {
        **CLIPPED, "optimism": {"kind": "none"}, "ensemble": {"prior_scale": 0.0, "initial_share": 0.02},
    },
}  # fmt: skip


class OptimisticConfig(PolicyGradientConfig):
    """Clipped policy gradient on the advantages of a frozen, optimistic critic (after NORA, arXiv 2505.03710)."""

    BY_PRESET = OPTIMISTIC_PRESETS

    type: Literal["optimistic_actor_critic"] = "optimistic_actor_critic"
    preset: Literal["nora", "non_optimistic"] = "nora"
    """non_optimistic: the members' mean, without priors and from the lower bound up; for comparison, or where offline
    data cover good play."""
    advantage: Literal["optimistic"] = "optimistic"
    """r + V(next state) - V(state) of the frozen critic, the same for all tokens of an action."""
    actions: ActionViewConfig = ActionViewConfig()
    """States and actions."""
    ensemble: EnsembleConfig = EnsembleConfig()
    """The critic."""
    optimism: OptimismConfig = OptimismConfig()
    """From members to a value."""
    switch: SwitchConfig = SwitchConfig()
    """When the policy gets a new critic."""
    whiten: bool = False
    """Divide the step's advantages by their standard deviation, less their mean."""
    kl: KLConfig = KLConfig(coefficient=0.05)
    """The pull to the reference; 1 / coefficient is how far the policy may lean towards the critic."""

    @property
    def needs_reference_model(self) -> bool:
        return True

    @property
    def value_bounds(self) -> tuple[float, float]:
        """The range of values of states."""
        return self.actions.bounds

    @model_validator(mode="after")
    def _refuse_kl_in_the_reward(self) -> "OptimisticConfig":
        if self.kl.where == "reward":
            raise ValueError(
                "kl.where = reward: the critic learns what completions earn, without the distance to the reference; "
                "set kl.where to loss"
            )
        return self


class OptimisticActorCriticConfig(GRPOConfig):
    """Optimistic actor-critic (after NORA, arXiv 2505.03710); research: default off, compare with GRPO and PPO."""

    algorithm: OptimisticConfig = OptimisticConfig()

    @model_validator(mode="after")
    def _refuse_padded_batches(self) -> "OptimisticActorCriticConfig":
        if self.model.attention != "packed":
            raise ValueError(
                f"model.attention = {self.model.attention}: the critic reads the states of packed batches; set "
                "model.attention to packed"
            )
        return self
