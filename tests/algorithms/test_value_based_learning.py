"""The parts together, on a transformer of one block: a lock that only optimism opens, and the price of a token.

Seen on one machine, seeds 0, 1, 2: with optimism the lock opens at episode 56, 96, 112 and stays open (return 1) with
9, 10, 13 switches; by a policy gradient or without optimism never (0.1); without optimism but with 64 offline episodes
at 24, 16, 24. Thoughts 1 and gains 0.2603, 0.2590, 0.2614 a token, 8 and 0.9864, 0.9848, 0.9883 an episode. These runs
are chaotic, and another machine rounds otherwise: most seeds have to agree, not each.
"""

import pytest
import torch

from rlhf.algorithms.optimism import Optimism
from tests.algorithms.think_stream import run_stream
from tests.algorithms.token_lock import run_actor_critic, run_policy_gradient

SEEDS = (0, 1, 2)
MOST = 2
# a prior, or a first value above what a failure pays, would explore by itself
NEUTRAL = dict(optimism=Optimism("none"), prior_scale=0.0, initial_value=0.02)


@pytest.fixture(autouse=True)
def one_thread():
    """Threads cost more than they bring for tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_an_optimistic_critic_opens_a_short_lock():
    found = run_actor_critic(0, iterations=6, members=4, length=3)
    assert found.first_success is not None and found.switches >= 1 and found.least_start_value > 0.1


@pytest.mark.slow
def test_optimism_opens_the_lock_and_keeps_it_open_with_few_switches():
    found = [run_actor_critic(seed) for seed in SEEDS]
    assert sum(run.final_return >= 0.9 and run.switches <= 20 for run in found) >= MOST, found


@pytest.mark.slow
def test_a_policy_gradient_learns_to_fail_at_once():
    assert all(run_policy_gradient(seed).final_return <= 0.15 for seed in SEEDS)


@pytest.mark.slow
def test_without_optimism_the_lock_stays_shut():
    found = [run_actor_critic(seed, **NEUTRAL) for seed in SEEDS]
    assert all(run.first_success is None and run.final_return <= 0.15 for run in found), found


@pytest.mark.slow
def test_offline_episodes_do_what_optimism_does():
    found = [run_actor_critic(seed, **NEUTRAL, offline=64) for seed in SEEDS]
    assert sum(run.final_return >= 0.9 for run in found) >= MOST, found


def test_a_price_of_tokens_makes_thought_short():
    found = run_stream(0, "token", 0.02, iterations=40)
    assert found.thoughts <= 2 and not found.alarm


@pytest.mark.slow
@pytest.mark.parametrize(
    ("unit", "thoughts", "gain", "error"), [("token", 1, 0.26, 0.01), ("episode", 8, 0.98656, 0.02)]
)
def test_the_unit_of_the_gain_decides_how_long_to_think(unit, thoughts, gain, error):
    found = [run_stream(seed, unit, 0.002) for seed in SEEDS]
    assert sum(run.thoughts == thoughts and abs(run.gain - gain) <= error for run in found) >= MOST, found
    assert not any(run.alarm for run in found)


@pytest.mark.slow
def test_a_gain_that_moves_faster_than_the_critic_runs_away_and_is_noticed():
    found = [run_stream(seed, "episode", 0.02) for seed in SEEDS]
    assert sum(run.alarm for run in found) >= MOST, found
