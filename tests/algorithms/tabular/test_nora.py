"""NORA on the lock: regret, switches, what fails without rarity, optimism or data, and equal runs however computed."""

import statistics

import numpy as np
import pytest

from rlhf.algorithms.tabular import nora
from rlhf.algorithms.tabular.episodic_values import critic, optimal_values
from rlhf.algorithms.tabular.mdp import combination_lock, half_right_policy
from rlhf.algorithms.tabular.nora import NoraSettings, OfflineData, run_nora
from rlhf.algorithms.tabular.pair_statistics import EmpiricalModel

LOCK = combination_lock()
EPISODES = 16_384
COVERING = OfflineData(200, half_right_policy())
EVERY_EPISODE = NoraSettings(0.5, switching="every_episode")


def learn(settings, seeds=range(10), episodes=EPISODES, offline=None):
    return [run_nora(LOCK, settings, episodes=episodes, seed=seed, offline=offline) for seed in seeds]


def mean_regret(runs):
    return statistics.mean(run.record.regret[-1] for run in runs)


@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(10), marks=pytest.mark.slow)], ids=["fast", "all"])
def test_the_lock_is_opened_with_few_switches(seeds):
    runs = learn(NoraSettings(0.5), seeds)
    assert mean_regret(runs) <= 200
    assert max(len(run.record.switches) for run in runs) <= 35
    assert min(run.optimality for run in runs) >= 0.99
    for run in runs:
        growth = np.diff([run.record.switches_by(mark) for mark in run.record.marks])
        assert growth.max() <= 4  # the marks double


def test_a_reset_in_every_episode_never_gets_anywhere():
    runs = learn(EVERY_EPISODE, range(3), episodes=2048)
    assert max(run.optimality for run in runs) <= 0.15
    assert {len(run.record.switches) for run in runs} == {2048}


@pytest.mark.parametrize("target", ["optimal", "policy"])
def test_a_critic_of_every_episode_is_fine_without_resets(target):
    settings = NoraSettings(0.5, switching="every_episode", reset="none", target=target)
    runs = learn(settings, range(2), episodes=2048)
    assert mean_regret(runs) <= 60 and min(run.optimality for run in runs) >= 0.99


@pytest.mark.slow
def test_without_optimism_the_lock_needs_data_that_cover_its_code():
    settings = NoraSettings(is_optimistic=False, switching="rare_or_doubling")
    assert min(run.optimality for run in learn(settings)) <= 0.5
    with_data = learn(settings, offline=COVERING)
    assert min(run.optimality for run in with_data) >= 0.99
    assert mean_regret(with_data) <= 200


def test_data_that_cover_the_code_make_up_for_optimism():
    settings = NoraSettings(is_optimistic=False, switching="rare_or_doubling")
    alone, with_data = (learn(settings, range(5), 1024, offline) for offline in (None, COVERING))
    assert min(run.optimality for run in alone) <= 0.5 and min(run.optimality for run in with_data) >= 0.99


def test_offline_data_save_switches():
    alone, hybrid = (learn(NoraSettings(), range(4), 4096, offline) for offline in (None, COVERING))
    assert max(len(run.record.switches) for run in hybrid) < min(len(run.record.switches) for run in alone)


@pytest.mark.parametrize(
    ("settings", "bound"),
    [(NoraSettings(0.5, reset="none"), 60), (NoraSettings(actor="greedy"), 60), (NoraSettings(), 300)],
    ids=["no reset", "greedy in f", "anytime"],
)
def test_relatives_open_the_lock_too(settings, bound):
    runs = learn(settings, range(4))
    assert mean_regret(runs) <= bound and min(run.optimality for run in runs) >= 0.99


def test_the_step_size_of_the_bound_is_far_too_slow():
    assert mean_regret(learn(NoraSettings("theory"), range(3))) > 10 * mean_regret(learn(NoraSettings(0.5), range(3)))


@pytest.mark.parametrize("reset", ["switch", "none"])
def test_policies_made_in_blocks_are_those_made_one_by_one(monkeypatch, reset):
    settings = NoraSettings(0.3, reset=reset)
    (blocks,) = learn(settings, [5], 1000)
    monkeypatch.setattr(nora, "BLOCK", 1)
    (singly,) = learn(settings, [5], 1000)
    assert [s.step for s in blocks.record.switches] == [s.step for s in singly.record.switches]
    assert blocks.record.regret == pytest.approx(singly.record.regret, rel=1e-9)
    assert blocks.final_value == pytest.approx(singly.final_value)


def test_a_seed_says_everything():
    (first,), (again,), (other,) = (learn(NoraSettings(), [seed], 512) for seed in (1, 1, 2))
    assert first == again and first != other


def test_the_first_episode_is_uniform_and_the_critic_promises_all():
    (run,) = learn(NoraSettings(), [0], 16)
    (single,) = [run_nora(LOCK, NoraSettings(), episodes=1, seed=0, marks=[1])]
    assert single.final_value == pytest.approx(2 / 3 * 0.1 + 0.95**5 / 3**6)
    assert run.record.switches[0] == (0, 1.0, True)


def test_the_critic_is_exact_on_the_true_model_and_clipped():
    horizon, states, actions = LOCK.shape
    exact = EmpiricalModel(np.full(LOCK.shape, 1e12), LOCK.reward_HSA, LOCK.transition_HSAS)
    found = critic(exact, beta=0.05, value_max=1.0, is_optimistic=True)
    assert found.q_HSA == pytest.approx(optimal_values(LOCK).q_HSA, abs=1e-5)
    empty = EmpiricalModel(*[np.zeros(LOCK.shape)] * 2, np.zeros((horizon, states, actions, states)))
    assert (critic(empty, beta=0.05, value_max=1.0, is_optimistic=True).q_HSA == 1).all()
    assert (critic(empty, beta=0.05, value_max=1.0, is_optimistic=False).q_HSA == 0).all()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"step_size": -1.0}, "step_size is -1"),
        ({"step_size": "quick"}, "anytime or theory"),
        ({"reset": "always"}, "choose switch, none"),
        ({"beta": 0}, "beta 0"),
        ({"multiplier": 1}, "multiplier 1"),
        ({"reset": "none"}, "with reset none give a number"),
        ({"target": "policy"}, "needs switching every_episode"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, match):
    with pytest.raises(ValueError, match=match):
        NoraSettings(**settings)


def test_offline_data_of_another_process_are_refused():
    with pytest.raises(ValueError, match="behaviour_HSA has shape"):
        learn(NoraSettings(), [0], 16, OfflineData(1, half_right_policy(horizon=5)))
