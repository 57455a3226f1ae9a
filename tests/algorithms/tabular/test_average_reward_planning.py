"""LOOP's optimistic planner: exact without bonus, optimistic without data, inside its confidence set after a switch."""

import numpy as np
import pytest

from rlhf.algorithms.tabular.average_reward_planning import (
    certainty_equivalent_plan,
    excess_loss,
    optimistic_plan,
    switch_threshold,
)
from rlhf.algorithms.tabular.mdp import river_swim, two_state
from rlhf.algorithms.tabular.pair_statistics import EmpiricalModel, PairStatistics
from rlhf.algorithms.tabular.relative_value_iteration import solve_average_reward


def true_model(mdp, visits):
    return EmpiricalModel(np.full(mdp.reward_SA.shape, float(visits)), mdp.reward_SA, mdp.transition_SAS)


def sampled_model(mdp, generator, most=40):
    """Pairs visited at random, some never."""
    statistics = PairStatistics(mdp.reward_SA.size, mdp.states)
    for pair, visits in enumerate(generator.integers(most, size=mdp.reward_SA.size)):
        state, action = divmod(pair, mdp.actions)
        for next_state in generator.choice(mdp.states, size=visits, p=mdp.transition_SAS[state, action]):
            statistics.record(pair, mdp.reward_SA[state, action], int(next_state))
    return statistics.model(mdp.states, mdp.actions)


@pytest.mark.parametrize("mdp", [two_state(), river_swim()], ids=["two states", "river swim"])
def test_with_the_true_model_and_no_bonus_the_plan_is_the_optimum(mdp):
    truth = solve_average_reward(mdp)
    plan = optimistic_plan(true_model(mdp, 1), span=truth.span, beta=0)
    assert plan.gain == pytest.approx(truth.gain, abs=1e-5)
    assert plan.value_S == pytest.approx(truth.value_S, abs=1e-3)
    assert certainty_equivalent_plan(true_model(mdp, 1), span=truth.span).gain == pytest.approx(truth.gain, abs=1e-5)


@pytest.mark.parametrize("mdp", [two_state(), river_swim()], ids=["two states", "river swim"])
def test_without_data_everything_is_promised(mdp):
    empty = PairStatistics(mdp.reward_SA.size, mdp.states).model(mdp.states, mdp.actions)
    assert optimistic_plan(empty, span=2, beta=0.5).gain == pytest.approx(1)
    assert certainty_equivalent_plan(empty, span=2).gain == 0


def test_a_bonus_of_every_pair_is_added_to_the_gain():
    mdp = two_state()
    # the same bonus everywhere moves J by itself and leaves V alone: 2.5 sqrt(0.5 / 200)
    plan = optimistic_plan(true_model(mdp, 200), span=2.5, beta=0.5)
    assert plan.gain == pytest.approx(0.25 + 0.125, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_a_new_plan_is_inside_its_confidence_set_and_under_the_switch_rule(seed):
    mdp, span, beta = river_swim(), 6.31, 0.3
    model = sampled_model(mdp, np.random.default_rng(seed))
    plan = optimistic_plan(model, span=span, beta=beta)
    excess_SA = excess_loss(model, plan)
    assert excess_SA.max() == pytest.approx(span**2 * beta)
    assert excess_SA[model.visits_SA == 0].sum() == 0
    assert excess_SA.max() < switch_threshold(span=span, beta=beta)
    assert plan.span <= span + 1e-12
    best_S = np.minimum((plan.q_SA + plan.gain).max(1), (plan.q_SA + plan.gain).max(1).min() + span)
    assert np.abs(plan.gain + plan.value_S - best_S).max() <= 1e-5


def test_settings_out_of_range_are_refused():
    model = true_model(two_state(), 1)
    with pytest.raises(ValueError, match="span is 0"):
        optimistic_plan(model, span=0, beta=0.5)
    with pytest.raises(ValueError, match="beta is -1"):
        optimistic_plan(model, span=1, beta=-1)
    with pytest.raises(ValueError, match="above 1"):
        switch_threshold(span=1, beta=1, multiplier=1)
