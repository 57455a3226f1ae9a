"""CAPO (arXiv 2510.00819): tokens whose own step would leave a trust region do not count in an optimizer step.

The policy gradient and its loss are those of `PolicyGradient`. For each token of a micro-batch two numbers say what its
own step would do to the policy and to the objective if it moved the LM head alone (rlhf/algorithms/curvature.py). All
are taken at the weights and the optimizer state from before the step, so the split into micro-batches and ranks changes
no mask. The mask is a constant of the loss.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.algorithms.aggregate_steps import mean_step_shifts
from rlhf.algorithms.curvature import TokenShifts, token_shifts
from rlhf.algorithms.output_head import output_head
from rlhf.algorithms.policy_losses import importance_ratio
from rlhf.algorithms.step_models import step_model
from rlhf.algorithms.token_fields import TokenFields
from rlhf.algorithms.trust_region import Rule, TrustRegion, accept, calibrate
from rlhf.config.capo import CurvatureMaskedConfig
from rlhf.trainers.grpo import PolicyGradient
from rlhf.training.algorithm import StepVerdict
from rlhf.training.batch import TrainingSample
from rlhf.training.collectives import gather_lists, sum_numbers
from rlhf.training.head_moments import HeadMoments, head_moments
from rlhf.training.learner import Learner
from rlhf.training.screening import ScreenedStep, region_metrics, step_metrics
from rlhf.training.token_tally import TokenTally

RULES_BY_NAME: dict[str, tuple[Rule, ...]] = {
    "token": ("token",), "sequence": ("sequence",), "token_then_sequence": ("token", "sequence")
}  # fmt: skip
CALIBRATION_TOKENS = 4096
"""Tokens of an optimizer step and rank that calibration looks at, at even distances."""


class Settings(NamedTuple):
    """Arguments of the curvature functions in an optimizer step: of the step, of the head, of the step's model."""

    step: dict[str, Any]
    head: dict[str, Any]
    model: dict[str, Any]


