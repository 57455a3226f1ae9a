"""How often critics are exchanged: counts of information, the excess rule, guards, and what a try leads to."""

import json
import math

import numpy as np
import pytest
import torch

from rlhf.algorithms.elliptic import GramMatrices, information_bound
from rlhf.algorithms.switching import (
    LOOP_MULTIPLE,
    NORA_MULTIPLE,
    SwitchController,
    excess_loss,
    excess_threshold,
    information_gains,
    logdet_threshold,
    set_tolerance,
    train_until_member,
)


def decaying_features(dimension, actions=100_000):
    """Normal rows with decaying scales, longer ones cut to unit norm."""
    scale = 0.7 ** np.arange(dimension) if dimension == 8 else 1 / np.arange(1, dimension + 1)
    rows = np.random.default_rng(0).normal(size=(actions, dimension)) * scale
    return torch.from_numpy(rows / np.maximum(1, np.linalg.norm(rows, axis=1, keepdims=True)))


@pytest.mark.parametrize(
    ("dimension", "nats", "switches", "bound"),
    [(8, math.log(2), 93, 108.9), (8, 5.0, 13, 15.1), (64, 31.0, 9, 15.2)],
)
def test_switches_by_information_are_few(dimension, nats, switches, bound):
    phi = decaying_features(dimension)
    gains = GramMatrices(dimension, buckets=1).add(phi, torch.zeros(len(phi), dtype=torch.long))
    # one action an iteration is the controller's rule without its tensors
    count = since = 0
    for gain in gains.tolist():
        since += gain
        if since >= nats:
            count, since = count + 1, 0.0
    assert count == switches
    assert information_bound(dimension, len(phi), 1.0) / nats == pytest.approx(bound, abs=0.05)


def test_the_controller_counts_the_same_switches():
    gains = GramMatrices(8, buckets=1).add(decaying_features(8, 4000), torch.zeros(4000, dtype=torch.long))
    controller = SwitchController("logdet", threshold=math.log(2), min_iters=1, max_iters=None)
    count, since = 0, 0.0
    for gain in gains:
        since += gain.item()
        controller.gain(gain[None])
        if controller.decide().cause:
            controller.switched()
        if since >= math.log(2):
            count, since = count + 1, 0.0
    assert controller.switches == count > 20


def test_thresholds_of_the_specified_sizes():
    assert logdet_threshold(64, 10**6, 24) == pytest.approx(25.8, abs=0.05)
    assert logdet_threshold(64, 10**7, 24) == pytest.approx(31.9, abs=0.05)
    assert logdet_threshold(256, 10**6, 24) == pytest.approx(88.2, abs=0.05)
    assert set_tolerance(2.0, 1000) == pytest.approx(0.05 * 4 * (1 + math.log(1000)))
    assert excess_threshold(NORA_MULTIPLE, 1.0, 1) == pytest.approx(0.25)
    assert excess_threshold(LOOP_MULTIPLE, 1.0, 1) == pytest.approx(0.2)


def test_information_of_an_ensembles_variance():
    assert information_gains(torch.tensor([0.0, 0.01, 0.09]), 0.1).tolist() == pytest.approx(
        [0, math.log(2), math.log(10)]
    )


