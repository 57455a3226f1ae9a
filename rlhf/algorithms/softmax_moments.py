"""Means and variances of a logit change u under a softmax policy, without a tokens x vocabulary tensor.

For one token with policy p and action a, write q = 1 - p_a, and let m and w be the mean and the second central moment
of u over the other ids, m = sum_{k != a} p_k u_k / q and w = sum_{k != a} p_k (u_k - m)^2. Then, with d = u_a - m,

    delta = u_a - sum_k p_k u_k = q d                tau = Var_p[u] = p_a q d^2 + w

Every term of tau is positive, so neither a confident nor an unlikely action costs digits. The vocabulary is visited in
blocks. A block's moments are taken about its own mean and merged with those before by the parallel algorithm of Chan,
Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample variances", 1979).

A token's own step changes its logits by u_k = f_k - c p_k g_k for k != a and u_a = f_a + c (1 - p_a) g_a, where f is
fixed (momentum, weight decay) and the second part is its own gradient's. p_k is known only at the end, so moments are
kept for f_k and for e_k g_k, e_k = exp(x_k - max x).
"""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf.algorithms.output_head import take_column


@dataclass(slots=True)
class SoftmaxMoments:
    """Per token, over the ids other than the action, with weights e_k = exp(x_k - max_N).

    `total_N` and `squares_N`: sums of e and e^2. `fixed_mean_N`, `own_mean_N`: weighted means of f and e g.
    `fixed_spread_N`, `own_spread_N`: weighted sums of (f - mean)^2 and (e g - mean)^2; `cross_spread_N`: of the product
    of both deviations.
    `excess_N`: weighted sum of exp(t) - 1 - t, t = f - mean; it stays 0 unless asked for.
    `action_logit_N`, `action_fixed_N`, `action_scale_N`: x, f and g of the action; 0 until its id was visited.
    """

    max_N: Tensor
    total_N: Tensor
    squares_N: Tensor
    fixed_mean_N: Tensor
    own_mean_N: Tensor
    fixed_spread_N: Tensor
    cross_spread_N: Tensor
    own_spread_N: Tensor
    excess_N: Tensor
    action_logit_N: Tensor
    action_fixed_N: Tensor
    action_scale_N: Tensor

    @classmethod
    def empty(cls, count: int, like: Tensor) -> "SoftmaxMoments":
        """The moments of no id at all, in the precision and on the device of `like`."""
        values = [like.new_zeros(count) for _ in fields(cls)]
        # finite, so that a block of banned ids (all logits -inf) leaves exp(-inf) and not exp(nan)
        values[0].fill_(torch.finfo(like.dtype).min)
        return cls(*values)

    def __getitem__(self, rows: slice) -> "SoftmaxMoments":
        """The same moments of some tokens, as views."""
        return SoftmaxMoments(*(getattr(self, field.name)[rows] for field in fields(self)))

    def rescale_(self, max_N: Tensor) -> None:
        """Measure the weights from another maximum."""
        factor_N = (self.max_N - max_N).exp()
        square_N = factor_N.square()
        self.total_N.mul_(factor_N)
        self.squares_N.mul_(square_N)
        self.own_mean_N.mul_(factor_N)
        self.fixed_spread_N.mul_(factor_N)
        self.cross_spread_N.mul_(square_N)
        self.own_spread_N.mul_(square_N.mul_(factor_N))
        self.excess_N.mul_(factor_N)
        self.max_N.copy_(max_N)

    def merge_(self, other: "SoftmaxMoments", *, with_excess: bool = False) -> None:
        """Add the moments of other ids of the same tokens."""
        max_N = torch.maximum(self.max_N, other.max_N)
        self.rescale_(max_N)
        other.rescale_(max_N)
        total_N = self.total_N + other.total_N
        share_N = other.total_N / total_N.clamp_min(torch.finfo(total_N.dtype).tiny)
        both_N = self.total_N * share_N
        fixed_gap_N = other.fixed_mean_N - self.fixed_mean_N
        own_gap_N = other.own_mean_N - self.own_mean_N
        self.fixed_spread_N.add_(other.fixed_spread_N).addcmul_(both_N * fixed_gap_N, fixed_gap_N)
        self.cross_spread_N.add_(other.cross_spread_N).addcmul_(both_N * fixed_gap_N, own_gap_N)
        self.own_spread_N.add_(other.own_spread_N).addcmul_(both_N * own_gap_N, own_gap_N)
        if with_excess:
            here_N, there_N = -share_N * fixed_gap_N, (1 - share_N) * fixed_gap_N
            moved_N = recentred_excess(self.excess_N, self.total_N, here_N)
            self.excess_N.copy_(moved_N + recentred_excess(other.excess_N, other.total_N, there_N))
        self.fixed_mean_N.addcmul_(share_N, fixed_gap_N)
        self.own_mean_N.addcmul_(share_N, own_gap_N)
        self.squares_N.add_(other.squares_N)
        self.total_N.copy_(total_N)
        self.action_logit_N.add_(other.action_logit_N)
        self.action_fixed_N.add_(other.action_fixed_N)
        self.action_scale_N.add_(other.action_scale_N)


