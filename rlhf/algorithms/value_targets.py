"""What a critic of the optimal values regresses on: soft, max, path-consistent, expectile and Monte-Carlo targets.

All are for Q*, whoever wrote the data: no importance weights. Every member of an ensemble has its own targets, made of
its own values, so that disagreement about what comes later is disagreement here (bootstrapped DQN, arXiv 1602.04621).

Suffixes: N states or actions, S states and A actions of an `ActionView`, K members, m candidates, Z atoms.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf.algorithms.mdp_views import ActionView


def soft_value(q_NKm: Tensor, value_NK: Tensor, logp_ref_Nm: Tensor, log_rest_N: Tensor, tau: float) -> Tensor:
    """V_k(s) = tau log sum_a pi_ref(a|s) exp(Q_k(s, a) / tau), (N, K), in nats times `tau`.

    The tokens that are no candidates have together exp(log_rest_N) of the reference policy's probability and the value
    `value_NK` (-inf: there are none). The optimum of reward minus tau KL(pi || pi_ref); tau to 0 gives `max_value`.

    Raises ValueError for a tau that is not above 0.
    """
    check_positive("tau", tau)
    weighted_NKm = logp_ref_Nm.unsqueeze(1) + q_NKm / tau
    rest_NK = log_rest_N.unsqueeze(1) + value_NK / tau
    return tau * torch.cat([weighted_NKm, rest_NK.unsqueeze(-1)], dim=-1).logsumexp(-1)


def max_value(q_NKm: Tensor, logp_ref_Nm: Tensor) -> Tensor:
    """V_k(s), the maximum over the candidates, (N, K). It overestimates where there are many; -inf marks none."""
    return q_NKm.masked_fill(logp_ref_Nm.isneginf().unsqueeze(1), -torch.inf).amax(-1)


def policy_value(q_NKm: Tensor, value_NK: Tensor, logp_Nm: Tensor) -> Tensor:
    """V_k(s) = sum_a pi(a|s) Q_k(s, a) with `logp_Nm` of the policy itself, (N, K): tokens that are no candidates are
    worth `value_NK`, and -inf marks a place without one."""
    p_N1m = logp_Nm.exp().unsqueeze(1)
    return (p_N1m * q_NKm).sum(-1) + (1 - p_N1m.sum(-1)).clamp_min(0) * value_NK


def log_rest(logp_Nm: Tensor) -> Tensor:
    """The log-probability of all tokens that are no candidates together, (N,); -inf where rounding leaves none."""
    return (1 - logp_Nm.double().exp().sum(-1)).clamp_min(0).log().to(logp_Nm.dtype)


def end_values(value_SK: Tensor, actions: ActionView, done_A: Tensor) -> Tensor:
    """The same values without those behind an episode's end: 0 there, (S, K). Truncated ones keep theirs."""
    over_S = torch.zeros(len(value_SK), dtype=torch.bool, device=value_SK.device)
    over_S[actions.next_state_A[done_A]] = True
    return value_SK.masked_fill(over_S.unsqueeze(1), 0.0)


def one_step_targets(reward_A: Tensor, end_value_SK: Tensor, actions: ActionView) -> Tensor:
    """y = r + V(s'), (A, K), without gradient; `end_value_SK` from `end_values` of the slow copy of the critic."""
    return (reward_A.unsqueeze(1) + end_value_SK[actions.next_state_A]).detach()


