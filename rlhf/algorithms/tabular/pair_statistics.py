"""What was seen at each state-action pair, and by how much does a frozen hypothesis miss it?

With tabular hypotheses the excess squared Bellman loss of a frozen f = (prediction, V) separates into pairs,

    L_D(f, f) - min_g L_D(g, f) = sum_p N_p (prediction_p - mean reward_p - mean V(s')_p)^2,

where the prediction is Q for episodes (arXiv 2505.03710) and Q + J for average reward (arXiv 2404.12648). A visit
changes one term, so a step costs a few operations on Python numbers, which beat numpy's on single elements by far.
"""

from dataclasses import dataclass

import numpy as np

from rlhf.algorithms.tabular.mdp import Array


@dataclass(frozen=True, slots=True)
class EmpiricalModel:
    """Means of what was seen, over any leading axes of pairs (here written SA): 0 where `visits_SA` is 0."""

    visits_SA: Array
    reward_SA: Array
    transition_SAS: Array


class PairStatistics:
    """Counts of pairs p in row-major order, and the excess loss of the hypothesis frozen last."""

    __slots__ = ("_backup", "_prediction", "_value", "next_counts", "reward_sum", "visits")

    def __init__(self, pairs: int, states: int) -> None:
        self.visits = [0] * pairs
        self.reward_sum = [0.0] * pairs
        self.next_counts = [[0] * states for _ in range(pairs)]
        self.freeze(np.zeros(pairs), np.zeros((pairs, states)))

    def freeze(self, prediction_P: Array, value_PS: Array) -> None:
        """Measure the excess of this hypothesis from now on; `value_PS`: V of every next state, as pair p sees it."""
        self._prediction: list[float] = prediction_P.ravel().tolist()
        self._value: list[list[float]] = value_PS.tolist()
        seen_P = np.array(self.reward_sum) + (np.array(self.next_counts) * value_PS).sum(1)
        self._backup: list[float] = seen_P.tolist()

    def record(self, pair: int, reward: float, next_state: int) -> float:
        """Count one visit; the pair's excess loss after it."""
        visits = self.visits[pair] + 1
        self.visits[pair] = visits
        self.reward_sum[pair] += reward
        self.next_counts[pair][next_state] += 1
        backup = self._backup[pair] + reward + self._value[pair][next_state]
        self._backup[pair] = backup
        miss = visits * self._prediction[pair] - backup
        return miss * miss / visits

    def excess_P(self) -> Array:
        """The excess loss of every pair, 0 where it was never visited."""
        visits_P = np.array(self.visits, dtype=np.float64)
        miss_P = visits_P * self._prediction - self._backup
        return miss_P * miss_P / np.maximum(visits_P, 1)

    def model(self, *leading: int) -> EmpiricalModel:
        """Empirical means with the pairs' axis unfolded to `leading`, (S, A) or (H, S, A)."""
        visits_P = np.array(self.visits, dtype=np.float64)
        least_P = np.maximum(visits_P, 1)
        transition_PS = np.array(self.next_counts, dtype=np.float64) / least_P[:, None]
        return EmpiricalModel(
            visits_P.reshape(leading),
            (np.array(self.reward_sum) / least_P).reshape(leading),
            transition_PS.reshape(*leading, -1),
        )
