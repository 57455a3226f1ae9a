"""Targets of the optimal values against closed forms: a binary tree, paths over it, expectiles, distributions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.algorithms.mdp_views import is_done, outcome_rewards, view_actions
from rlhf.algorithms.value_targets import (
    distribution_losses,
    distribution_value,
    end_values,
    expectile_losses,
    log_mean_exp_return,
    log_rest,
    max_value,
    member_losses,
    one_step_targets,
    path_residuals,
    policy_value,
    polyak_update,
    soft_return_losses,
    soft_value,
    squared_losses,
    trace_targets,
    two_hot,
)

TAU, HALF, NO_REST = 0.5, math.log(0.5), torch.tensor([-math.inf])


def d(*values):
    return torch.tensor(values, dtype=torch.float64)


def binary(first, second):
    """Soft value of two equally likely actions."""
    q = torch.stack([first, second]).reshape(1, 1, 2)
    return soft_value(q, d(0).reshape(1, 1), d(HALF, HALF)[None], NO_REST.double(), TAU).squeeze()


def test_the_soft_backup_of_a_tree_of_depth_two():
    left, right = binary(d(1)[0], d(0)[0]), binary(d(0)[0], d(0)[0])
    root = binary(left, right)
    assert float(root) == pytest.approx(0.4772292964, abs=1e-10)
    assert float(left) == pytest.approx(0.7168904152, abs=1e-10)
    assert float(0.5 * ((left - root) / TAU).exp()) == pytest.approx(0.8074897295, abs=1e-10)
    assert float(0.5 * ((1 - left) / TAU).exp()) == pytest.approx(0.8807970780, abs=1e-10)
    # the same by the returns of all four leaves under the reference policy
    assert float(log_mean_exp_return(d(1, 0, 0, 0)[None], TAU)) == pytest.approx(float(root), abs=1e-14)


@pytest.mark.parametrize("span", [1, 2, None])
def test_paths_of_the_soft_optimum_have_no_residual(span):
    left, right = binary(d(1)[0], d(0)[0]), binary(d(0)[0], d(0)[0])
    root = binary(left, right)
    actions = view_actions("token", [2, 2])
    # two trajectories: left and the good leaf; right and a bad leaf
    value_SK = torch.stack([root, left, d(9)[0], root, right, d(9)[0]]).unsqueeze(1)
    done = is_done(actions, torch.tensor([False, False]))
    end = end_values(value_SK, actions, done)
    advantage = torch.stack([left - root, 1 - left, right - root, 0 - right]).unsqueeze(1)
    reward = outcome_rewards(actions, d(1, 0))
    residual = path_residuals(value_SK, end, advantage, reward, actions, span)
    assert residual.abs().max() < 1e-12
    assert path_residuals(value_SK, end, advantage, reward + 0.1, actions, span).abs().min() > 0.09


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from([1, 2, 5, None]), st.integers(0, 99))
def test_path_residuals_are_the_sum_of_the_steps(lengths, span, seed):
    generator = torch.Generator().manual_seed(seed)
    actions = view_actions("token", lengths)
    states, count = len(actions.sequence_S), len(actions.state_A)
    value, advantage = (torch.randn(n, 3, dtype=torch.float64, generator=generator) for n in (states, count))
    reward = torch.randn(count, dtype=torch.float64, generator=generator)
    residual = path_residuals(value, value, advantage, reward, actions, span)
    for a in range(count):
        inside = [t for t in range(a, count) if actions.sequence_A[t] == actions.sequence_A[a]][:span]
        end = value[actions.next_state_A[inside[-1]]]
        expected = value[actions.state_A[a]] - sum(reward[t] - advantage[t] for t in inside) - end
        torch.testing.assert_close(residual[a], expected)


def test_a_critic_without_action_values_has_no_path_residual():
    actions = view_actions("chunk", [7], chunk_tokens=3)
    value, reward = torch.rand(4, 2, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    advantage = reward.unsqueeze(1) + value[actions.next_state_A] - value[actions.state_A]
    assert path_residuals(value, value, advantage, reward, actions, None).abs().max() < 1e-15


def test_rewards_may_differ_between_members():
    actions = view_actions("token", [2])
    zeros = torch.zeros(3, 2)
    residual = path_residuals(zeros, zeros, torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), actions, None)
    assert residual.tolist() == [[-4, -6], [-3, -4]]


def test_the_soft_value_lies_between_the_mean_and_the_maximum_and_tends_to_it():
    torch.manual_seed(0)
    logp = torch.randn(5, 4, dtype=torch.float64).log_softmax(-1)
    q, rest = torch.rand(5, 3, 4, dtype=torch.float64), torch.full((5,), -math.inf, dtype=torch.float64)
    value = torch.zeros(5, 3, dtype=torch.float64)
    greatest = max_value(q, logp)
    mean = (logp.exp().unsqueeze(1) * q).sum(-1)
    for tau in (0.1, 1.0):
        soft = soft_value(q, value, logp, rest, tau)
        assert (soft <= greatest).all() and (soft >= mean).all()
    torch.testing.assert_close(soft_value(q, value, logp, rest, 1e-4), greatest, atol=2e-3, rtol=0)
    torch.testing.assert_close(soft_value(q, value, logp, rest, 1e4), mean, atol=1e-4, rtol=0)


def test_the_rest_of_the_vocabulary_counts_with_the_states_value():
    # all actions worth the same: so is the state, whatever share the candidates have
    q, logp = torch.full((1, 1, 2), 0.3, dtype=torch.float64), d(0.1, 0.2).log()[None]
    assert float(soft_value(q, d(0.3)[None], logp, d(0.7).log(), 0.05)) == pytest.approx(0.3, abs=1e-15)
    assert float(soft_value(q, d(0.0)[None], logp, d(0.7).log(), 0.05)) < 0.3


def test_a_place_without_a_candidate_has_no_say():
    q, logp = d(0.2, 5.0).reshape(1, 1, 2), d(0.0, -math.inf)[None]
    assert float(max_value(q, logp)) == 0.2
    assert float(soft_value(q, d(0)[None], logp, NO_REST.double(), 0.1)) == pytest.approx(0.2)


def test_truncation_bootstraps_and_an_end_does_not():
    actions = view_actions("token", [2, 1])
    value = torch.tensor([[0.1], [0.2], [0.7], [0.4], [0.5]])
    done = is_done(actions, torch.tensor([True, False]))
    target = one_step_targets(torch.tensor([0.0, 1.0, 1.0]), end_values(value, actions, done), actions)
    assert target[:, 0].tolist() == pytest.approx([0.2, 1.7, 1.0])


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_the_expectile_of_two_outcomes(expectile):
    # e (1 - v) = (1 - e) v
    value = torch.tensor([[0.2]], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([value], 0.5)
    for _ in range(400):
        loss = expectile_losses(value.expand(2, 1), d(0, 1)[:, None], expectile).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert value.item() == pytest.approx(expectile, abs=1e-9)


def test_members_learn_from_their_own_episodes_and_one_without_any_from_nothing():
    loss = torch.tensor([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert member_losses(loss, mask).tolist() == [2.0, 2.0, 0.0]
    assert member_losses(loss, None, torch.tensor([3.0, 1.0])).tolist() == [1.5, 2.5, 3.5]


def test_large_errors_grow_linearly_with_huber():
    assert squared_losses(torch.tensor([0.5, 3.0])).tolist() == [0.25, 9.0]
    assert squared_losses(torch.tensor([0.5, 3.0]), huber_delta=1.0).tolist() == [0.25, 2 * 3.0 - 1]


def test_a_return_is_the_mean_of_its_two_atoms():
    atoms = d(0, 0.25, 0.5, 1)
    returns = d(0, 0.1, 0.25, 0.6, 1, 2, -3)
    hot = two_hot(returns, atoms)
    torch.testing.assert_close(hot @ atoms, returns.clamp(0, 1))
    assert (hot >= 0).all() and torch.allclose(hot.sum(1), d(1)) and ((hot > 0).sum(1) <= 2).all()


def test_a_learned_distribution_of_returns_gives_the_soft_value():
    atoms, returns = d(0, 0.5, 1), d(1, 0, 0, 0)
    logit = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logit], 0.1)
    for _ in range(600):
        loss = distribution_losses(logit.expand(4, 1, 3), returns, atoms).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(distribution_value(logit, atoms, TAU).detach()) == pytest.approx(0.4772292964, abs=1e-3)


def test_the_slow_copy_follows_parameters_and_leaves_buffers():
    slow, fast = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    with torch.no_grad():
        fast.weight.fill_(3.0), fast.running_mean.fill_(9.0)
    polyak_update(slow, fast, 0.25)
    assert slow.weight.tolist() == [1.5, 1.5] and slow.running_mean.tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"the slow copy has other parameters: \['bias'\]"):
        polyak_update(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False), 0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log_mean_exp_return(d(1)[None], 0.0), "tau must be above 0 and finite, got 0.0"),
        (lambda: expectile_losses(d(1), d(1), 1.0), r"expectile must be in \(0, 1\), got 1.0"),
        (lambda: polyak_update(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1), 0.0), "Polyak rate"),
        (
            lambda: path_residuals(d(1), d(1), d(1), d(1), view_actions("token", [1]), 0),
            "a span has at least one action, got 0",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_policy_values_are_means_under_the_policy_itself():
    """Tokens that are no candidates count with the state's value; an empty place with nothing."""
    q_NKm = torch.tensor([[[1.0, 0.5, 9.0], [0.0, 1.0, 9.0]]])
    value_NK = torch.tensor([[0.2, 0.4]])
    logp_Nm = torch.tensor([[0.5, 0.3, 0.0]]).log()
    assert policy_value(q_NKm, value_NK, logp_Nm).tolist() == [pytest.approx([0.5 + 0.15 + 0.04, 0.3 + 0.08])]
    assert log_rest(logp_Nm).exp().tolist() == pytest.approx([0.2])
    assert log_rest(torch.tensor([[0.0]])).tolist() == [-torch.inf]


