"""The parts together, on a transformer of one block: a lock that only optimism opens, and the price of a token.

Runs differ in rounding between machines; the bounds leave room for it.
"""

import pytest
import torch

from rlhf.algorithms.optimism import Optimism
from tests.algorithms.think_stream import run_stream
from tests.algorithms.token_lock import run_actor_critic, run_policy_gradient

SEEDS = (0, 1, 2)
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
@pytest.mark.parametrize("seed", SEEDS)
def test_optimism_opens_the_lock_and_keeps_it_open_with_few_switches(seed):
    found = run_actor_critic(seed)
    assert found.final_return >= 0.9 and found.switches <= 20


@pytest.mark.slow
def test_a_policy_gradient_learns_to_fail_at_once():
    assert all(run_policy_gradient(seed).final_return <= 0.15 for seed in SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_without_optimism_the_lock_stays_shut(seed):
    found = run_actor_critic(seed, **NEUTRAL)
    assert found.first_success is None and found.final_return <= 0.15


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_offline_episodes_do_what_optimism_does(seed):
    assert run_actor_critic(seed, **NEUTRAL, offline=64).final_return >= 0.9


def test_a_price_of_tokens_makes_thought_short():
    found = run_stream(0, "token", 0.02, iterations=40)
    assert found.thoughts <= 2 and not found.alarm


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("unit", "thoughts", "gain", "error"), [("token", 1, 0.26, 0.01), ("episode", 8, 0.98656, 0.02)]
)
def test_the_unit_of_the_gain_decides_how_long_to_think(unit, thoughts, gain, error, seed):
    found = run_stream(seed, unit, 0.002)
    assert found.thoughts == thoughts and found.gain == pytest.approx(gain, abs=error)
    assert abs(found.start_value) < 0.01 and not found.alarm


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_a_gain_that_moves_faster_than_the_critic_runs_away_and_is_noticed(seed):
    assert run_stream(seed, "episode", 0.02).alarm
