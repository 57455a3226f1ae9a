"""GRPO and its relatives: advantages relative to a baseline, a policy loss per token, one denominator per optimizer
step."""

import torch
from torch import Tensor

from rlhf.algorithms import advantages, policy_losses
from rlhf.algorithms.kl import kl_estimate
from rlhf.algorithms.mismatch import mismatch_weight
from rlhf.algorithms.token_fields import TokenFields
from rlhf.config.algorithm import PolicyGradientConfig
from rlhf.data.types import Sample
from rlhf.training.algorithm import Objective
from rlhf.training.batch import TrainingSample
from rlhf.training.collectives import sum_numbers
from rlhf.training.learner import Learner


class PolicyGradient:
    """The algorithm of `PolicyGradientConfig`. Pure but for what `prepare` asks of the learner (reference
    log-probs)."""

    has_ratio = True

    def __init__(self, config: PolicyGradientConfig, samples_per_prompt: int) -> None:
        self.config = config
        self.samples_per_prompt = samples_per_prompt
        self.denominator = config.denominator
        # a sequence's ratio, or its mismatch weight, needs all of its log-probs before any token's loss is known
        self.elementwise = config.importance == "token" and config.mismatch.level != "sequence"
        self.kl_coefficient = config.kl.coefficient
        self.has_kl_loss = config.kl.coefficient > 0 and config.kl.where == "loss"
        self.has_kl_reward = config.kl.coefficient > 0 and config.kl.where == "reward"

    def wants_replacement(self, group: list[Sample]) -> bool:
        """A group whose (unshaped, summed) rewards are all equal teaches a group-relative advantage nothing."""
        return not advantages.has_signal(_rewards(group))

    def prepare(self, samples: list[Sample], learner: Learner) -> list[TrainingSample]:
        """Advantages per prompt; completions that are masked, or whose gradient is known to be 0, are not forwarded."""
        rewards_S = _rewards(samples)
        references: list[tuple[float, ...] | None] = [None] * len(samples)
        if self.has_kl_loss or self.has_kl_reward:
            references = list(learner.reference_logps([TrainingSample(sample, 0.0) for sample in samples]))
        if self.has_kl_reward:
            rewards_S = rewards_S - self.config.kl.coefficient * self._kl_totals(samples, references)
        advantage_S = self._advantages(rewards_S, learner)
        # without a KL or entropy term a zero advantage is a zero gradient, exactly
        keeps_all = self.has_kl_loss or self.config.entropy_coefficient != 0
        batch = []
        for sample, advantage, reference in zip(samples, advantage_S.tolist(), references, strict=True):
            counted = not (self.config.mask_truncated and sample.truncated)
            learned = counted and (keeps_all or advantage != 0)
            batch.append(TrainingSample(sample, advantage, counted, learned, reference))
        return batch

    def should_sync(self) -> bool:
        """Every step moves the policy."""
        return True

    def objective(self, fields: TokenFields) -> Objective:
        """Weighted loss per token: policy loss, plus KL to the reference, minus the entropy bonus."""

        def loss(logp_N: Tensor, entropy_N: Tensor, rows: slice) -> Tensor:
            part = fields[rows]
            old_logp_N = logp_N.detach() if part.old_logp_N is None else part.old_logp_N
            loss_N = self._policy_loss(logp_N, logp_N - old_logp_N, part)
            if self.config.mismatch.level != "off":
                loss_N = loss_N * self._mismatch_weight(old_logp_N, part)
            if self.has_kl_loss:
                loss_N = loss_N + self.kl_coefficient * kl_estimate(
                    logp_N, part.reference_logp_N, self.config.kl.estimator
                )
            if self.config.entropy_coefficient:
                loss_N = loss_N - self.config.entropy_coefficient * entropy_N
            return part.weight_N * loss_N

        return loss

    @torch.no_grad()
    def measure(self, logp_N: Tensor, entropy_N: Tensor, fields: TokenFields) -> dict[str, float]:
        """Sums over the tokens of a micro-batch."""
        gap_N = logp_N - fields.engine_logp_N
        old_logp_N = logp_N if fields.old_logp_N is None else fields.old_logp_N
        ratio_N = policy_losses.importance_ratio(logp_N - old_logp_N)
        low_N = (ratio_N < 1 - self.config.clip_low) & (fields.advantage_N < 0)
        high_N = (ratio_N > 1 + self.config.clip_high) & (fields.advantage_N > 0)
        sums = {
            "policy/entropy": entropy_N,
            "policy/ratio_mean": ratio_N,
            "policy/clip_low_share": low_N,
            "policy/clip_high_share": high_N,
            "policy/engine_ratio_mean": policy_losses.importance_ratio(gap_N),
            "policy/engine_logp_gap": gap_N.abs(),
            "policy/kl_engine": -gap_N,
        }
        if self.config.mismatch.level != "off":
            weight_N = sums["policy/mismatch_weight"] = self._mismatch_weight(old_logp_N, fields)
            mismatch = self.config.mismatch
            sums["policy/mismatch_capped_share"] = (
                weight_N >= mismatch.cap if mismatch.mode == "truncate" else weight_N == 0
            )
        if fields.reference_logp_N is not None:
            sums["policy/kl_reference"] = kl_estimate(logp_N, fields.reference_logp_N, "k3")
        return {name: float(values.double().sum()) for name, values in sums.items()}

    def _advantages(self, rewards_S: Tensor, learner: Learner) -> Tensor:
        if self.config.advantage == "batch_mean":
            local = {"sum": float(rewards_S.sum()), "count": float(len(rewards_S))}
            total = sum_numbers(local, learner.device)
            return advantages.batch_mean(rewards_S, total["sum"] / max(1.0, total["count"]))
        groups = rewards_S.split(self.samples_per_prompt)
        if self.config.advantage == "group_normalised":
            return torch.cat([advantages.group_normalised(group, self.config.advantage_epsilon) for group in groups])
        function = advantages.group_mean if self.config.advantage == "group_mean" else advantages.leave_one_out
        return torch.cat([function(group) for group in groups])

    def _policy_loss(self, logp_N: Tensor, log_ratio_N: Tensor, part: TokenFields) -> Tensor:
        config = self.config
        if config.importance == "sequence":
            log_ratio_N = policy_losses.sequence_log_ratio(log_ratio_N, part.sequence_N, part.sequences)
        if config.loss == "reinforce":
            return policy_losses.reinforce(logp_N, part.advantage_N)
        bounds = {"clip_low": config.clip_low, "clip_high": config.clip_high}
        if config.loss == "cispo":
            return policy_losses.cispo(log_ratio_N, logp_N, part.advantage_N, **bounds)
        return policy_losses.clipped_surrogate(log_ratio_N, part.advantage_N, **bounds, dual_clip=config.dual_clip)

    def _mismatch_weight(self, old_logp_N: Tensor, part: TokenFields) -> Tensor:
        mismatch = self.config.mismatch
        assert mismatch.level != "off"
        return mismatch_weight(
            old_logp_N, part.engine_logp_N, part.sequence_N, part.sequences,
            level=mismatch.level, mode=mismatch.mode, cap=mismatch.cap,
        )  # fmt: skip

    def _kl_totals(self, samples: list[Sample], references: list[tuple[float, ...] | None]) -> Tensor:
        """KL estimate of each completion, summed over its tokens, at the policy that sampled it."""
        estimator = self.config.kl.estimator
        return torch.stack(
            [
                kl_estimate(torch.tensor(sample.own(sample.logps)), torch.tensor(reference or ()), estimator).sum()
                for sample, reference in zip(samples, references, strict=True)
            ]
        )


def _rewards(samples: list[Sample]) -> Tensor:
    missing = [sample.id for sample in samples if sample.reward is None]
    if missing:
        raise ValueError(f"samples without a reward: {missing[:4]}; score them before preparing a batch")
    return torch.tensor([sample.reward for sample in samples], dtype=torch.float32)
