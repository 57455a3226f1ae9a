"""Mirror ascent's closed form against its steps, and what a reset saves."""

import math

import numpy as np
import pytest

from rlhf.algorithms.tabular.mirror_ascent import accumulated_weight, boltzmann, steps_until_preferred


def test_many_multiplicative_updates_are_one():
    generator = np.random.default_rng(0)
    f_SA, start_SA = generator.normal(size=(4, 5)), generator.dirichlet(np.ones(5), size=4)
    policy_SA = start_SA
    for _ in range(100):
        policy_SA = policy_SA * np.exp(0.05 * f_SA)
        policy_SA /= policy_SA.sum(1, keepdims=True)
    weight = accumulated_weight(np.array(100), 0.05, actions=5)
    assert boltzmann(np.log(start_SA) + weight * f_SA) == pytest.approx(policy_SA, abs=1e-6)


@pytest.mark.parametrize(
    ("start", "lead", "closed_form", "count"),
    [
        ((0, 0, 0), None, math.log(2 * 19) / 0.05, 73),
        # a thousand steps at 0.5 on a wrong critic with a gap of 0.3
        ((150, 0, 0), 150.0, (150 + math.log(19)) / 0.05, 3059),
    ],
    ids=["reset", "no reset"],
)
def test_a_reset_saves_the_time_to_make_up_for_a_wrong_critic(start, lead, closed_form, count):
    steps = steps_until_preferred(0.95, step_size=0.5, gap=0.1, actions=3, opponents_lead=lead)
    assert steps == pytest.approx(closed_form)
    assert math.ceil(steps) == count
    exponent_A, taken = np.array(start, dtype=float), 0
    while boltzmann(exponent_A)[1] < 0.95:
        exponent_A[1] += 0.5 * 0.1
        taken += 1
    assert taken == count


def test_step_sizes():
    steps_N = np.array([0, 1, 4])
    assert accumulated_weight(steps_N, "anytime", actions=3, value_max=2).tolist() == pytest.approx(
        [0, math.sqrt(math.log(3)) / 2, math.sqrt(math.log(3))]
    )
    assert accumulated_weight(steps_N, "theory", actions=3, episodes=100).tolist() == pytest.approx(
        [0, math.sqrt(math.log(3) / 100), 4 * math.sqrt(math.log(3) / 100)]
    )
    with pytest.raises(ValueError, match="needs episodes"):
        accumulated_weight(steps_N, "theory", actions=3)
    with pytest.raises(ValueError, match="step_size is 0"):
        accumulated_weight(steps_N, 0.0, actions=3)
    with pytest.raises(ValueError, match="'fast'"):
        accumulated_weight(steps_N, "fast", actions=3)
    for settings in ({"probability": 1.0, "gap": 0.1}, {"probability": 0.5, "gap": 0.0}):
        with pytest.raises(ValueError, match="gap"):
            steps_until_preferred(**settings, step_size=0.5, actions=3)


def test_large_exponents_do_not_overflow():
    assert boltzmann(np.array([5000.0, 0.0])).tolist() == [1, 0]
