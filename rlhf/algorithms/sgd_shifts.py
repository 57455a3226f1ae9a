"""Shifts of plain gradient steps in closed form, for callers whose own pass over the head has summed the probabilities.

With q = 1 - p_a, S = sum_{k != a} p_k^2 and C = sum_{k != a} p_k^3, a step lr phi' w grad log p(a) has

    delta = lr phi' w |h|^2 (q^2 + S)          tau = (lr phi' w |h|^2)^2 (p_a q^3 + C + S (2 p_a q - S))

These sums leave the action out and take q from log p, so a confident action keeps its digits. tau of an action with
p_a below about 1e-3 loses some to C - S^2 in float32; `token_shifts` does not.
"""

import torch
from torch import Tensor

from rlhf.algorithms.curvature import Fisher, TokenShifts, shifts_of_change, slope_and_curvature
from rlhf.algorithms.output_head import check_length
from rlhf.algorithms.softmax_moments import LogitChange


@torch.no_grad()
def sgd_shifts(
    logp_N: Tensor,
    others_square_N: Tensor,
    others_cube_N: Tensor,
    log_normalizer_N: Tensor,
    hidden_norm_N: Tensor,
    advantages_N: Tensor,
    *,
    lr: float,
    gain: float = 1.0,
    fisher: Fisher = "sampled",
    ratio_N: Tensor | None = None,
    objective_slope_N: Tensor | None = None,
    objective_curvature_N: Tensor | None = None,
    token_weight_N: Tensor | None = None,
) -> TokenShifts:
    """What `token_shifts` gives for step_model="sgd", from sums over the vocabulary.

    `others_square_N`, `others_cube_N`: sums of p^2 and p^3 over the ids other than the action. `hidden_norm_N`: |h|^2.
    `gain`: logit_scale / temperature. Without a softcap, a bias or weight decay.

    Raises ValueError as `token_shifts` does.
    """
    count, dtype = len(logp_N), logp_N.dtype
    check_length(
        count,
        others_square_N=others_square_N,
        others_cube_N=others_cube_N,
        log_normalizer_N=log_normalizer_N,
        hidden_norm_N=hidden_norm_N,
        token_weight_N=token_weight_N,
    )
    slope_N, curvature_N = slope_and_curvature(
        count, advantages_N, ratio_N, objective_slope_N, objective_curvature_N, dtype
    )
    own_N = slope_N if token_weight_N is None else slope_N * token_weight_N.to(dtype)
    p_N, q_N = logp_N.exp(), -torch.expm1(logp_N)
    size_N = own_N * hidden_norm_N * gain**2
    score_norm_N = q_N.square() + others_square_N
    spread_N = p_N * q_N**3 + others_cube_N + others_square_N * (2 * p_N * q_N - others_square_N)
    change = LogitChange(
        logp_N=logp_N,
        log_normalizer_N=log_normalizer_N,
        delta_N=size_N * score_norm_N,
        variance_N=size_N.square() * spread_N.clamp_min(0),
        kl_N=torch.zeros_like(logp_N),
        score_norm_N=score_norm_N,
    )
    return shifts_of_change(change, lr, fisher, own_N == 0, slope_N, curvature_N, hidden_norm_N)
