"""PPO with a critic: the policy-gradient family with advantages of tokens."""

from typing import Any, Literal

from pydantic import Field, model_validator

from rlhf.config.algorithm import PolicyGradientConfig
from rlhf.config.grpo import GRPOConfig
from rlhf.config.optimizer import AdamWConfig, OptimizerConfig
from rlhf.config.section import Section

PPO_PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 1707.06347
    "ppo": dict(loss="clip", importance="token", denominator="token", trace_decay=0.95),
    # arXiv 2504.05118: values from returns, a decay that grows with the length, a wider clip above
    "vapo": dict(
        loss="clip", importance="token", denominator="token", length_adaptive=0.05, clip_low=0.2, clip_high=0.28
    ),
}


class CriticConfig(Section):
    """The network that predicts what a completion will still earn, and how it learns."""

    trunk: Literal["separate", "policy"] = "separate"
    """A copy of the starting checkpoint that is trained whole; or the policy's own hidden states with a head on top,
    without a gradient into the policy: no second model, and a weaker critic."""
    bounds: tuple[float, float] | None = (0.0, 1.0)
    """The smallest and the largest return. Values stay within; null: unbounded."""
    trace_decay: float = Field(1.0, ge=0, le=1)
    """Of the critic's targets: 1 learns the returns themselves, less bootstraps from its own values."""
    loss_clip: float | None = Field(None, gt=0)
    """PPO's clipping of value changes; null, the default, is off."""
    epochs: int = Field(1, ge=1)
    """Passes over a rollout batch, each of `batch.minibatches` optimizer steps."""
    pretrain_steps: int = Field(0, ge=0)
    """In the first steps of the run the critic alone learns (VC-PPO, arXiv 2503.01491): a critic that knows nothing
    gives advantages that mean nothing."""
    optimizer: OptimizerConfig = AdamWConfig(lr=1e-5)
    """Of trunk and head; the schedule is the policy's."""
    head_lr: float = Field(1e-3, gt=0)
    """Learning rate of the head, which begins at nothing."""

    @model_validator(mode="after")
    def _refuse_an_empty_range(self) -> "CriticConfig":
        if self.bounds is not None and not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds = {list(self.bounds)} is no range: give the smallest and the largest return")
        return self


class ActorCriticConfig(PolicyGradientConfig):
    """Clipped policy gradient with generalised advantages. A preset sets the fields that are not given."""

    BY_PRESET = PPO_PRESETS

    type: Literal["ppo"] = "ppo"
    preset: Literal["ppo", "vapo"] = "ppo"
    """Named settings; any field below overrides its preset."""
    advantage: Literal["generalised"] = "generalised"
    """Generalised advantage estimation (arXiv 1506.02438) on the critic's values."""
    trace_decay: float = Field(0.95, ge=0, le=1)
    """lambda of the policy's advantages: how far a reward reaches back beyond the critic's values."""
    length_adaptive: float | None = Field(None, gt=0)
    """lambda = 1 - 1 / (this x tokens) for each completion (VAPO), instead of trace_decay."""
    discount: float = Field(1.0, gt=0, le=1)
    """Of later rewards, per token."""
    whiten: bool = False
    """Divide the step's advantages by their standard deviation, less their mean; off keeps their size meaningful."""
    critic: CriticConfig = CriticConfig()
    """The critic."""


class PPOConfig(GRPOConfig):
    """Proximal policy optimisation with a critic (arXiv 1707.06347); vapo's settings as a preset."""

    algorithm: ActorCriticConfig = ActorCriticConfig()

    @model_validator(mode="after")
    def _refuse_what_the_critic_cannot_see(self) -> "PPOConfig":
        if self.model.attention != "packed":
            raise ValueError(
                f"model.attention = {self.model.attention}: the critic reads the states of packed batches; set "
                "model.attention to packed"
            )
        if self.model.lora is not None and self.algorithm.critic.trunk == "separate":
            raise ValueError(
                "algorithm.critic.trunk = separate with model.lora: a critic with adapters of its own is not "
                "supported; set algorithm.critic.trunk to policy"
            )
        return self