class LogitChange(NamedTuple):
    """What a change u of the logits does at each token.

    `logp_N`: log p_a. `log_normalizer_N`: logsumexp of the logits. `delta_N`, `variance_N`: delta and tau of this
    file's head. `kl_N`: KL(p || p_new), exact; meaningless where the excess was not asked for. `score_norm_N`:
    sum_k ([k = a] - p_k)^2.
    """

    logp_N: Tensor
    log_normalizer_N: Tensor
    delta_N: Tensor
    variance_N: Tensor
    kl_N: Tensor
    score_norm_N: Tensor


def logit_change(moments: SoftmaxMoments, coefficient_N: Tensor | float = 0.0) -> LogitChange:
    """delta, tau and the rest once every id was visited, for u_k = f_k + c ([k = a] - p_k) g_k, c = `coefficient_N`."""
    max_N = torch.maximum(moments.max_N, moments.action_logit_N)
    factor_N = (moments.max_N - max_N).exp()
    others_N = factor_N * moments.total_N
    action_N = (moments.action_logit_N - max_N).exp()
    # 1 + x - 1 keeps the digits of a small sum beside a confident action, for which exp(0) is 1
    log_sum_N = torch.log1p((action_N - 1) + others_N)
    sum_N = action_N + others_N
    p_action_N, p_others_N, per_weight_N = action_N / sum_N, others_N / sum_N, factor_N / sum_N
    own_N = coefficient_N * per_weight_N
    mean_N = moments.fixed_mean_N - own_N * moments.own_mean_N
    gap_N = moments.action_fixed_N + coefficient_N * p_others_N * moments.action_scale_N - mean_N
    within_N = moments.fixed_spread_N + own_N * (own_N * moments.own_spread_N - 2 * moments.cross_spread_N)
    # the means over all ids, seen from the others and from the action
    excess_N = recentred_excess(per_weight_N * moments.excess_N, p_others_N, -p_action_N * gap_N)
    excess_N = excess_N + p_action_N * exp_excess(p_others_N * gap_N)
    return LogitChange(
        logp_N=(moments.action_logit_N - max_N) - log_sum_N,
        log_normalizer_N=max_N + log_sum_N,
        delta_N=p_others_N * gap_N,
        variance_N=p_action_N * p_others_N * gap_N.square() + (per_weight_N * within_N).clamp_min(0),
        kl_N=torch.log1p(excess_N),
        score_norm_N=p_others_N.square() + per_weight_N.square() * moments.squares_N,
    )


