"""The excess loss of a frozen hypothesis, step by step, against the regression that it stands for."""

import numpy as np
import pytest

from rlhf.algorithms.tabular.average_reward_planning import excess_loss
from rlhf.algorithms.tabular.pair_statistics import PairStatistics
from rlhf.algorithms.tabular.relative_value_iteration import GainBias

STATES, ACTIONS, VISITS = 3, 2, 200


def test_excess_is_the_loss_over_that_of_the_best_regression():
    generator = np.random.default_rng(0)
    q_SA, value_S, gain = generator.normal(size=(STATES, ACTIONS)), generator.normal(size=STATES), 0.3
    statistics = PairStatistics(STATES * ACTIONS, STATES)
    pairs = generator.integers(STATES * ACTIONS, size=VISITS)
    next_states, rewards = generator.integers(STATES, size=VISITS), generator.random(VISITS)
    latest = {}
    for step, (pair, reward, next_state) in enumerate(zip(pairs, rewards, next_states, strict=True)):
        if step == VISITS // 2:  # data from before and after the hypothesis was frozen count alike
            statistics.freeze(q_SA + gain, np.tile(value_S, (STATES * ACTIONS, 1)))
        latest[int(pair)] = statistics.record(int(pair), float(reward), int(next_state))

    # minimum over tabular g of sum (g - r - V)^2 is the spread about each pair's mean
    target_N, excess_P = rewards + value_S[next_states], np.zeros(STATES * ACTIONS)
    for pair in range(STATES * ACTIONS):
        mine = target_N[pairs == pair]
        loss, least = ((q_SA.ravel()[pair] + gain - mine) ** 2).sum(), ((mine - mine.mean()) ** 2).sum()
        excess_P[pair] = loss - least
    assert statistics.excess_P() == pytest.approx(excess_P, abs=1e-10)
    assert [latest[pair] for pair in range(STATES * ACTIONS)] == pytest.approx(excess_P, abs=1e-10)
    hypothesis = GainBias(gain, value_S, q_SA, residual=0.0, iterations=0)
    assert excess_loss(statistics.model(STATES, ACTIONS), hypothesis).ravel() == pytest.approx(excess_P, abs=1e-10)


def test_means_of_pairs_never_visited_are_zero():
    statistics = PairStatistics(2, 2)
    for next_state in (0, 1, 1):
        statistics.record(1, 0.5, next_state)
    model = statistics.model(2, 1)
    assert model.visits_SA.tolist() == [[0], [3]]
    assert model.reward_SA.tolist() == [[0], [0.5]]
    assert model.transition_SAS == pytest.approx(np.array([[[0, 0]], [[1 / 3, 2 / 3]]]))
    assert statistics.excess_P()[0] == 0
