"""Which tokens may take part in an optimizer step: acceptance of predicted shifts (CAPO, arXiv 2510.00819, section 4).

Every test is a conjunction of comparisons that must hold, so a shift that is NaN or infinite is rejected.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlhf.algorithms.aggregate_steps import GroupShifts
from rlhf.algorithms.curvature import TokenShifts

Rule = Literal["token", "sequence", "global", "greedy"]
RULES: tuple[Rule, ...] = ("token", "sequence", "global", "greedy")

# (accepted_N, group_N, groups) to the shifts of each group's step of its accepted tokens
GroupEvaluator = Callable[[Tensor, Tensor, int], GroupShifts]


@dataclass(frozen=True, slots=True)
class TrustRegion:
    """delta_h_low < m_H < delta_h_high and m_F < delta_f.

    A lower bound of exactly 0 is met by a shift of 0, so that a token without a gradient (or a learning rate of 0) is
    accepted: the released code's one-sided mode is 0 <= m_H < delta_h_high.

    Raises ValueError where delta_f is not above 0 or the band is empty; an infinite bound switches a test off.
    """

    delta_f: float = 1e-4
    delta_h_low: float = -0.01
    delta_h_high: float = 0.01

    def __post_init__(self) -> None:
        if not self.delta_f > 0:
            raise ValueError(
                f"delta_f must be above 0, got {self.delta_f}: 0 would reject every token; use inf to turn the test off"
            )
        if not self.delta_h_low < self.delta_h_high:
            raise ValueError(
                f"delta_h_low must be below delta_h_high, got {self.delta_h_low} and {self.delta_h_high}: "
                "no objective shift could be accepted"
            )

    def is_above_low(self, objective: Tensor) -> Tensor:
        return objective >= 0 if self.delta_h_low == 0 else objective > self.delta_h_low

    def accepts(self, objective: Tensor, policy: Tensor) -> Tensor:
        """Elementwise, over tokens or groups; bool."""
        return self.is_above_low(objective) & (objective < self.delta_h_high) & (policy < self.delta_f)


class Rejections(NamedTuple):
    """Why the token rule rejects; a finite token may have more than one reason."""

    policy_N: Tensor
    objective_low_N: Tensor
    objective_high_N: Tensor
    nonfinite_N: Tensor


def rejections(shifts: TokenShifts, region: TrustRegion) -> Rejections:
    """The tests of the token rule one by one, for counting."""
    finite_N = is_finite(shifts)
    return Rejections(
        policy_N=finite_N & ~(shifts.policy_N < region.delta_f),
        objective_low_N=finite_N & ~region.is_above_low(shifts.objective_N),
        objective_high_N=finite_N & ~(shifts.objective_N < region.delta_h_high),
        nonfinite_N=~finite_N,
    )


def is_finite(shifts: TokenShifts) -> Tensor:
    return shifts.objective_N.isfinite() & shifts.policy_N.isfinite()


def accept(
    shifts: TokenShifts,
    region: TrustRegion,
    rule: Rule | Collection[Rule] = "token",
    *,
    sequence_N: Tensor | None = None,
    sequences: int | None = None,
    evaluate: GroupEvaluator | None = None,
    cross_shift_NN: Tensor | None = None,
) -> Tensor:
    """Mask of the accepted tokens, (N,) bool.

    token: each token by its own step. sequence: a sequence's tokens together, by the step they take together. global:
    all tokens, by the batch's step; a mask without any token means that the optimizer step is to be skipped.
    greedy: tokens are dropped one by one until the batch's m_F is below delta_f (`greedy`).

    Several rules are applied in this order, each to what the ones before have left: steps of groups are evaluated anew
    from the tokens still accepted. Non-finite tokens are rejected first by every rule.

    `evaluate` gives the shifts of groups (`aggregate_steps.mean_step_shifts` with its other arguments bound); over
    several ranks it must sum before it divides, so that all take the same decision in the global rule.
    `cross_shift_NN`: see `greedy`.

    Raises ValueError for an unknown rule or a rule without what it needs.
    """
    rules = {rule} if isinstance(rule, str) else set(rule)
    if not rules or not rules <= set(RULES):
        raise ValueError(f"unknown acceptance rules {sorted(rules - set(RULES))} in {rule!r}: choose from {RULES}")
    if rules & {"sequence", "global"} and evaluate is None:
        raise ValueError(f"the rules {sorted(rules & {'sequence', 'global'})} need evaluate, the shifts of groups")
    accepted_N = is_finite(shifts)
    if "token" in rules:
        accepted_N = accepted_N & region.accepts(shifts.objective_N, shifts.policy_N)
    if "sequence" in rules:
        if sequence_N is None or sequences is None:
            raise ValueError("the sequence rule needs sequence_N, each token's sequence, and their number")
        groups = evaluate(accepted_N, sequence_N, sequences)
        accepted_N = accepted_N & region.accepts(groups.objective_S, groups.policy_S)[sequence_N]
    if "global" in rules:
        group_N = torch.zeros_like(accepted_N, dtype=torch.long)
        batch = evaluate(accepted_N, group_N, 1)
        accepted_N = accepted_N & region.accepts(batch.objective_S, batch.policy_S)[group_N]
    if "greedy" in rules:
        if cross_shift_NN is None:
            raise ValueError("the greedy rule needs cross_shift_NN, what each token's share of the step does at each")
        accepted_N = greedy(cross_shift_NN, accepted_N, region.delta_f)
    return accepted_N


def sgd_cross_shifts(score_gram_NN: Tensor, slope_N: Tensor, lr: float) -> Tensor:
    """delta at token s (column) of token i's share (row) of the step lr/N sum_i phi'_i grad log p(a_i); the Gram matrix
    is `gradient_gram.score_gram`'s."""
    return score_gram_NN * (slope_N[:, None] * (lr / len(slope_N)))


