"""The processes to learn: their numbers, what is refused, and drawing from their rows."""

from bisect import bisect
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from rlhf.algorithms.tabular.episodic_values import optimal_values, start_values
from rlhf.algorithms.tabular.mdp import (
    EpisodicMDP,
    TabularMDP,
    combination_lock,
    cumulative_rows,
    half_right_policy,
    lock_code,
    river_swim,
    two_state,
)


def test_the_lock_is_worth_what_its_slips_leave():
    lock = combination_lock()
    # six right actions, of which five must not slip before the last one pays
    assert optimal_values(lock).value_HS[0, 0] == pytest.approx(0.95**5, abs=1e-14)
    uniform_1HSA, giving_up_1HSA = np.full((1, *lock.shape), 1 / 3), np.zeros((1, *lock.shape))
    giving_up_1HSA[..., (lock_code()[0] + 1) % 3] = 1
    assert start_values(lock, uniform_1HSA)[0] == pytest.approx(2 / 3 * 0.1 + 0.95**5 / 3**6, abs=1e-14)
    assert start_values(lock, giving_up_1HSA)[0] == pytest.approx(0.1)
    # density ratio of the best policy to the covering one, over the six steps
    right = half_right_policy()[np.arange(6), 0, lock_code()]
    assert 1 / right.prod() == pytest.approx(1.5**6)


def test_river_swim_is_a_chain_with_a_current():
    chain = river_swim(4)
    assert chain.transition_SAS[:, 1].tolist() == [
        [0.4, 0.6, 0, 0], [0.05, 0.6, 0.35, 0], [0, 0.05, 0.6, 0.35], [0, 0, 0.4, 0.6],
    ]  # fmt: skip
    assert chain.transition_SAS[:, 0].argmax(1).tolist() == [0, 0, 1, 2]
    assert chain.reward_SA.sum() == 1.005


@pytest.mark.parametrize("of_horizon", [False, True])
@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda p, r: (p, r[..., :1]), "none empty"),
        (lambda p, r: (p * 0.5, r), r"pair \(.*0, 0\) sum to 0.5"),
        (lambda p, r: (p - np.array([0.5, -0.5]), r), "negative"),
        (lambda p, r: (p, np.where(r == 1, np.nan, r)), r"reward at \(.*1, 0\) is not finite"),
        (lambda p, r: (np.where(p == 0.9, np.inf, p), r), "transition at .* is not finite"),
    ],
)
def test_bad_processes_are_refused_with_the_place(spoil, match, of_horizon):
    sound = two_state()
    transition, reward = sound.transition_SAS, sound.reward_SA
    if of_horizon:
        transition, reward = np.stack([transition] * 3), np.stack([reward] * 3)
    with pytest.raises(ValueError, match=match):
        (EpisodicMDP if of_horizon else TabularMDP)(*spoil(transition, reward))


def test_constructors_refuse_what_has_nothing_to_find():
    with pytest.raises(ValueError, match="at least 2"):
        river_swim(1)
    with pytest.raises(ValueError, match="2 actions"):
        combination_lock(actions=1)


def test_a_process_cannot_be_changed():
    transition_SAS = two_state().transition_SAS.copy()
    mdp = TabularMDP(transition_SAS, two_state().reward_SA)
    transition_SAS[:] = 7
    assert mdp.transition_SAS.max() == 1
    with pytest.raises(ValueError, match="read-only"):
        mdp.reward_SA[0, 0] = 1
    with pytest.raises(FrozenInstanceError):
        mdp.reward_SA = transition_SAS


def test_no_uniform_number_draws_an_impossible_outcome():
    # ten times 0.1 sum to less than 1 in floating point
    (row,) = cumulative_rows(np.array([[0.0, *[0.1] * 10, 0.0]]))
    assert bisect(row, 0.0) == 1
    assert bisect(row, np.nextafter(1, 0)) == 10
