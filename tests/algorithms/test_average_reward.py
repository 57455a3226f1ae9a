"""Gains of a stream of prompts with known answers: exact values, estimators, spans and the alarm."""

import math

import pytest
import torch

from rlhf.algorithms.average_reward import (
    ActionCosts,
    RenewalGain,
    anchored_gain,
    clip_span,
    differential_errors,
    gain_alarm,
    most_optimistic_member,
    newton_gain,
    session_gain,
    span_bound,
)
from rlhf.algorithms.mdp_views import is_done, outcome_rewards, view_actions
from rlhf.algorithms.value_targets import end_values

RIGHT_B = 1 - 0.8 * 0.6 ** torch.arange(9.0, dtype=torch.float64)
TOKENS_B = torch.arange(1.0, 10.0, dtype=torch.float64)


def best_value(gain, cost_B):
    """E_x V_J(x) and the choice of the think-then-answer stream: n thoughts, success RIGHT_B[n]."""
    value_B = RIGHT_B - gain * cost_B
    return value_B.max(), int(value_B.argmax())


@pytest.mark.parametrize(
    ("cost_B", "thoughts", "gain"), [(TOKENS_B, 1, 0.26), (torch.ones(9).double(), 8, 0.986563072)]
)
def test_dinkelbachs_steps_find_the_gain_in_a_few_switches(cost_B, thoughts, gain):
    estimate = torch.zeros(1, dtype=torch.float64)
    for _ in range(5):
        value, choice = best_value(estimate.item(), cost_B)
        estimate = newton_gain(estimate, value.reshape(1, 1), cost_B[choice].item())
    assert choice == thoughts and estimate.item() == pytest.approx(gain, abs=1e-7)


def test_slow_root_finding_finds_the_same_gain():
    estimate = torch.zeros(1, dtype=torch.float64)
    for _ in range(3000):
        value, choice = best_value(estimate.item(), TOKENS_B)
        estimate = anchored_gain(estimate, value.reshape(1, 1), 0.01)
    assert choice == 1 and estimate.item() == pytest.approx(0.26, abs=1e-9)


def test_costs_of_actions_in_each_unit():
    actions = view_actions("chunk", [5, 2], chunk_tokens=3)
    assert ActionCosts()(actions, "episode").tolist() == [0, 1, 1]
    assert ActionCosts(0, 1)(actions, "token").tolist() == [3, 2, 2]
    assert ActionCosts(4, 0.5)(actions, "token").tolist() == [1.5, 5, 5]
    assert ActionCosts(1, 2)(actions, "turn").tolist() == [2, 3, 3]


def test_optimal_values_and_gains_have_no_differential_error():
    """The token-unit stream: V(n thoughts so far) = max over n' >= n of right(n') - J (n' - n + 1)."""
    gain = torch.tensor([0.26, 0.26], dtype=torch.float64)
    actions = view_actions("token", [thoughts + 1 for thoughts in range(9)])
    value_S = torch.stack([(RIGHT_B[n:] - 0.26 * TOKENS_B[: 9 - n]).max() for n in range(9)] + [torch.tensor(9.0)])
    value_SK = value_S[actions.position_S.clamp_max(9)].unsqueeze(1).expand(-1, 2)
    end = end_values(value_SK, actions, is_done(actions, torch.zeros(9, dtype=torch.bool)))
    reward, cost = outcome_rewards(actions, RIGHT_B), ActionCosts(0, 1)(actions, "token").double()
    answer_A = reward - 0.26
    think_A = value_S[actions.position_S[actions.next_state_A].clamp_max(9)] - 0.26
    q = torch.where(actions.is_last_A, answer_A, think_A).unsqueeze(1).expand(-1, 2)
    assert differential_errors(q, end, reward, cost, gain, actions).abs().max() < 1e-12
    off = differential_errors(q, end, reward, cost, torch.tensor([0.26, 0.36]).double(), actions)
    torch.testing.assert_close(off[:, 1], -0.1 * cost)
    assert value_S[0] == pytest.approx(0.0, abs=1e-12)


def test_errors_teach_the_values_and_not_their_targets():
    actions = view_actions("token", [2])
    q, end, gain = (torch.zeros(*shape, requires_grad=True) for shape in ((2, 3), (3, 3), (3,)))
    errors = differential_errors(q, end, torch.ones(2), torch.ones(2), gain, actions)
    errors.square().sum().backward()
    assert end.grad is None and gain.grad is None and (q.grad == -2).all()


def test_gains_of_sessions_move_with_the_mean_error():
    errors = torch.tensor([[1.0, -1.0], [0.0, -3.0]], requires_grad=True)
    moved = session_gain(torch.tensor([0.5, 0.5]), errors, 0.1)
    assert moved.tolist() == pytest.approx([0.55, 0.3]) and not moved.requires_grad


def test_the_renewal_estimate_is_a_ratio_of_means():
    renewal = RenewalGain(rate=0.5)
    assert math.isnan(renewal.gain)
    renewal.update(3.0, 10.0)
    renewal.update(5.0, 30.0)
    assert renewal.gain == pytest.approx(4 / 20)
    resumed = RenewalGain(rate=0.5)
    resumed.load_state_dict(renewal.state_dict())
    renewal.restart()
    assert resumed.gain == pytest.approx(0.2) and math.isnan(renewal.gain)


def test_a_span_on_both_sides_of_the_anchor_cuts_no_correct_value():
    # outcomes 0 and 1 with gain 0.9: half the span to either side would make -0.9 of a failure -0.5
    value = torch.tensor([-0.9, 0.1])
    assert torch.equal(clip_span(value, span_bound("episode", 0.9, 100)), value)
    assert clip_span(torch.tensor([-5.0, 5.0]), 1.5, anchor=1.0).tolist() == [-0.5, 2.5]
    assert span_bound("token", 0.26, 9) == pytest.approx(3.34)


def test_the_alarm_rings_for_a_gain_that_ran_away():
    assert gain_alarm(1.99, 0.98, 1.0, switches=3)
    assert not gain_alarm(1.99, 0.98, 1.0, switches=2)
    assert not gain_alarm(0.95, 0.98, 1.0, switches=9)
    assert not gain_alarm(0.95, math.nan, 1.0, switches=9)
    assert gain_alarm(math.nan, 0.98, 1.0, switches=0)


def test_the_most_optimistic_member_of_the_set():
    gain = torch.tensor([0.5, 0.9, 0.7])
    assert most_optimistic_member(gain, torch.tensor([True, False, True])) == 2
    with pytest.raises(ValueError, match="no member is in the confidence set"):
        most_optimistic_member(gain, torch.zeros(3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ActionCosts(0, 0), "costs must be 0 or more and one of them above 0"),
        (lambda: ActionCosts(-1, 2), "costs must be 0 or more"),
        (lambda: clip_span(torch.zeros(1), 0.0), "span of the values must be above 0"),
        (lambda: newton_gain(torch.zeros(1), torch.zeros(1, 1), 0.0), "mean cost of an episode must be above 0"),
        (lambda: RenewalGain(rate=0.0), r"rate of the renewal estimate must be in \(0, 1\]"),
        (lambda: RenewalGain().update(1.0, 0.0), "cost of a batch of episodes must be above 0"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
