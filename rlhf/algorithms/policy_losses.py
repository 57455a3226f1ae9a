"""Policy-gradient losses per token, not yet aggregated: `aggregation.py` owns the denominator.

`log_ratio_N` is log pi(token) - log pi_old(token); its gradient is that of log pi. Everything else is constant.
"""

import torch
from torch import Tensor

# exp(20) = 5e8: beyond this a ratio says nothing but "far off", and exp would overflow to inf at 89
LOG_RATIO_LIMIT = 20.0


def importance_ratio(log_ratio_N: Tensor) -> Tensor:
    """exp of the log-ratio, bounded so that one far-off token cannot make the step infinite."""
    return log_ratio_N.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def clipped_surrogate(
    log_ratio_N: Tensor, advantage_N: Tensor, *, clip_low: float, clip_high: float, dual_clip: float | None = None
) -> Tensor:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) (PPO, arXiv 1707.06347, eq. 7; separate bounds: DAPO, arXiv
    2503.14476, eq. 10).

    With `dual_clip` c > 1 a negative advantage's loss is at most -c A (arXiv 1912.09729, eq. 5).
    """
    ratio_N = importance_ratio(log_ratio_N)
    surrogate_N = torch.minimum(ratio_N * advantage_N, ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantage_N)
    if dual_clip is not None:
        bounded_N = torch.maximum(surrogate_N, dual_clip * advantage_N)
        surrogate_N = torch.where(advantage_N < 0, bounded_N, surrogate_N)
    return -surrogate_N


def cispo(log_ratio_N: Tensor, logp_N: Tensor, advantage_N: Tensor, *, clip_low: float, clip_high: float) -> Tensor:
    """-stop_gradient(clip(r)) A log pi: the weight is clipped, no token's gradient is dropped (MiniMax-M1, arXiv
    2506.13585, eq. 4)."""
    weight_N = importance_ratio(log_ratio_N.detach()).clamp(1 - clip_low, 1 + clip_high)
    return -weight_N * advantage_N * logp_N


def reinforce(logp_N: Tensor, advantage_N: Tensor) -> Tensor:
    """-A log pi (Williams 1992)."""
    return -advantage_N * logp_N


def sequence_log_ratio(log_ratio_N: Tensor, sequence_N: Tensor, count: int) -> Tensor:
    """Each token's log-ratio replaced by its sequence's mean, the log of GSPO's s_i (arXiv 2507.18071, eq. 7).

    Every token of a sequence gets the same value. Summed over the sequence's tokens and divided by their number, the
    clipped surrogate of this value is GSPO's loss (eq. 5) exactly.
    """
    length_S = torch.zeros(count, dtype=log_ratio_N.dtype, device=log_ratio_N.device)
    length_S = length_S.index_add(0, sequence_N, torch.ones_like(log_ratio_N)).clamp(min=1)
    total_S = torch.zeros_like(length_S).index_add(0, sequence_N, log_ratio_N)
    return (total_S / length_S)[sequence_N]
