"""Which hypothesis does LOOP act on, and when is it no longer in the confidence set? (arXiv 2404.12648)

LOOP maximises J over hypotheses whose excess Bellman loss is at most beta. In the tabular case the loss separates into
pairs; relaxing the joint ball to a box of sp^2 beta a pair, the maximum solves a bonus-augmented Bellman equation

    J + Q(s, a) = r(s, a) + sp sqrt(beta / max(1, N(s, a))) + P V(s, a),    V = min(max_a Q, min V + sp)           (1)

with empirical r and P; a pair that was never visited pays 1 and leads to the best state. The hypothesis is kept until
N (Q + J - r - P V)^2 >= multiplier sp^2 beta at some pair (2). The box and (1) are derived from the paper's structure,
not quoted; the multiplier 4 of its switching rule is recalled, not verified (any in [3, 8] has the same logarithmic
growth of switches).
"""

import numpy as np

from rlhf.algorithms.tabular.mdp import Array
from rlhf.algorithms.tabular.pair_statistics import EmpiricalModel
from rlhf.algorithms.tabular.relative_value_iteration import GainBias, iterate_to_fixed_point

REWARD_MAX = 1.0
TOLERANCE = 1e-5


def optimistic_plan(model: EmpiricalModel, *, span: float, beta: float, start_S: Array | None = None) -> GainBias:
    """The solution of (1). `span`: sp(V*), or an upper bound of it; `start_S`: an earlier V, to begin from.

    `gain` may exceed the largest reward while bonuses are large. Raises ValueError for a `span` not above 0 or a
    negative `beta`.
    """
    check_confidence(span, beta)
    bonus_SA = span * np.sqrt(beta / np.maximum(1, model.visits_SA))
    is_new_SA = model.visits_SA == 0
    optimistic_SA = model.reward_SA + bonus_SA

    def backup(value_S: Array) -> Array:
        return np.where(is_new_SA, REWARD_MAX + value_S.max(), optimistic_SA + model.transition_SAS @ value_S)

    return iterate_to_fixed_point(backup, _start(start_S, model), span=span, tolerance=TOLERANCE)


def certainty_equivalent_plan(model: EmpiricalModel, *, span: float, start_S: Array | None = None) -> GainBias:
    """The same without optimism, an ablation: no bonus, and a pair never visited pays nothing and stays where it is."""
    check_confidence(span, beta=0)
    is_new_SA = model.visits_SA == 0

    def backup(value_S: Array) -> Array:
        return np.where(is_new_SA, value_S[:, None], model.reward_SA + model.transition_SAS @ value_S)

    return iterate_to_fixed_point(backup, _start(start_S, model), span=span, tolerance=TOLERANCE)


def excess_loss(model: EmpiricalModel, hypothesis: GainBias) -> Array:
    """N (Q + J - r - P V)^2 of every pair, (S, A): at most sp^2 beta right after `optimistic_plan`."""
    backup_SA = model.reward_SA + model.transition_SAS @ hypothesis.value_S
    return model.visits_SA * (hypothesis.q_SA + hypothesis.gain - backup_SA) ** 2


def switch_threshold(*, span: float, beta: float, multiplier: float = 4.0) -> float:
    """The excess of one pair at which (2) drops the hypothesis. Raises ValueError where that would be at once."""
    check_confidence(span, beta)
    if not multiplier > 1:
        raise ValueError(f"multiplier is {multiplier}: it must be above 1, or a new plan would be dropped at once")
    return multiplier * span**2 * beta


def check_confidence(span: float, beta: float) -> None:
    """Raises ValueError naming the setting, its value and what it may be."""
    if not 0 < span < float("inf"):
        raise ValueError(f"span is {span}: it must be above 0 and finite; give sp(V*) or an upper bound of it")
    if not 0 <= beta < float("inf"):
        raise ValueError(f"beta is {beta}: it must be 0 or more and finite; it is the squared radius of a pair's box")


def _start(start_S: Array | None, model: EmpiricalModel) -> Array:
    return np.zeros(len(model.visits_SA)) if start_S is None else start_S
