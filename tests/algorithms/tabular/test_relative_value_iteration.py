"""Gain and bias against closed forms and a stationary solve."""

import numpy as np
import pytest

from rlhf.algorithms.tabular.mdp import TabularMDP, river_swim, two_state
from rlhf.algorithms.tabular.relative_value_iteration import (
    iterate_to_fixed_point,
    policy_gain,
    solve_average_reward,
)


def absorbing(*reward: float) -> TabularMDP:
    """States that are never left."""
    return TabularMDP(np.eye(len(reward))[:, None], np.array(reward)[:, None])


def test_two_states_have_a_closed_form():
    solution = solve_average_reward(two_state(leave=0.1, fall=0.3))
    assert solution.gain == pytest.approx(0.25, abs=1e-8)
    assert solution.span == pytest.approx(2.5, abs=1e-8)
    assert solution.q_SA[0, 1] - solution.q_SA[0, 0] == pytest.approx(0.15, abs=1e-8)
    assert solution.residual < 1e-10
    assert policy_gain(two_state(), np.array([0, 0])) == pytest.approx(0.1)


def test_river_swim():
    mdp = river_swim()
    solution = solve_average_reward(mdp)
    assert solution.gain == pytest.approx(0.4286224338, abs=1e-8)
    assert solution.span == pytest.approx(6.3103243082, abs=1e-8)
    assert solution.value_S == pytest.approx([0, 0.714371, 2.041059, 3.455222, 4.881880, 6.310324], abs=1e-6)
    assert solution.q_SA.argmax(1).tolist() == [1] * 6
    best_S = (mdp.reward_SA + mdp.transition_SAS @ solution.value_S).max(1)
    assert np.abs(solution.gain + solution.value_S - best_S).max() < 1e-10
    assert policy_gain(mdp, np.ones(6, int)) == pytest.approx(solution.gain, abs=1e-10)
    assert policy_gain(mdp, np.zeros(6, int)) == pytest.approx(0.005)


def test_the_optimum_is_the_best_of_all_policies():
    generator = np.random.default_rng(3)
    mdp = TabularMDP(generator.dirichlet(np.ones(3), size=(3, 2)), generator.random((3, 2)))
    gains = [policy_gain(mdp, np.array([code >> s & 1 for s in range(3)])) for code in range(8)]
    assert solve_average_reward(mdp).gain == pytest.approx(max(gains), abs=1e-10)


def test_gaps_are_what_a_wrong_action_costs():
    gap_SA = solve_average_reward(two_state()).gap_SA
    assert gap_SA.min() == 0
    assert gap_SA[0] == pytest.approx([0.15, 0], abs=1e-10)


def test_a_periodic_chain_converges():
    there_and_back = TabularMDP(np.array([[[0, 1]], [[1, 0]]]), np.array([[0], [1]]))
    assert solve_average_reward(there_and_back).gain == pytest.approx(0.5)


def test_without_one_gain_for_all_states_there_is_an_error_and_no_number():
    with pytest.raises(ValueError, match="may depend on the start state"):
        solve_average_reward(absorbing(0, 1), max_iterations=1000)
    with pytest.raises(ValueError, match="depends on the start"):
        policy_gain(absorbing(0, 1), np.zeros(2, int))


def test_a_span_makes_a_solution_exist():
    mdp = absorbing(0.2, 1)
    solution = iterate_to_fixed_point(
        lambda value_S: mdp.reward_SA + mdp.transition_SAS @ value_S, np.zeros(2), span=3.0, tolerance=1e-10
    )
    assert solution.gain == pytest.approx(0.2)
    assert solution.value_S == pytest.approx([0, 3])