def test_excess_with_one_hot_features_is_the_tabular_sum():
    """A linear critic fitted by gradients, against sum N (Q + J - rhat - Phat V)^2."""
    random = np.random.default_rng(5)
    states, actions, count, gain = 4, 2, 600, 0.3
    reward_T, next_T = random.random(count), random.integers(states, size=count)
    pair_T = random.choice(states * actions, size=count, p=random.dirichlet(np.ones(states * actions)))
    q_SA = random.random((states, actions))
    value_S = q_SA.max(1)

    number = np.bincount(pair_T, minlength=states * actions)
    mean_reward, mean_next = (
        np.bincount(pair_T, weights, states * actions) / np.maximum(number, 1)
        for weights in (reward_T, value_S[next_T])
    )
    expected = (number * (q_SA.ravel() + gain - mean_reward - mean_next) ** 2).sum()

    one_hot = torch.nn.functional.one_hot(torch.from_numpy(pair_T), states * actions).double()
    target = torch.from_numpy(reward_T - gain + value_S[next_T])
    refit = torch.nn.Linear(states * actions, 1, bias=False).double()
    optimizer = torch.optim.LBFGS(refit.parameters(), max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure():
        optimizer.zero_grad()
        loss = (refit(one_hot)[:, 0] - target).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    frozen_error = one_hot @ torch.from_numpy(q_SA.ravel()) - target
    refit_error = (refit(one_hot)[:, 0] - target).detach()
    assert excess_loss(frozen_error, refit_error, count) == pytest.approx(expected, rel=1e-6)
    # a tenth of the actions stands for all of them
    weight = torch.zeros(count).scatter(0, torch.arange(0, count, 2), 1.0)
    half = excess_loss(frozen_error[::2], refit_error[::2], count)
    assert excess_loss(frozen_error, refit_error, count, weight) == pytest.approx(half)


def test_excess_of_counted_actions_is_that_of_each_one():
    error, count = torch.tensor([0.5, -0.2]), torch.tensor([3.0, 1.0])
    assert excess_loss(error, torch.zeros(2), 4, count) == pytest.approx(3 * 0.25 + 0.04)


def tries(controller, excesses, accept=True):
    """Iterations (from 0) in which a switch was tried, with the cause."""
    found = []
    for number, excess in enumerate(excesses):
        cause = controller.decide(excess).cause
        if cause:
            found.append((number, cause))
            controller.switched() if accept else controller.refused()
    return found


def test_guards_space_switches_and_force_them():
    controller = SwitchController("excess", threshold=1.0, min_iters=4, max_iters=6)
    assert tries(controller, [2.0] * 9) == [(3, "excess"), (7, "excess")]
    assert tries(SwitchController("excess", threshold=1.0, min_iters=4, max_iters=6), [0.0] * 13) == [
        (5, "forced"),
        (11, "forced"),
    ]
    assert [event.epoch_length for event in controller.events] == [4, 4]


def test_a_refused_switch_is_tried_again_after_the_least_number_of_iterations():
    controller = SwitchController("excess", threshold=1.0, min_iters=3, max_iters=None)
    assert tries(controller, [2.0] * 9, accept=False) == [(2, "excess"), (5, "excess"), (8, "excess")]
    assert controller.switches == 0 and controller.refusals == 3 and controller.since_switch == 9


def test_what_was_counted_stays_counted_until_a_switch():
    controller = SwitchController("infogain", threshold=1.0, min_iters=1)
    controller.gain(torch.tensor([0.7, 0.5]))
    assert controller.decide().cause == "infogain"
    controller.refused()
    assert controller.decide().statistic == pytest.approx(1.2)
    controller.switched()
    assert controller.decide() == (None, 0.0, 1.0)


def test_the_bucket_with_most_information_decides():
    controller = SwitchController("logdet", threshold=1.0, buckets=2, min_iters=1)
    controller.gain(torch.tensor([0.6, 0.6]), torch.tensor([0, 1]))
    assert controller.decide().cause is None
    controller.gain(torch.tensor([0.6]), torch.tensor([1]))
    assert controller.decide().cause == "logdet"


def test_a_checkpoint_goes_on_with_the_same_switches():
    torch.manual_seed(0)
    nats = torch.rand(60, 5).tolist()

    def run(controller, rows):
        for row in rows:
            controller.gain(torch.tensor(row))
            if controller.decide().cause:
                controller.switched()
        return controller

    def made():
        return SwitchController("logdet", threshold=7.0, min_iters=2)

    whole, part = run(made(), nats), run(made(), nats[:31])
    state = part.state_dict()
    tensor = state.pop("nats_G")
    state = json.loads(json.dumps(state)) | {"nats_G": tensor}
    resumed = made()
    resumed.load_state_dict(state)
    assert run(resumed, nats[31:]).events == whole.events and whole.switches > 5
    with pytest.raises(ValueError, match="the checkpoint switches by"):
        SwitchController("logdet", threshold=8.0).load_state_dict(state | {"nats_G": tensor})


def test_training_ends_in_the_set_or_after_all_steps():
    scores = iter([1.0, 0.5, 0.09, 0.01])
    steps = []
    assert train_until_member(lambda: steps.append(1), lambda: next(scores), tolerance=0.1) == 0.09
    assert len(steps) == 40
    steps.clear()
    assert train_until_member(lambda: steps.append(1), lambda: 1.0, tolerance=0.1, max_steps=100) == 1.0
    assert len(steps) == 100
    steps.clear()
    assert train_until_member(lambda: steps.append(1), lambda: 0.1, tolerance=0.1) == 0.1 and not steps


def test_without_a_tolerance_training_ends_when_the_loss_stops_falling():
    scores, steps = iter([1.0, 0.5, 0.6, 0.1]), []
    assert train_until_member(lambda: steps.append(1), lambda: next(scores), tolerance=None) == 0.6
    assert len(steps) == 40


def pending():
    controller = SwitchController("excess", threshold=1.0, min_iters=1)
    controller.decide(2.0)
    return controller


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SwitchController("often", threshold=1.0), "unknown kind of switch 'often'"),
        (lambda: SwitchController("excess", threshold=0.0), "threshold must be above 0"),
        (lambda: SwitchController("excess", threshold=1.0, min_iters=9, max_iters=8), "max_iters at least min_iters"),
        (lambda: SwitchController("excess", threshold=1.0).gain(torch.zeros(1)), "the excess rule counts no nats"),
        (lambda: SwitchController("logdet", threshold=1.0).gain(torch.tensor([-1.0])), "actions bring finite nats"),
        (lambda: SwitchController("excess", threshold=1.0, min_iters=1).decide(), "finite, and got None"),
        (lambda: SwitchController("excess", threshold=1.0, min_iters=1).decide(math.nan), "finite, and got nan"),
        (lambda: pending().decide(0.0), "call `switched` or `refused` before the next one"),
        (lambda: pending().state_dict(), "a switch is under way"),
        (lambda: SwitchController("excess", threshold=1.0).refused(), "there is no decision to switch"),
        (lambda: information_gains(torch.zeros(1), 0.0), "noise must be above 0"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