def block_moments(
    logits_nb: Tensor,
    column_n: Tensor,
    max_n: Tensor,
    *,
    fixed_nb: Tensor | None,
    scale_nb: Tensor | None,
    has_own: bool,
    weighted_nb: Tensor | None = None,
    own_nb: Tensor | None = None,
    with_excess: bool = False,
) -> SoftmaxMoments:
    """The moments of one block of ids; every (n, b) tensor is overwritten.

    `column_n`: the action's column, or one outside [0, b) where it is elsewhere. `max_n`: the maximum so far.
    `fixed_nb`, `scale_nb`: f and g of the file's head; None stands for 0 and for 1. Without `has_own` there is no
    second part. `weighted_nb`, `own_nb`: memory for e f and for e g, allocated where it is not given.
    """
    block = SoftmaxMoments.empty(len(logits_nb), logits_nb)
    inside_n1, column_n1, action_n1 = take_column(logits_nb, column_n)
    block.action_logit_N = _where_inside(inside_n1, action_n1)
    logits_nb.scatter_(1, column_n1, action_n1.masked_fill(inside_n1, -torch.inf))
    block.max_N = torch.maximum(max_n, logits_nb.amax(1))
    e_nb = logits_nb.sub_(block.max_N[:, None]).exp_()
    block.total_N = e_nb.sum(1)
    block.squares_N = _dot(e_nb, e_nb)
    total_n = block.total_N.clamp_min(torch.finfo(e_nb.dtype).tiny)
    if fixed_nb is not None:
        block.action_fixed_N = _where_inside(inside_n1, fixed_nb.gather(1, column_n1))
        block.fixed_mean_N = _dot(e_nb, fixed_nb) / total_n
        fixed_nb.sub_(block.fixed_mean_N[:, None])
        weighted_nb = torch.mul(e_nb, fixed_nb, out=weighted_nb)
        block.fixed_spread_N = _dot(weighted_nb, fixed_nb)
        if with_excess:
            block.excess_N = _dot(e_nb, exp_excess(fixed_nb))
    if not has_own:
        return block
    if scale_nb is None:
        block.action_scale_N = inside_n1[:, 0].to(e_nb.dtype)
        block.own_mean_N = block.squares_N / total_n
        own_nb = torch.sub(e_nb, block.own_mean_N[:, None], out=own_nb)
    else:
        block.action_scale_N = _where_inside(inside_n1, scale_nb.gather(1, column_n1))
        own_nb = torch.mul(scale_nb, e_nb, out=own_nb)
        block.own_mean_N = _dot(e_nb, own_nb) / total_n
        own_nb.sub_(block.own_mean_N[:, None])
    if fixed_nb is not None:
        block.cross_spread_N = _dot(weighted_nb, own_nb)
    block.own_spread_N = _dot(e_nb.mul_(own_nb), own_nb)
    return block


def exp_excess(t: Tensor) -> Tensor:
    """exp(t) - 1 - t, also where t is so small that the difference would have no digits."""
    small = t.clamp(-0.25, 0.25)
    # t^2/2 (1 + t/3 (1 + t/4 (...))): the exponential series from its square term, by Horner's rule
    series = small / 13 + 1
    for n in range(12, 2, -1):
        series.mul_(small).div_(n).add_(1)
    series.mul_(small).mul_(small).div_(2)
    return torch.where(t.abs() <= 0.25, series, torch.expm1(t) - t)


def recentred_excess(excess_N: Tensor, total_N: Tensor, shift_N: Tensor) -> Tensor:
    """sum w (exp(t + shift) - 1 - (t + shift)) from sum w (exp(t) - 1 - t), total w, where sum w t = 0."""
    moved_N = shift_N.exp() * excess_N + total_N * exp_excess(shift_N)
    # an empty group has no mean, and its shift may overflow
    return torch.where(total_N == 0, torch.zeros_like(moved_N), moved_N)


def _dot(left_nb: Tensor, right_nb: Tensor) -> Tensor:
    return torch.linalg.vecdot(left_nb, right_nb)


def _where_inside(inside_n1: Tensor, value_n1: Tensor) -> Tensor:
    return torch.where(inside_n1, value_n1, torch.zeros_like(value_n1)).squeeze(1)
