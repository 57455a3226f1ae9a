"""CAPO: the policy-gradient family with a trust region for each token's own step."""

from typing import Any, Literal

from pydantic import Field, model_validator

from rlhf.config.algorithm import PRESETS, PolicyGradientConfig
from rlhf.config.grpo import GRPOConfig
from rlhf.config.section import Section


class CurvatureConfig(Section):
    """Which tokens are left out of an optimizer step: those whose own step would leave a trust region (docs/capo.md).
    """

    max_policy_shift: float = Field(1e-4, gt=0)
    """A token is rejected when its own step would shift the policy at its state by this much or more (m_F, in nats)."""
    min_objective_shift: float = -0.01
    """Rejected when its own step would change the objective by this much or less (m_H)."""
    max_objective_shift: float = 0.01
    """Rejected when its own step would change the objective by this much or more (m_H)."""
    rule: Literal["token", "sequence", "token_then_sequence"] = "token"
    """What is judged: each token by its own step, each sequence by the step that its tokens take together, or first
    tokens and then sequences by what is left of them."""
    fisher: Literal["sampled", "exact", "max"] = "sampled"
    """m_F from the sampled token, as published; over all tokens; or the larger of the two, the most careful."""
    step_model: Literal["adam_frozen", "adam_row", "sgd"] = "adam_frozen"
    """The step that is predicted: by the optimizer's own state of the LM head with its second moment as it stands; with
    the token's gradient in that moment too, as Adam does it, on the head's `top_k` rows; or plain SGD."""
    top_k: int = Field(50, ge=1)
    """adam_row only: the likeliest ids of a state, whose rows a token's step moves beside its own."""
    momentum: bool = True
    """Count the optimizer's momentum in the predicted step."""
    token_weight: Literal["unit", "loss"] = "unit"
    """A token's step as if it were the whole batch (published thresholds assume it), or with its weight in the loss."""
    denominator: Literal["accepted", "original"] = "accepted"
    """Divide by the tokens that are left, which weights them up, or by all. A constant denominator has only the second.
    """
    max_reject_fraction: float = Field(0.5, gt=0, le=1)
    """A larger share of rejected tokens is told, and `on_excess` happens."""
    on_excess: Literal["warn", "skip_step", "keep"] = "warn"
    """Go on with what is left, skip the optimizer step, or keep all tokens of the step's later micro-batches."""
    calibrate_steps: int = Field(0, ge=0)
    """Reject nothing in the first N optimizer steps, then set the three thresholds from what was measured. Adam's first
    step is judged as SGD's and not measured, so N is at least 2 there."""
    calibrate_quantile: float = Field(0.99, gt=0.5, lt=1)
    """The share of measured tokens that the calibrated thresholds accept."""
    measure_every: int = Field(10, ge=0)
    """Optimizer steps between measurements of how far the policy really moved (one more forward pass); 0 is off."""

    @model_validator(mode="after")
    def _refuse_a_calibration_without_tokens(self) -> "CurvatureConfig":
        if self.calibrate_steps == 1 and self.step_model != "sgd":
            raise ValueError(
                f"calibrate_steps = 1 measures nothing with step_model = {self.step_model}: before the first step the "
                "optimizer has no moments; set calibrate_steps to 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _refuse_an_empty_band(self) -> "CurvatureConfig":
        if self.min_objective_shift >= self.max_objective_shift:
            raise ValueError(
                f"min_objective_shift = {self.min_objective_shift} is not below max_objective_shift = "
                f"{self.max_objective_shift}: no token would be accepted"
            )
        return self


# thresholds of github.com/luckeciano/stable-pg-llm, for Qwen2.5-Math-7B at lr 1.5e-5; other models need their own
CAPO_PRESETS: dict[str, dict[str, Any]] = {
    "capo": {
        **PRESETS["grpo"],
        "curvature": {"max_policy_shift": 1e-4, "min_objective_shift": -0.01, "max_objective_shift": 0.01},
    },
    "dr_capo": {
        **PRESETS["dr_grpo"],
        "curvature": {
            "max_policy_shift": 1e-3, "min_objective_shift": -5e-4, "max_objective_shift": 5e-4,
            "denominator": "original",
        },
    },
    "reincapo": {
        **PRESETS["reinforce"],
        "curvature": {
            "max_policy_shift": 1e-5, "min_objective_shift": -0.1, "max_objective_shift": 0.1,
            "denominator": "original",
        },
    },
}  # fmt: skip


class CurvatureMaskedConfig(PolicyGradientConfig):
    """A policy gradient, and which tokens it leaves out. A preset sets the fields that are not given."""

    BY_PRESET = CAPO_PRESETS

    type: Literal["capo"] = "capo"
    preset: Literal["capo", "dr_capo", "reincapo"] = "capo"
    """CAPO on GRPO, on Dr.GRPO, on REINFORCE, with the published thresholds: recalibrate them (calibrate_steps)."""
    curvature: CurvatureConfig = CurvatureConfig()
    """The trust region."""

    @model_validator(mode="after")
    def _refuse_what_has_no_token_step(self) -> "CurvatureMaskedConfig":
        if self.denominator == "constant" and self.curvature.denominator == "accepted":
            raise ValueError(
                "curvature.denominator = accepted has nothing to divide by where denominator = constant: set "
                "curvature.denominator to original"
            )
        return self


class CAPOConfig(GRPOConfig):
    """Curvature-aware policy optimisation (arXiv 2510.00819): capo, dr_capo, reincapo."""

    algorithm: CurvatureMaskedConfig = CurvatureMaskedConfig()

    @model_validator(mode="after")
    def _refuse_a_head_that_is_not_seen(self) -> "CAPOConfig":
        if self.model.attention != "packed":
            raise ValueError(
                f"model.attention = {self.model.attention}: CAPO looks at the LM head's input, which "
                "only packed attention has; set model.attention to packed"
            )
        return self
