"""What are the optimal gain J* and bias V* of an average-reward decision process?

    J* + Q*(s, a) = r(s, a) + E V*(s'),    V*(s) = max_a Q*(s, a)                                               (1)

the Bellman optimality equation of average reward, with V* up to a constant: here min V* = 0. Solved by relative value
iteration on the aperiodic transform V <- (1 - w) V + w L V (Puterman, "Markov Decision Processes", 8.5).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf.algorithms.tabular.mdp import Array, TabularMDP

STEP = 0.9
"""w above: below 1 so that periodic chains converge too."""


@dataclass(frozen=True, slots=True)
class GainBias:
    """A pair (Q, J) with its V: `gain` J per step, `value_S` with minimum 0, `q_SA`.

    `residual`: max_s |J + V(s) - (L V)(s)|. `q_SA` + `gain` is the right-hand side of (1) exactly.
    """

    gain: float
    value_S: Array
    q_SA: Array
    residual: float
    iterations: int

    @property
    def span(self) -> float:
        """sp(V) = max V - min V."""
        return float(np.ptp(self.value_S))

    @property
    def gap_SA(self) -> Array:
        """V(s) - Q(s, a), what choosing a once costs; 0 or more, exactly 0 for the best action."""
        return self.q_SA.max(1, keepdims=True) - self.q_SA


def solve_average_reward(mdp: TabularMDP, *, tolerance: float = 1e-12, max_iterations: int = 100_000) -> GainBias:
    """Gain and bias of an optimal policy. Raises ValueError without convergence, as `iterate_to_fixed_point` does."""
    return iterate_to_fixed_point(
        lambda value_S: mdp.reward_SA + mdp.transition_SAS @ value_S,
        np.zeros(mdp.states), tolerance=tolerance, max_iterations=max_iterations,
    )  # fmt: skip


def iterate_to_fixed_point(
    backup: Callable[[Array], Array],
    start_S: Array,
    *,
    span: float | None = None,
    tolerance: float,
    max_iterations: int = 100_000,
) -> GainBias:
    """(J, V) with J + V = L V, where (L V)(s) = max_a `backup`(V)[s, a], cut at min L V + `span` where that is given.

    `backup` maps V (S,) to the right-hand side of (1), (S, A). In the end L V - V is a constant within `tolerance`.
    With a `span` there is always a solution, and the damped iteration tends to it: the cut operator is monotone,
    commutes with constants, and maps into a compact set modulo constants. Without, the process must be weakly
    communicating.

    Raises ValueError where `max_iterations` do not suffice.
    """
    value_S = start_S - start_S.min()
    for iteration in range(1, max_iterations + 1):
        target_SA = backup(value_S)
        best_S = target_SA.max(1)
        if span is not None:
            best_S = np.minimum(best_S, best_S.min() + span)
        change_S = best_S - value_S
        low, high = float(change_S.min()), float(change_S.max())
        if high - low < tolerance:
            gain = 0.5 * (low + high)
            return GainBias(gain, value_S, target_SA - gain, 0.5 * (high - low), iteration)
        value_S = value_S + STEP * change_S
        value_S -= value_S.min()
    raise ValueError(
        f"relative value iteration is still changing by {high - low:.3g} unevenly after {max_iterations} iterations "
        f"(tolerance {tolerance:g}): the gain may depend on the start state; check that every state with a better gain "
        "can be reached, or give a span"
    )


def policy_gain(mdp: TabularMDP, action_S: NDArray[np.integer]) -> float:
    """Mean reward per step of a deterministic policy, from its stationary distribution.

    Raises ValueError where the policy has more than one, since its gain then depends on the start.
    """
    states_S = np.arange(mdp.states)
    chain_SS = mdp.transition_SAS[states_S, action_S]
    system = np.vstack([chain_SS.T - np.eye(mdp.states), np.ones(mdp.states)])
    stationary_S, _, rank, _ = np.linalg.lstsq(system, np.append(np.zeros(mdp.states), 1.0))
    if rank < mdp.states:
        raise ValueError(
            f"policy {list(action_S)} has several sets of states that it never leaves: its gain depends on the start"
        )
    return float(stationary_S @ mdp.reward_SA[states_S, action_S])