def test_shares_of_reference_returns_become_soft_optimal_values():
    """Minimising the cross-entropy gives tau log mean exp(R / tau), as `log_mean_exp_return` computes it."""
    return_N = torch.tensor([0.0, 0.2, 0.9, 0.3], dtype=torch.float64)
    logit = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logit], max_iter=200, tolerance_grad=1e-14, tolerance_change=1e-16)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        share_NK = logit.sigmoid().expand(4, 1)
        loss = soft_return_losses(share_NK, return_N, 0.1, 1.0).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    value = 1.0 + 0.1 * float(logit.detach().sigmoid().log())
    assert value == pytest.approx(float(log_mean_exp_return(return_N[None], 0.1)), abs=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
def test_trace_targets_are_lambda_returns(decay):
    """By the recursion for each completion alone; a cut one goes on with the value behind its cut."""
    actions = view_actions("chunk", [5, 2, 7], chunk_tokens=2)
    generator = torch.Generator().manual_seed(0)
    reward_AK = torch.randn(len(actions.state_A), 3, generator=generator, dtype=torch.float64)
    value_SK = torch.randn(len(actions.sequence_S), 3, generator=generator, dtype=torch.float64)
    end_SK = end_values(value_SK, actions, is_done(actions, torch.tensor([False, False, True])))
    found = trace_targets(reward_AK, end_SK, actions, decay)
    start = 0
    for number, count in enumerate(actions.actions_B.tolist()):
        following = None
        for action in reversed(range(start, start + count)):
            after = end_SK[action + number + 1]
            following = reward_AK[action] + (after if following is None else (1 - decay) * after + decay * following)
            assert torch.allclose(found[action], following)
        start += count
    if decay == 0:
        assert torch.allclose(found, reward_AK + end_SK[actions.next_state_A])
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        trace_targets(reward_AK, end_SK, actions, 1.5)