class CurvatureMasked(PolicyGradient):
    """`PolicyGradient` with a trust region. State: the region, and what calibration has measured so far."""

    def __init__(self, config: CurvatureMaskedConfig, samples_per_prompt: int) -> None:
        super().__init__(config, samples_per_prompt)
        self.curvature = config.curvature
        self.region = TrustRegion(
            self.curvature.max_policy_shift, self.curvature.min_objective_shift, self.curvature.max_objective_shift
        )
        self.rules: tuple[Rule, ...] = RULES_BY_NAME[self.curvature.rule]
        self.steps = 0
        self.largest_lr = 0.0
        self.measured: list[tuple[float, float, float]] = []
        self.tally = TokenTally()
        self._told: set[str] = set()

    @property
    def is_calibrating(self) -> bool:
        return self.steps < self.curvature.calibrate_steps

    def begin_step(self, learner: Learner, lr: float) -> None:
        """Fix what every micro-batch of the step is judged by: learning rate, head settings, the head's moments."""
        self.lr = lr
        self.largest_lr = max(self.largest_lr, lr)
        self.head = learner.policy.head
        self.moments: HeadMoments | None = None
        if self.curvature.step_model != "sgd":
            self.moments, reason = head_moments(learner)
            if self.moments is None and self.steps > 0 and reason not in self._told:
                self._told.add(reason)
                learner.accelerator.print(f"WARNING CAPO predicts plain SGD steps: {reason}")
        self.total_tokens = 0.0
        self.step = ScreenedStep(keeps_hidden=self._is_measured())
        self.step.weight_before = self._head_weight(learner).clone() if self._is_measured() else None

    def screen(
        self, fields: TokenFields, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, actions_N: Tensor
    ) -> TokenFields:
        """The fields with weight 0 for rejected tokens."""
        settings = self._settings(fields, bias_V)
        shifts, slope_N = self._shifts(fields, hidden_ND, weight_VD, actions_N, settings)
        if self.config.denominator == "token" and len(actions_N):
            self.total_tokens = 1 / float(fields.weight_N[0])
        if self.is_calibrating or (self.curvature.on_excess == "keep" and self._has_excess()):
            accepted_N = torch.ones_like(actions_N, dtype=torch.bool)
        else:
            accepted_N = self._accepted(shifts, slope_N, fields, hidden_ND, weight_VD, actions_N, settings)
        self.step.add(shifts, fields, accepted_N, hidden_ND, actions_N, self.region)
        return TokenFields(
            **{name: getattr(fields, name) for name in fields.__slots__ if name != "weight_N"},
            weight_N=self._weights(fields, accepted_N),
        )

    def end_step(self, learner: Learner) -> StepVerdict:
        """Count over ranks; calibrate; say whether the step is taken, and with which denominator."""
        counts = sum_numbers(self.step.counts(), learner.device)
        fraction = counts["rejected"] / max(1.0, counts["tokens"])
        metrics = step_metrics(self.step, counts, learner.device) | region_metrics(self.region)
        if self.is_calibrating:
            self._calibrate(learner)
        else:
            self.tally.add(gather_lists(self.step.token_counts()))
        self.steps += 1
        is_excess = fraction > self.curvature.max_reject_fraction
        if is_excess:
            learner.accelerator.print(
                f"WARNING CAPO rejected {fraction:.0%} of the tokens (curvature.max_reject_fraction "
                f"{self.curvature.max_reject_fraction:.0%}): calibrate the thresholds (curvature.calibrate_steps)"
            )
        scale = 1.0
        if self.config.denominator == "token" and self.curvature.denominator == "accepted":
            # tokens without a gradient are not screened, and stay in the denominator
            total = max(gather_lists([self.total_tokens]))
            scale = total / (total - counts["rejected"]) if total > counts["rejected"] else 1.0
        return StepVerdict(scale, is_excess and self.curvature.on_excess == "skip_step", metrics)

    def after_step(self, learner: Learner, samples: list[TrainingSample]) -> Mapping[str, float]:
        """How far the policy moved at the tokens of the step, beside what was predicted."""
        if not self.step.keeps_hidden:
            return {}
        after = [logp for row in learner.logps(samples) for logp in row]
        step_VD = self._head_weight(learner) - self.step.weight_before
        return self.step.measured(torch.tensor(after), step_VD, self.head, learner.device)

    def tables(self, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
        """For the report: the tokens that were rejected most."""
        return self.tally.tables(tokenizer)

    def state_dict(self) -> dict[str, Any]:
        """Primitives only."""
        region = [self.region.delta_f, self.region.delta_h_low, self.region.delta_h_high]
        return {"region": region, "steps": self.steps, "largest_lr": self.largest_lr, "measured": self.measured,
                "tally": self.tally.state()}  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.region = TrustRegion(*state["region"])
        self.steps, self.largest_lr = state["steps"], state["largest_lr"]
        self.measured = [tuple(row) for row in state["measured"]]
        self.tally.load(state["tally"])

    def _settings(self, fields: TokenFields, bias_V: Tensor | None) -> Settings:
        model: dict[str, Any] = {"step_model": "sgd"}
        if (moments := self.moments) is not None:
            model = {
                "step_model": self.curvature.step_model, "momentum": self.curvature.momentum,
                "exp_avg_VD": moments.exp_avg_VD, "exp_avg_sq_VD": moments.exp_avg_sq_VD, "step": moments.step,
                "betas": moments.betas, "eps": moments.eps, "weight_decay": moments.weight_decay,
            }  # fmt: skip
        head = {"temperature": self.head.temperature, "logit_softcap": self.head.logit_softcap,
                "logit_scale": self.head.logit_scale, "bias_V": bias_V}  # fmt: skip
        weighted_N = fields.weight_N if self.curvature.token_weight == "loss" else None
        step = {"lr": self.lr, "fisher": self.curvature.fisher, "token_weight_N": weighted_N}
        return Settings(step, head, model)

    def _shifts(
        self, fields: TokenFields, hidden_ND: Tensor, weight_VD: Tensor, actions_N: Tensor, settings: Settings
    ) -> tuple[TokenShifts, Tensor]:
        """(shifts of each token's own step, the slope of its objective)."""
        fixed = {**settings.step, **settings.head}
        judge = functools.partial(token_shifts, hidden_ND, weight_VD, actions_N, **fixed)
        is_row = settings.model["step_model"] == "adam_row"
        model = settings.model | {"top_k": self.curvature.top_k} if is_row else settings.model
        if fields.old_logp_N is None and not is_row:
            return judge(fields.advantage_N, **model), fields.advantage_N
        # the log-prob over all ids: on a few of them it is renormalised
        plain = judge(fields.advantage_N, step_model="sgd")
        slope_N = fields.advantage_N
        if fields.old_logp_N is not None:
            # the ratio scales a token's gradient and its objective; a clipped token has neither
            ratio_N = importance_ratio(plain.logp_N - fields.old_logp_N)
            low, high = 1 - self.config.clip_low, 1 + self.config.clip_high
            clipped_N = torch.where(slope_N > 0, ratio_N > high, ratio_N < low)
            slope_N = torch.where(clipped_N, 0.0, slope_N * ratio_N)
        shifts = judge(slope_N, **model)
        return shifts._replace(logp_N=plain.logp_N, log_normalizer_N=plain.log_normalizer_N), slope_N

    def _accepted(
        self, shifts: TokenShifts, slope_N: Tensor, fields: TokenFields, hidden_ND: Tensor, weight_VD: Tensor,
        actions_N: Tensor, settings: Settings,
    ) -> Tensor:  # fmt: skip
        if self.rules == ("token",) or not len(actions_N):
            return accept(shifts, self.region, "token")
        head = output_head(hidden_ND, weight_VD, actions_N, **settings.head)
        name, state = settings.model["step_model"], {k: v for k, v in settings.model.items() if k != "step_model"}
        slope_N = slope_N.to(head.dtype)
        evaluate = functools.partial(
            mean_step_shifts, head=head, model=step_model(name, head, **state), hidden_ND=hidden_ND,
            actions_N=actions_N, slope_N=slope_N, curvature_N=slope_N, log_normalizer_N=shifts.log_normalizer_N,
            **settings.step,
        )  # fmt: skip
        return accept(
            shifts, self.region, self.rules, sequence_N=fields.sequence_N, sequences=fields.sequences, evaluate=evaluate
        )

    def _weights(self, fields: TokenFields, accepted_N: Tensor) -> Tensor:
        """The tokens' weights in the loss; with a mean over each sequence, over what is left of it."""
        weight_N = fields.weight_N * accepted_N
        if self.config.denominator != "sequence" or self.curvature.denominator == "original":
            return weight_N
        ones_N = torch.ones_like(weight_N)
        zeros_S = weight_N.new_zeros(fields.sequences)
        all_S = zeros_S.index_add(0, fields.sequence_N, ones_N)
        left_S = zeros_S.index_add(0, fields.sequence_N, accepted_N.to(weight_N.dtype))
        return weight_N * (all_S / left_S.clamp_min(1))[fields.sequence_N]

    def _has_excess(self) -> bool:
        counts = self.step.counts()
        return counts["rejected"] > self.curvature.max_reject_fraction * max(1.0, counts["tokens"])

    def _is_measured(self) -> bool:
        every = self.curvature.measure_every
        return every > 0 and self.steps % every == 0

    def _calibrate(self, learner: Learner) -> None:
        if self.steps > 0 or self.curvature.step_model == "sgd":  # Adam's steps have other units than its first, SGD's
            self.measured += gather_lists(self.step.kappas(CALIBRATION_TOKENS))
        if self.steps + 1 < self.curvature.calibrate_steps or not self.measured:
            return
        kappas = torch.tensor(self.measured, dtype=torch.float64)
        peak = self.largest_lr
        self.region = calibrate(kappas[:, 0], kappas[:, 1], kappas[:, 2], peak, self.curvature.calibrate_quantile)
        self.measured = []
        learner.accelerator.print(
            f"CAPO calibrated on {len(kappas):,} tokens at lr {peak:.3g}: max_policy_shift {self.region.delta_f:.3g}, "
            f"objective shift within [{self.region.delta_h_low:.3g}, {self.region.delta_h_high:.3g}]"
        )

    @staticmethod
    def _head_weight(learner: Learner) -> Tensor:
        return learner.whole_weight(learner.policy.causal_lm.get_output_embeddings().weight)