def greedy(cross_shift_NN: Tensor, accepted_N: Tensor, delta_f: float) -> Tensor:
    """Backward selection: while the batch's m_F (sampled Fisher) is not below delta_f, drop the token whose removal
    leaves the smallest one.

    `cross_shift_NN[i, s]`: delta at token s of token i's share of the step. Shares do not grow when others are dropped,
    and m_F is the mean over the states of all finite tokens, dropped ones too. Removing a token can raise m_F where
    steps cancel, so the result need not be the largest set within the budget. Time and memory O(N^2) after one product
    N^3: for small N.
    """
    finite_N = cross_shift_NN.diagonal().isfinite()
    kept = (accepted_N & finite_N).nonzero()[:, 0].tolist()
    share_KS = cross_shift_NN[kept][:, finite_N].double()
    effect_KK = share_KS @ share_KS.t() / max(1, share_KS.shape[1])
    shift = effect_KK.sum() / 2
    # by how much m_F falls when a token is dropped: its overlap with the whole step, less half its own effect
    overlap_K = effect_KK.sum(1)
    own_K, left_K = effect_KK.diagonal() / 2, torch.ones(len(kept), dtype=torch.bool, device=effect_KK.device)
    while left_K.any() and not shift < delta_f:
        after_K = torch.where(left_K, shift - overlap_K + own_K, torch.inf)
        dropped = int(after_K.argmin())
        shift = after_K[dropped]
        left_K[dropped] = False
        overlap_K = overlap_K - effect_KK[dropped]
    result_N = torch.zeros_like(accepted_N)
    result_N[torch.tensor(kept, dtype=torch.long, device=result_N.device)] = left_K
    return result_N


def calibrate(
    kappa_policy_N: Tensor, kappa_first_N: Tensor, kappa_second_N: Tensor, lr: float, quantile: float
) -> TrustRegion:
    """The region that `quantile` of the measured tokens would lie within at the learning rate `lr`.

    delta_f is that quantile of m_F = lr^2 kappa_policy, and the band is symmetric, that quantile of |m_H|,
    m_H = lr kappa_first + lr^2 kappa_second. Give the largest learning rate of the run and kappas of steps without a
    mask. Non-finite tokens and tokens that propose no step are left out. A quantile is an order statistic, the smallest
    value with at least that share at or below it.

    Raises ValueError for a learning rate that is not above 0, a quantile outside (0, 1], or no token to measure.
    """
    if not 0 < lr < math.inf:
        raise ValueError(f"calibration needs a finite learning rate above 0, got {lr}")
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must be in (0, 1], got {quantile}")
    policy_N = lr**2 * kappa_policy_N.double()
    size_N = (lr * kappa_first_N.double() + lr**2 * kappa_second_N.double()).abs()
    measured_N = policy_N.isfinite() & size_N.isfinite() & (policy_N > 0) & (size_N > 0)
    policy_M, size_M = policy_N[measured_N], size_N[measured_N]
    if len(policy_M) == 0:
        raise ValueError(
            f"none of {len(policy_N)} tokens proposes a finite step: calibrate on batches whose advantages are not 0"
        )
    rank = max(1, math.ceil(quantile * len(policy_M)))
    delta_f, delta_h = (float(values.kthvalue(rank).values) for values in (policy_M, size_M))
    return TrustRegion(delta_f=delta_f, delta_h_low=-delta_h, delta_h_high=delta_h)
