"""The policy-gradient family: presets by name, each part open to change."""

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from rlhf.config.section import Section


class KLConfig(Section):
    """Pull towards the reference policy (the starting checkpoint, or the base under LoRA)."""

    coefficient: float = Field(0.0, ge=0)
    """Weight of the KL term; 0: no reference model is loaded or run."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """Schulman's estimators on r = pi_ref / pi: k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r."""
    where: Literal["loss", "reward"] = "loss"
    """Add the estimate to the loss, or subtract it from each token's reward."""


class MismatchConfig(Section):
    """Correction of the gap between the engine's and the learner's log-probs (truncated importance sampling): of its
    rounding, and of samples of older weights (batch.staleness)."""

    level: Literal["off", "token", "sequence"] = "off"
    """Weight each token, or each sequence, by pi_learner / pi_engine: before the step's first update, over the engine's
    when it sampled."""
    mode: Literal["truncate", "mask"] = "truncate"
    """`truncate`: min(ratio, cap); `mask`: weight 0 above the cap."""
    cap: float = Field(2.0, gt=1)
    """Where the weight is truncated or masked."""


class DynamicSamplingConfig(Section):
    """DAPO's dynamic sampling: groups whose rewards are all equal are replaced by fresh prompts."""

    max_refills: int = Field(0, ge=0)
    """How many times per step the missing groups are generated again; 0 is off."""


PRESETS: dict[str, dict[str, Any]] = {
    # DeepSeekMath, arXiv 2402.03300
    "grpo": dict(advantage="group_normalised", loss="clip", importance="token", denominator="sequence"),
    # arXiv 2503.20783
    "dr_grpo": dict(advantage="group_mean", loss="clip", importance="token", denominator="constant"),
    # arXiv 2503.14476
    "dapo": dict(
        advantage="group_normalised",
        loss="clip",
        importance="token",
        denominator="token",
        clip_low=0.2,
        clip_high=0.28,
        mask_truncated=True,
        dynamic_sampling=dict(max_refills=3),
    ),
    # arXiv 2507.18071
    "gspo": dict(
        advantage="group_normalised",
        loss="clip",
        importance="sequence",
        denominator="sequence",
        clip_low=3e-4,
        clip_high=4e-4,
    ),
    # MiniMax-M1, arXiv 2506.13585
    "cispo": dict(
        advantage="group_normalised", loss="cispo", importance="token", denominator="token", clip_low=1.0, clip_high=3.0
    ),
    # arXiv 2402.14740
    "rloo": dict(advantage="leave_one_out", loss="reinforce", importance="token", denominator="constant"),
    # arXiv 2502.01600, which calls itself LOOP: PPO's surrogate on leave-one-out advantages, no critic
    "loo_ppo": dict(
        advantage="leave_one_out", loss="clip", importance="token", denominator="token", clip_low=0.1, clip_high=0.1
    ),
    # Williams 1992, with the batch's mean reward as baseline
    "reinforce": dict(advantage="batch_mean", loss="reinforce", importance="token", denominator="constant"),
}


class PolicyGradientConfig(Section):
    """Advantages, policy loss, and what is added to them. A preset sets the fields that are not given."""

    BY_PRESET: ClassVar[dict[str, dict[str, Any]]] = PRESETS

    type: Literal["grpo"] = "grpo"
    preset: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "loo_ppo", "reinforce"] = "grpo"
    """Named settings from the papers; any field below overrides its preset."""
    advantage: Literal["group_normalised", "group_mean", "leave_one_out", "batch_mean"] = "group_normalised"
    """Baseline: group mean with or without division by the group's std, the mean of the others, or the batch's mean."""
    loss: Literal["clip", "cispo", "reinforce"] = "clip"
    """Clipped surrogate (PPO), clipped importance weight on log-prob (CISPO), or advantage times log-prob."""
    importance: Literal["token", "sequence"] = "token"
    """Importance ratio of each token, or GSPO's length-normalised ratio of the sequence."""
    clip_low: float = Field(0.2, ge=0)
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(0.2, gt=0)
    """The ratio is clipped above at 1 + clip_high."""
    dual_clip: float | None = Field(None, gt=1)
    """With a negative advantage the loss is bounded by -dual_clip * advantage (arXiv 1912.09729)."""
    denominator: Literal["token", "sequence", "constant"] = "sequence"
    """One normaliser per optimizer step: all tokens; mean over sequences of the mean over tokens; sequences *
    max_tokens."""
    entropy_coefficient: float = 0.0
    """Entropy bonus per token."""
    mask_truncated: bool = False
    """Leave completions that hit max_tokens out of the loss and its denominator."""
    kl: KLConfig = KLConfig()
    """Distance to the reference policy."""
    mismatch: MismatchConfig = MismatchConfig()
    """Engine and learner disagreement."""
    dynamic_sampling: DynamicSamplingConfig = DynamicSamplingConfig()
    """Replacement of groups without a signal."""
    advantage_epsilon: float = Field(1e-4, gt=0)
    """Added to the group's standard deviation."""

    @property
    def needs_reference_model(self) -> bool:
        return self.kl.coefficient > 0

    @property
    def trains_policy(self) -> bool:
        """Whether the policy's weights change."""
        return True

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        preset = cls.BY_PRESET.get(str(values.get("preset", cls.model_fields["preset"].default)), {})
        filled = {**preset, **values}
        for name, default in preset.items():
            if isinstance(default, dict) and isinstance(values.get(name), dict):
                filled[name] = {**default, **values[name]}
        return filled

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "PolicyGradientConfig":
        problems = []
        if self.loss == "reinforce" and self.importance == "sequence":
            problems.append("loss 'reinforce' has no importance ratio: use importance: token, or loss: clip")
        if self.dual_clip is not None and self.loss != "clip":
            problems.append(f"dual_clip bounds the clipped surrogate; with loss '{self.loss}' remove it")
        if problems:
            raise ValueError("\n".join(problems))
        return self