def trace_targets(reward_AK: Tensor, end_value_SK: Tensor, actions: ActionView, decay: float) -> Tensor:
    """lambda-returns y_a = r_a + (1 - lambda) V(s') + lambda y_(a+1), (A, K), without gradient; V alone behind a
    completion's last action. 0 gives `one_step_targets`, 1 what was earned from there on, plus V where it was cut.

    Raises ValueError for a decay outside [0, 1].
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"the decay of the trace must be in [0, 1], got {decay}")
    after_AK = end_value_SK[actions.next_state_A].detach()
    target_AK = reward_AK.detach() + after_AK
    last_B, count_B = actions.last_action_B, actions.actions_B
    for back in range(1, int(count_B.max()) if decay > 0 else 1):
        action_n = (last_B - back)[count_B > back]
        mixed_nK = (1 - decay) * after_AK[action_n] + decay * target_AK[action_n + 1]
        target_AK[action_n] = reward_AK[action_n].detach() + mixed_nK
    return target_AK


def path_residuals(
    value_SK: Tensor,
    end_value_SK: Tensor,
    advantage_AK: Tensor,
    reward_A: Tensor,
    actions: ActionView,
    span: int | None,
) -> Tensor:
    """V(s_i) - sum_{t=i}^{j-1} (r_t - A(s_t, a_t)) - V(s_j) from every action i to j = i + span, (A, K).

    Zero along every trajectory for the soft optimum, where A = Q - V = tau log(pi* / pi_ref), so that one trajectory,
    whoever wrote it, teaches credit over any distance (path consistency learning, arXiv 1702.08892). Spans are cut at a
    completion's last state; None goes there from everywhere. `value_SK`: soft values; `end_value_SK`: those that a span
    ends in, from `end_values`. A critic without action values has A = r + V(s') - V(s), and no residual to learn from.
    `reward_A` may differ between members: (A, K).

    Raises ValueError for a span below 1.
    """
    if span is not None and span < 1:
        raise ValueError(f"a span has at least one action, got {span}; None goes to the end of a completion")
    reward_AK = reward_A.unsqueeze(1) if reward_A.dim() == 1 else reward_A
    # differences of sums over a whole batch: float64
    total_AK = F.pad((reward_AK - advantage_AK).double().cumsum(0), (0, 0, 1, 0))
    # indices stay where the view is: those on the CPU reach into tensors of any device
    begin_A = torch.arange(len(reward_A), device=actions.sequence_A.device)
    stop_A = (actions.last_action_B + 1)[actions.sequence_A]
    if span is not None:
        stop_A = torch.minimum(begin_A + span, stop_A)
    # action index + number of the completion = state index
    earned_AK = (total_AK[stop_A] - total_AK[begin_A]).to(value_SK.dtype)
    return value_SK[actions.state_A] - earned_AK - end_value_SK[stop_A + actions.sequence_A]


def log_mean_exp_return(return_NR: Tensor, tau: float) -> Tensor:
    """tau log mean exp(R / tau) over R continuations by the reference policy, (N,): the soft optimal value of a state
    from which transitions are deterministic (Q#, arXiv 2502.20548)."""
    check_positive("tau", tau)
    return tau * ((return_NR / tau).logsumexp(-1) - math.log(return_NR.shape[-1]))


def two_hot(return_N: Tensor, atom_Z: Tensor) -> Tensor:
    """Each return as a distribution over the two ascending atoms next to it, with the return as its mean, (N, Z).

    Returns outside the atoms go to the nearest one.
    """
    return_N = return_N.clamp(atom_Z[0], atom_Z[-1])
    above_N = torch.searchsorted(atom_Z, return_N).clamp(1, len(atom_Z) - 1)
    low_N, high_N = atom_Z[above_N - 1], atom_Z[above_N]
    share_N = ((return_N - low_N) / (high_N - low_N)).unsqueeze(1)
    places = (F.one_hot(above_N - 1, len(atom_Z)), F.one_hot(above_N, len(atom_Z)))
    return (1 - share_N) * places[0] + share_N * places[1]


def distribution_losses(logit_NKZ: Tensor, return_N: Tensor, atom_Z: Tensor) -> Tensor:
    """Cross-entropy of each member's distribution of returns with the observed ones, (N, K), in nats."""
    return -(two_hot(return_N, atom_Z).unsqueeze(1) * logit_NKZ.log_softmax(-1)).sum(-1)


def distribution_value(logit_NKZ: Tensor, atom_Z: Tensor, tau: float) -> Tensor:
    """tau log E exp(R / tau) under the members' distributions of returns of the reference policy, (N, K)."""
    check_positive("tau", tau)
    return tau * (logit_NKZ.log_softmax(-1) + atom_Z / tau).logsumexp(-1)


def soft_return_losses(share_NK: Tensor, return_N: Tensor, tau: float, high: float) -> Tensor:
    """Cross-entropy of `share_NK`, in (0, 1), with exp((R - high) / tau), (N, K): least where the share is the mean of
    that over returns R of the reference policy, of at most `high` each (the Monte-Carlo route to soft optimal values,
    Q#, arXiv 2502.20548)."""
    check_positive("tau", tau)
    wanted_NK = ((return_N - high) / tau).exp().unsqueeze(1).expand_as(share_NK)
    return F.binary_cross_entropy(share_NK, wanted_NK, reduction="none")


def expectile_losses(value_NK: Tensor, target_NK: Tensor, expectile: float) -> Tensor:
    """|e - 1{y < v}| (y - v)^2, (N, K): e above 1/2 leans towards the better of what was tried, a maximum within the
    data (IQL, arXiv 2110.06169). It leans towards a lucky environment too: lower e where that is random.

    Raises ValueError for an expectile outside (0, 1).
    """
    if not 0 < expectile < 1:
        raise ValueError(f"expectile must be in (0, 1), got {expectile}: 0.5 is the mean, 0.9 leans to the best")
    error_NK = target_NK - value_NK
    return (expectile - (error_NK < 0).to(error_NK.dtype)).abs() * error_NK.square()


def squared_losses(error_NK: Tensor, huber_delta: float | None = None) -> Tensor:
    """e^2, or beyond `huber_delta` its tangent: for noisy rewards; half the value range is a good delta."""
    if huber_delta is None:
        return error_NK.square()
    return 2 * F.huber_loss(error_NK, torch.zeros_like(error_NK), reduction="none", delta=huber_delta)


def member_losses(loss_NK: Tensor, in_bootstrap_NK: Tensor | None = None, weight_N: Tensor | None = None) -> Tensor:
    """Each member's mean over what it learns from, (K,); their mean is the loss of a step. A member that learns from
    nothing has 0. `in_bootstrap_NK`: bool, drawn once an episode. `weight_N`: of each action, 1 if not given."""
    weight_NK = torch.ones_like(loss_NK) if in_bootstrap_NK is None else in_bootstrap_NK.to(loss_NK.dtype)
    if weight_N is not None:
        weight_NK = weight_NK * weight_N.unsqueeze(1)
    total_K = weight_NK.sum(0)
    return (loss_NK * weight_NK).sum(0) / total_K.where(total_K > 0, 1.0)


@torch.no_grad()
def polyak_update(slow: nn.Module, fast: nn.Module, rate: float) -> None:
    """slow <- (1 - rate) slow + rate fast, parameters only; buffers such as priors are frozen and must be equal.

    Raises ValueError for a rate outside (0, 1] or modules with other parameters.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"the Polyak rate must be in (0, 1], got {rate}")
    parameters: Sequence[dict[str, nn.Parameter]] = [dict(module.named_parameters()) for module in (slow, fast)]
    if parameters[0].keys() != parameters[1].keys():
        raise ValueError(f"the slow copy has other parameters: {sorted(parameters[0].keys() ^ parameters[1].keys())}")
    for name, parameter in parameters[0].items():
        parameter.lerp_(parameters[1][name], rate)


def check_positive(name: str, value: float) -> None:
    """Raises ValueError unless `value` is above 0 and finite."""
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, got {value}")
