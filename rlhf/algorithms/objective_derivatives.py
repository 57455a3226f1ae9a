"""First and second derivatives of token objectives by the log-prob of the action: phi' and phi'' of curvature.py.

An objective is maximised: it is minus the loss of `policy_losses.py` and `kl.py`. Terms of a sum add.
"""

import torch
from torch import Tensor

from rlhf.algorithms.policy_losses import LOG_RATIO_LIMIT, importance_ratio


def ratio_surrogate(
    log_ratio_N: Tensor, advantage_N: Tensor, *, clip_low: float = float("inf"), clip_high: float = float("inf")
) -> tuple[Tensor, Tensor]:
    """min(r A, clip(r, 1 - clip_low, 1 + clip_high) A): both are r A, and 0 on the flat side of the clip."""
    ratio_N = importance_ratio(log_ratio_N)
    is_flat_N = ((advantage_N > 0) & (ratio_N > 1 + clip_high)) | ((advantage_N < 0) & (ratio_N < 1 - clip_low))
    both_N = torch.where(is_flat_N, torch.zeros_like(ratio_N), ratio_N * advantage_N)
    return both_N, both_N


def log_prob_surrogate(advantage_N: Tensor) -> tuple[Tensor, Tensor]:
    """A log p: A and 0."""
    return advantage_N, torch.zeros_like(advantage_N)


def k3_penalty(logp_N: Tensor, reference_logp_N: Tensor, coefficient: float) -> tuple[Tensor, Tensor]:
    """-coefficient * (r - 1 - log r), r = p_ref / p: -coefficient (1 - r) and -coefficient r."""
    log_r_N = reference_logp_N - logp_N
    r_N = log_r_N.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    return coefficient * (r_N - 1), -coefficient * r_N
