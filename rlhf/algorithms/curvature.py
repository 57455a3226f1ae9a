"""What each token's own optimizer step would do to the objective and to the policy, if it moved the LM head alone
(CAPO, Curvature-Aware Policy Optimization, arXiv 2510.00819).

For a token with objective phi(log p_a) and a step that changes its logits by u, with delta = u_a - E_p[u] and
tau = Var_p[u], to second order

    m_H = phi' delta + (phi'' delta^2 - phi' tau) / 2       the objective shift (eq. 10)
    m_F = delta^2 / 2  with the Fisher matrix of the sampled action, or  tau / 2  with the exact one: the policy shift,
          which approximates KL(old || new)

The surrogate pi / pi_old * A has phi' = phi'' = A rho; `objective_derivatives.py` has others. The theorem that bounds
the objective's change from below assumes more than a mask of tokens gives: nothing here is a guarantee.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlhf.algorithms import step_models
from rlhf.algorithms.moment_stream import MomentStream
from rlhf.algorithms.output_head import OutputHead, check_length, chunk_sizes, output_head, slices
from rlhf.algorithms.softmax_moments import LogitChange, SoftmaxMoments, logit_change
from rlhf.algorithms.step_models import LinearStep, RowAdamStep, StepModelName
from rlhf.algorithms.top_k_support import support_moments

Fisher = Literal["sampled", "exact", "max"]


class TokenShifts(NamedTuple):
    """Per token, float32 (float64 for float64 inputs), without gradient.

    `objective_N`, `policy_N`: m_H and m_F at the learning rate given. `logp_N`: log p of the action, in nats.
    `delta_N`, `variance_N`: delta and tau of this file's head. `kappa_policy_N`, `kappa_first_N`, `kappa_second_N`: at
    any learning rate m_F = lr^2 kappa_policy and m_H = lr kappa_first + lr^2 kappa_second, exactly, for every step
    model.
    `score_norm_N`: |[k = a] - p|^2. `hidden_norm_N`: |h|^2. `log_normalizer_N`: logsumexp of the logits.
    """

    objective_N: Tensor
    policy_N: Tensor
    logp_N: Tensor
    delta_N: Tensor
    variance_N: Tensor
    kappa_policy_N: Tensor
    kappa_first_N: Tensor
    kappa_second_N: Tensor
    score_norm_N: Tensor
    hidden_norm_N: Tensor
    log_normalizer_N: Tensor


@torch.no_grad()
def token_shifts(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    actions_N: Tensor,
    advantages_N: Tensor,
    *,
    lr: float,
    step_model: StepModelName = "adam_frozen",
    momentum: bool = True,
    fisher: Fisher = "sampled",
    ratio_N: Tensor | None = None,
    objective_slope_N: Tensor | None = None,
    objective_curvature_N: Tensor | None = None,
    exp_avg_VD: Tensor | None = None,
    exp_avg_sq_VD: Tensor | None = None,
    step: int = 0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    token_weight_N: Tensor | None = None,
    temperature: float = 1.0,
    logit_softcap: float | None = None,
    logit_scale: float = 1.0,
    bias_V: Tensor | None = None,
    bias_exp_avg_V: Tensor | None = None,
    bias_exp_avg_sq_V: Tensor | None = None,
    top_k: int | None = None,
    token_chunk: int | None = None,
    vocab_chunk: int | None = None,
) -> TokenShifts:
    """The two shifts of each token's own step.

    `hidden_ND`: the LM head's inputs that predict the N tokens `actions_N` (each the state before its token).
    `lr`: the learning rate of this step, after the schedule. `step`: optimizer steps already taken; the moments are the
    optimizer's own, of the loss. `step_model`: see step_models.py; `adam_frozen` at step 0 is `sgd`.
    `objective_slope_N`, `objective_curvature_N`: phi' and phi'', by default advantage * ratio for both.
    `token_weight_N`: scales the token's step, not its objective; None is 1, the token's step as if it were the batch.
    `top_k`: probabilities renormalised on these ids and the action; None for the whole vocabulary, where `adam_row`
    costs N V D element operations and suits small vocabularies.
    A softcap's second derivative is left out (Gauss-Newton): m_F is exact, m_H lacks one term.

    A token that has no gradient proposes no step: its shifts are 0, with momentum too. A token with a non-finite
    hidden state, advantage or log-prob has non-finite shifts, and no other token is touched.

    Raises ValueError where shapes, ids or settings do not fit together (`output_head`, `step_model`), and for a
    negative or non-finite lr or an unknown fisher.
    """
    head = output_head(
        hidden_ND,
        weight_VD,
        actions_N,
        bias_V=bias_V,
        temperature=temperature,
        logit_softcap=logit_softcap,
        logit_scale=logit_scale,
    )
    count, chunks = len(hidden_ND), chunk_sizes(hidden_ND.device, token_chunk, vocab_chunk)
    check_length(count, token_weight_N=token_weight_N)
    slope_N, curvature_N = slope_and_curvature(
        count, advantages_N, ratio_N, objective_slope_N, objective_curvature_N, head.dtype
    )
    own_N = slope_N if token_weight_N is None else slope_N * token_weight_N.to(head.dtype)
    model = step_models.step_model(
        step_model,
        head,
        exp_avg_VD=exp_avg_VD,
        exp_avg_sq_VD=exp_avg_sq_VD,
        bias_exp_avg_V=bias_exp_avg_V,
        bias_exp_avg_sq_V=bias_exp_avg_sq_V,
        step=step,
        betas=betas,
        eps=eps,
        momentum=momentum,
        weight_decay=weight_decay,
    )
    # autocast would compute the products in half precision
    with torch.autocast(hidden_ND.device.type, enabled=False):
        hidden_norm_N, input_norm_N = _norms(head, hidden_ND, chunks[0])
        if isinstance(model, RowAdamStep) or top_k is not None:
            change = logit_change(support_moments(head, model, hidden_ND, actions_N, own_N, top_k, chunks))
        else:
            moments = _stream(head, model, hidden_ND, actions_N, chunks)
            change = logit_change(moments, model.coefficient(own_N, input_norm_N))
    return shifts_of_change(change, lr, fisher, own_N == 0, slope_N, curvature_N, hidden_norm_N)


def slope_and_curvature(
    count: int,
    advantages_N: Tensor,
    ratio_N: Tensor | None,
    slope_N: Tensor | None,
    curvature_N: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """(phi', phi'') per token: as given, or advantage * ratio. Raises ValueError where a shape is not (count,)."""
    check_length(
        count,
        advantages_N=advantages_N,
        ratio_N=ratio_N,
        objective_slope_N=slope_N,
        objective_curvature_N=curvature_N,
    )
    surrogate_N = advantages_N.to(dtype)
    if ratio_N is not None:
        surrogate_N = surrogate_N * ratio_N.to(dtype)
    return tuple(surrogate_N if given is None else given.to(dtype) for given in (slope_N, curvature_N))


def objective_shift(slope_N: Tensor, curvature_N: Tensor, delta_N: Tensor, variance_N: Tensor) -> tuple[Tensor, Tensor]:
    """m_H's first-order and second-order terms."""
    return slope_N * delta_N, (curvature_N * delta_N.square() - slope_N * variance_N) / 2


def policy_shift(delta_N: Tensor, variance_N: Tensor, fisher: Fisher) -> Tensor:
    """m_F. Raises ValueError for an unknown fisher."""
    if fisher == "sampled":
        return delta_N.square() / 2
    if fisher == "exact":
        return variance_N / 2
    if fisher == "max":
        return torch.maximum(delta_N.square(), variance_N) / 2
    raise ValueError(f"unknown fisher {fisher!r}: choose sampled, exact or max")


def _stream(
    head: OutputHead, model: LinearStep, hidden_ND: Tensor, actions_N: Tensor, chunks: tuple[int, int]
) -> SoftmaxMoments:
    stream = MomentStream(head, hidden_ND, actions_N, chunks)
    for columns in stream.columns():
        weight_bD, step_block = head.weight[columns], model.block(columns)
        for rows in stream.token_blocks():
            stream.visit(rows, columns, weight_bD, step_block)
    return stream.moments


def _norms(head: OutputHead, hidden_ND: Tensor, token_chunk: int) -> tuple[Tensor, Tensor]:
    """Squared norms of the hidden states and of the head's inputs."""
    norm_2N = hidden_ND.new_empty(2, len(hidden_ND), dtype=head.dtype)
    for rows in slices(len(hidden_ND), token_chunk):
        norm_2N[0, rows] = hidden_ND[rows].to(head.dtype).square().sum(1)
        norm_2N[1, rows] = head.inputs(hidden_ND[rows]).square().sum(1)
    return norm_2N[0], norm_2N[1]


def shifts_of_change(
    change: LogitChange,
    lr: float,
    fisher: Fisher,
    has_no_step_N: Tensor,
    slope_N: Tensor,
    curvature_N: Tensor,
    hidden_norm_N: Tensor,
) -> TokenShifts:
    """The shifts at `lr` from the change at a learning rate of 1.

    Raises ValueError for a negative or non-finite lr or an unknown fisher.
    """
    if not 0 <= lr < float("inf"):
        raise ValueError(f"lr must be a finite number that is not negative, got {lr}")
    # 0 where there is no step, NaN where log p is not finite; a NaN stays one through both
    scale_N = torch.where(has_no_step_N, 0.0, 1.0).to(slope_N.dtype) + (change.logp_N - change.logp_N)
    delta_N, variance_N = change.delta_N * scale_N, change.variance_N * scale_N
    first_N, second_N = objective_shift(slope_N, curvature_N, delta_N, variance_N)
    policy_N = policy_shift(delta_N, variance_N, fisher)
    return TokenShifts(
        objective_N=lr * first_N + lr**2 * second_N,
        policy_N=lr**2 * policy_N,
        logp_N=change.logp_N,
        delta_N=lr * delta_N,
        variance_N=lr**2 * variance_N,
        kappa_policy_N=policy_N,
        kappa_first_N=first_N,
        kappa_second_N=second_N,
        score_norm_N=change.score_norm_N,
        hidden_norm_N=hidden_norm_N,
        log_normalizer_N=change.log_normalizer_N,
    )
