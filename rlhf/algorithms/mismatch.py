"""Truncated importance sampling: the engine sampled from other probabilities than the learner computes, by rounding, or
because its weights were older."""

from typing import Literal

import torch
from torch import Tensor

from rlhf.algorithms.policy_losses import importance_ratio


def mismatch_weight(
    learner_logp_N: Tensor,
    engine_logp_N: Tensor,
    sequence_N: Tensor,
    count: int,
    *,
    level: Literal["token", "sequence"],
    mode: Literal["truncate", "mask"],
    cap: float,
) -> Tensor:
    """Weight of each token: pi_learner / pi_engine of the token or of its whole sequence, truncated or masked at `cap`.

    `engine_logp_N`: of the policy that generated the sample, as its engine computed them. `learner_logp_N`: before the
    first update on the sample, of the policy that the loss' own ratio starts from. Where that is a later one than the
    engine's (`batch.staleness`), the weight stands for both differences, and the clip range is around the later policy:
    the decoupled objective of Hilton et al. 2021 (arXiv 2110.00641). The weight carries no gradient.
    Source: truncated importance sampling, Ionides 2008; for engines, Yao et al. 2025 ("Your efficient RL framework
    secretly brings you off-policy RL training").
    """
    log_ratio_N = (learner_logp_N - engine_logp_N).detach()
    if level == "sequence":
        total_S = torch.zeros(count, dtype=log_ratio_N.dtype, device=log_ratio_N.device)
        log_ratio_N = total_S.index_add(0, sequence_N, log_ratio_N)[sequence_N]
    ratio_N = importance_ratio(log_ratio_N)
    if mode == "mask":
        return torch.where(ratio_N <= cap, ratio_N, torch.zeros_like(ratio_N))
    return ratio_N.clamp(max=cap)
